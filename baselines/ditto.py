"""Ditto (Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
Algorithm 1).

Client k, with the global model w^t that came and its own model v_k:
    w_k by E epochs of SGD from w^t, which travels as in FedAvg, and
    v_k ← v_k − η (∇F_k(v_k) + λ (v_k − w^t))    for every batch of E epochs.
Server: w ← the mean of the w_k, weighted by samples. The model that is judged is v_k.

Two epochs' work for each of FedAvg's: 2E local epochs. w_k and v_k see the same batches. Deviation: the loss's gradient
in a step is clipped as in baselines/base.py, λ (v_k − w^t) is not.
"""

from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, copy_into, search
from baselines.second_model import SecondModelTrainer


class DittoHyper(Hyper, frozen=True):
    lam: float = Field(0.5, ge=0, description="λ, pull of the personal v_k towards the global model", **search(0.01, 2))


class DittoTrainer(SecondModelTrainer):
    """Ditto: FedAvg, and a personal model at each client that is pulled towards the global one."""

    hyper_class = DittoHyper
    hyper: DittoHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.optimizer_of_v = self.add_optimizer("own", dict(model.named_parameters()))
        self.anchor: list[Tensor] = []  # w^t while v_k is trained

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        anchor = [parameter.detach().clone() for parameter in self.trainable]
        super().fit(data, context)
        copy_into(self.w, self.shared)
        copy_into(self.shared, self.v)
        self.anchor = anchor
        optimizer, self.optimizer = self.optimizer, self.optimizer_of_v
        try:
            super().fit(data, context)
        finally:
            self.anchor, self.optimizer = [], optimizer
        copy_into(self.v, self.shared)

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        if self.anchor:
            for gradient, v, w in zip(gradients, self.trainable, self.anchor, strict=True):
                gradient.add_(v - w, alpha=self.hyper.lam)
