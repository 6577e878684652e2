"""FedRep (Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, Algorithm 1).

Client i, with the body φ that came and its own head h_i:
    h_i by τ epochs of SGD on f_i(h, φ) with φ fixed, then φ_i by E epochs of SGD on f_i(h_i, φ) with h_i fixed.
Server: φ ← the mean of the φ_i. As in the authors' code, what is judged is the new φ with the client's head.

τ epochs on top of FedAvg's E, whose gradients stop at the head. Deviations: the mean is weighted by samples, as in the
authors' code; the shared clipping of baselines/base.py. Running statistics of BatchNorm follow both phases.
"""

from pydantic import Field
from torch import nn
from torch.utils.data import TensorDataset

from baselines.base import Hyper
from baselines.fedper import FedPerHyper, FedPerTrainer


class FedRepHyper(FedPerHyper, frozen=True):
    head_epochs: int = Field(5, ge=0, description="τ, local epochs of the head before the E epochs of the body")


class FedRepTrainer(FedPerTrainer):
    """FedRep: a shared body; each client fits its own head to it first, then the body to that head."""

    hyper_class = FedRepHyper
    hyper: FedRepHyper
    judged_on = "received"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.head, self.body = self.divide()

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        self.trainable = self.head
        super().run_epochs(data, self.hyper.head_epochs, lr)
        self.trainable = self.body
        super().run_epochs(data, epochs, lr)
