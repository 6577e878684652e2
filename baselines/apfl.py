"""APFL (Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", arXiv:2003.13461, 2020, Algorithm 1).

Client i, with the global model w that came as w_i, its own v_i and v̄_i = α_i v_i + (1 − α_i) w_i, for every batch:
    w_i ← w_i − η ∇f_i(w_i),    v_i ← v_i − η ∇_v f_i(v̄_i) = v_i − η α_i ∇f_i(v̄_i).
With ``adaptive``, once a round, on its first batch: α_i ← α_i − η ⟨v_i − w_i, ∇f_i(v̄_i)⟩, kept within [0, 1].
Server: w ← the mean of the w_i. The model that is judged is the mixture v̄_i; v_i and α_i stay.

Two gradients a batch, for FedAvg's one. Deviations: the server's mean is weighted by samples, as FedAvg's is here; the
gradients are clipped as in baselines/base.py. On factored weights it is the factors that are mixed.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, copy_into, search
from baselines.second_model import SecondModelTrainer


class ApflHyper(Hyper, frozen=True):
    alpha: float = Field(
        0.5, ge=0, le=1, description="α_i, share of the client's own v_i", **search(0.1, 0.9, log=False)
    )
    adaptive: bool = Field(False, description="learn α_i, starting there")


class ApflTrainer(SecondModelTrainer):
    """APFL: each client uses a mixture of the global model and one of its own."""

    hyper_class = ApflHyper
    hyper: ApflHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """Raises ValueError where the model has running statistics: a mixture of two models has none of its own."""
        super().__init__(model, hyper)
        if len(self.shared) > len(self.trainable):
            raise ValueError("a mixture of two models has no running statistics; take a model without BatchNorm")
        self.optimizer_of_v = self.add_optimizer("own", self.v)
        self.alpha = torch.tensor(self.hyper.alpha, dtype=torch.float64)
        self.private_state = {f"v.{name}": v for name, v in self.v.items()} | {"alpha": self.alpha}
        self.adapts = False  # whether α is due at the next batch

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.adapts = self.hyper.adaptive
        super().fit(data, context)
        copy_into(self.w, self.shared)
        self.mix()
        self.check_finite(self.learning_rate(context))

    @torch.no_grad()
    def mix(self) -> None:
        """Turns the model from w into v̄ = α v + (1 − α) w."""
        for parameter, v in zip(self.trainable, self.v.values(), strict=True):
            parameter.lerp_(v, self.alpha.item())

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        _, gradients = self.gradients(x, y)
        w = [parameter.detach().clone() for parameter in self.trainable]
        self.mix()
        loss, mixed = self.gradients(x, y)
        alpha, slope = self.alpha.item(), 0.0
        with torch.no_grad():
            for parameter, u, v, at_mixed in zip(self.trainable, w, self.v.values(), mixed, strict=True):
                slope += float(((v - u) * at_mixed).sum())
                parameter.copy_(u)
        self.optimizer.step(self.trainable, gradients, lr)
        self.optimizer_of_v.step(list(self.v.values()), mixed, lr, scale=alpha)
        if self.adapts:
            self.alpha.fill_(alpha - lr * slope).clamp_(0, 1)
            self.adapts = False
        return loss
