"""pFedMe (T. Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, Algorithm 1).

Client i, from w_i ← w, for each of R mini-batches D:
    θ ≈ argmin_θ ℓ(θ; D) + λ/2 ‖θ − w_i‖²    by K steps of size ``personal_lr``      (their eq. 7)
    w_i ← w_i − η λ (w_i − θ)                                                         (their eq. 8)
Server: w ← (1 − β) w + β · mean of the w_i it received, each with the same weight.
The personalized model that is judged is θ; w_i travels.

A private tensor, such as a personal factor of pFedPara, is part of θ alone: it has no w_i to be pulled to, takes the
K steps on the loss, and stays.

Deviations: the R local rounds are the batches of E epochs, so that every method sees the same samples; the loss's
gradient in a step on θ is clipped as in baselines/base.py. As in the authors' code, θ starts at w in each round and
goes on from where the previous batch left it. The K steps are the local optimizer's, SGD's in the paper.
"""

from pydantic import Field
from torch import Tensor, nn

from baselines.base import Aggregator, Hyper, Params, Trainer, copy_into, copy_of, search
from pfedpara.sharing import learned


# w_i goes the share ηλ of the way to θ, and θ by its step size times λ towards w_i: both have to stay at 2 or below.
class PFedMeHyper(Hyper, frozen=True):
    stepped = "personal_lr"
    lr: float = Field(0.05, gt=0, description="η, step size of the local model w_i", **search(0.01, 0.1))
    personal_lr: float = Field(0.05, gt=0, description="step size of the K steps on θ", **search(0.02, 0.1))
    lam: float = Field(15.0, gt=0, description="λ, pull of θ towards w_i", **search(5, 20))
    steps: int = Field(5, ge=1, description="K, gradient steps on θ for each batch")
    beta: float = Field(1.0, gt=0, description="β, weight of the clients' mean in the new global model")


class PFedMeAggregator(Aggregator):
    """w ← (1 − β) w + β · mean(w_i)."""

    hyper: PFedMeHyper

    def weight(self, samples: float) -> float:
        return 1.0

    def of_mean(self, mean: Params, clients: int) -> Params:
        beta = self.hyper.beta
        return mean | {name: (1 - beta) * w.detach() + beta * mean[name] for name, w in learned(self.shared).items()}


class PFedMeTrainer(Trainer):
    """pFedMe: personal models θ tied to a global model by a Moreau envelope."""

    hyper_class = PFedMeHyper
    aggregator_class = PFedMeAggregator
    hyper: PFedMeHyper
    judged_on = "trained"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.travelling = self.w = copy_of(self.shared)
        self.private_state = self.shared | self.private  # θ: the model's own tensors hold it

    def set_model_params(self, model_parameters: Params) -> None:
        """Takes over w, and starts the shared part of θ there."""
        super().set_model_params(model_parameters)
        copy_into(self.shared, self.w)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        losses = []
        for _ in range(self.hyper.steps):
            losses.append(super().step(x, y, self.hyper.personal_lr))
        parameters = learned(self.shared)
        for name, w in self.w.items():
            w.lerp_(self.shared[name].detach(), lr * self.hyper.lam if name in parameters else 1.0)
        return losses[0]

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        """Adds λ(θ − w_i), the gradient of the pull towards w_i."""
        for name, gradient in self.of_shared(gradients).items():
            gradient.add_(self.shared[name] - self.w[name], alpha=self.hyper.lam)
