"""FedLMT and pFedLMT (Liu et al., "FedLMT: Tackling System Heterogeneity of Federated Learning via Low-Rank Model
Training with Theoretical Guarantees", ICML 2024), on the weights X Yᵀ that a low-rank model starts with and keeps.

FedLMT, the same model at every client:
    Clients: all factors by E epochs of SGD on   ℓ + λ Σ ‖X Yᵀ‖²_F   (Frobenius decay, on each factored weight).
    Server:  the weighted mean of all factors, and of what stays dense.
pFedLMT, whose last K_P layers are a client's own (custom), and whose others all have in common:
    Clients: of the n steps of E epochs, the first n − ⌊n/2⌋ move the custom layers, the others the common ones.
    Server:  the weighted mean of the common layers. As in the authors' code, what is judged is the newest common
             layers with the client's custom ones.

λ as in the authors' code: 0.001 by default, 10⁻⁶ in pFedLMT's run, and 0 in most of FedLMT's.

Deviations: the head alone stays dense, where the authors leave the first layer so too, and pFedLMT's common ones;
``--dense`` does that. Ranks, kernels and start are those of ``lowrank`` (pfedpara/rank.py). Clients of pFedLMT have the
same rank: none has less memory here. The authors' momentum is --optimizer momentum; the shared clipping of
baselines/base.py is of the loss with its decay.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from baselines.base import Hyper, JudgedOn, Trainer, search
from baselines.fedper import FedPerHyper, FedPerTrainer


class FedLmtHyper(Hyper, frozen=True):
    frobenius_decay: float = Field(0.001, ge=0, description="λ, decay of each ‖X Yᵀ‖²_F", **search(1e-6, 0.01))


class PFedLmtHyper(FedLmtHyper, FedPerHyper, frozen=True):
    pass


class FedLmtTrainer(Trainer):
    """FedLMT: FedAvg on the factors of X Yᵀ with a dense head, and a decay of the products."""

    hyper_class = FedLmtHyper
    hyper: FedLmtHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.factored = [
            (layer, name)
            for layer in model.modules()
            if parametrize.is_parametrized(layer)
            for name in layer.parametrizations  # type: ignore[union-attr]
        ]

    def loss_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the loss with its decay, and the gradients of both."""
        if not self.hyper.frobenius_decay:
            return super().loss_gradients(x, y)
        self.count(len(y))
        with parametrize.cached():  # a weight is composed once
            loss = F.cross_entropy(self.model(x), y)
            squares = [getattr(layer, name).square().sum() for layer, name in self.factored]
        loss = loss + self.hyper.frobenius_decay * torch.stack(squares).sum()
        return loss.detach(), torch.autograd.grad(loss, self.trainable)


class PFedLmtTrainer(FedLmtTrainer, FedPerTrainer):
    """pFedLMT: FedLMT whose last layers stay with the client, trained before the others are."""

    hyper_class = PFedLmtHyper
    hyper: PFedLmtHyper
    judged_on: JudgedOn = "received"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.custom, self.common = self.divide()

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        steps = epochs * -(-len(data) // self.samples_per_step)
        self.turns = iter([self.custom] * (steps - steps // 2) + [self.common] * (steps // 2))
        super().run_epochs(data, epochs, lr)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        self.trainable = next(self.turns)
        return super().step(x, y, lr)
