"""FedDyn (Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, Algorithm 1).

Client k, from θ^{t−1}, with its memory g_k of its own gradient (0 at first):
    θ_k ← argmin_θ L_k(θ) − ⟨g_k, θ⟩ + α/2 ‖θ − θ^{t−1}‖²,     g_k ← g_k − α (θ_k − θ^{t−1}).
Server, of m clients with P taking part, each with the same weight, and h = 0 at first:
    h ← h − α / m Σ_{k∈P} (θ_k − θ^{t−1}),     θ^t ← 1/|P| Σ_{k∈P} θ_k − h / α.
As α → 0 the clients become FedAvg's, but the server does not: −h / α is the sum of all rounds' moves, whatever α.

Deviations: as in the paper's experiments the argmin is E epochs of SGD, here without their weight decay and with one α
for all clients, which the authors' code divides by the client's share of samples. L_k's gradient is clipped as in
baselines/base.py, what is added to it is not. Memory and pull belong to the shared parameters alone: a private one
has no θ^{t−1}, and is trained by plain SGD on L_k.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, Params, Trainer, copy_of, search
from pfedpara.sharing import learned


class FedDynHyper(Hyper, frozen=True):
    alpha: float = Field(0.1, gt=0, description="α, weight of the dynamic regularizer", **search(0.001, 1))


class FedDynAggregator(Aggregator):
    """The plain mean, less h / α."""

    hyper: FedDynHyper
    needs_mean = True  # h is the mean of the clients' memories

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        self.server_state = {name: torch.zeros_like(theta) for name, theta in learned(self.shared).items()}  # h

    def weight(self, samples: float) -> float:
        return 1.0

    @torch.no_grad()
    def of_mean(self, mean: Params, clients: int) -> Params:
        alpha = self.hyper.alpha
        share = clients / self.clients  # |P| / m
        for name, h in self.server_state.items():
            h.sub_(mean[name] - self.shared[name], alpha=alpha * share)
            mean[name].sub_(h, alpha=1 / alpha)
        return mean


class FedDynTrainer(Trainer):
    """FedDyn: a regularizer that remembers each client's gradient lets local and global optima agree."""

    hyper_class = FedDynHyper
    aggregator_class = FedDynAggregator
    hyper: FedDynHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.memory = {f"memory.{name}": torch.zeros_like(theta) for name, theta in learned(self.shared).items()}  # g_k
        self.private_state = self.private | self.memory

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.anchor = copy_of(self.shared)
        super().fit(data, context)
        with torch.no_grad():
            for name, theta in learned(self.shared).items():
                self.memory[f"memory.{name}"].sub_(theta - self.anchor[name], alpha=self.hyper.alpha)

    @torch.no_grad()
    def settle(self, arrived: Params) -> None:
        """Moves g_k by the θ_k that the server adds, so that h stays the mean of all g_k."""
        for name, theta in learned(self.shared).items():
            self.memory[f"memory.{name}"].sub_(arrived[name] - theta, alpha=self.hyper.alpha)

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        """Adds α(θ − θ^{t−1}) − g_k."""
        for name, gradient in self.of_shared(gradients).items():
            gradient.add_(self.shared[name] - self.anchor[name], alpha=self.hyper.alpha)
            gradient.sub_(self.memory[f"memory.{name}"])
