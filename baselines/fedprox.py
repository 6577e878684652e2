"""FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2).

Client k, from w^t:   minimise h_k(w; w^t) = F_k(w) + μ/2 ‖w − w^t‖²     (their eq. 2)
Server:               w^{t+1} ← Σ_k (n_k / n) w_k.        With μ = 0 this is FedAvg.

Deviations: h_k is minimised by E epochs of SGD, the same E for all clients: none is a straggler, so the inexactness γ
is not varied. Clients are drawn uniformly and weighted by samples, as in FedAvg here and in the authors' code;
Algorithm 2 draws them by n_k / n and weights them alike. F_k's gradient is clipped as in baselines/base.py, the
proximal term's is not. The term acts on the shared parameters alone: a private one has no w^t to be held to, and is
trained by plain SGD on F_k.
"""

from pydantic import Field
from torch import Tensor
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, Trainer, copy_of, search


class FedProxHyper(Hyper, frozen=True):
    mu: float = Field(0.1, ge=0, description="μ, pull of the local model towards the received one", **search(0.001, 1))


class FedProxTrainer(Trainer):
    """FedProx: FedAvg whose clients are held back from drifting by a proximal term."""

    hyper_class = FedProxHyper
    hyper: FedProxHyper

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.anchor = copy_of(self.shared)
        super().fit(data, context)

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        """Adds μ(w − w^t)."""
        for name, gradient in self.of_shared(gradients).items():
            gradient.add_(self.shared[name] - self.anchor[name], alpha=self.hyper.mu)
