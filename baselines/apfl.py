"""APFL (Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", arXiv:2003.13461, 2020, Algorithm 1).

Client i, with the global model w that came as w_i, its own v_i and v̄_i = α_i v_i + (1 − α_i) w_i, for every batch:
    w_i ← w_i − η ∇f_i(w_i),    v_i ← v_i − η ∇_v f_i(v̄_i) = v_i − η α_i ∇f_i(v̄_i).
With ``adaptive``, once a round, on its first batch: α_i ← α_i − η ⟨v_i − w_i, ∇f_i(v̄_i)⟩, kept within [0, 1].
Server: w ← the mean of the w_i. The model that is judged is the mixture v̄_i; v_i and α_i stay.

Two gradients a batch, for FedAvg's one. Deviations: the server's mean is weighted by samples, as FedAvg's is here; the
gradients are clipped as in baselines/fedavg.py. On factored weights it is the factors that are mixed.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.fedavg import FedAvgHyper, Params, copy_of
from baselines.second_model import SecondModelTrainer


class ApflHyper(FedAvgHyper, frozen=True):
    alpha: float = Field(0.5, ge=0, le=1, description="α_i, share of the client's own v_i; with adaptive, its start")
    adaptive: bool = Field(False, description="learn α_i")


class ApflTrainer(SecondModelTrainer):
    """APFL: each client uses a mixture of the global model and one of its own."""

    Hyper = ApflHyper
    hyper: ApflHyper

    def __init__(self, model: nn.Module, args: Any) -> None:
        """Raises ValueError where the model has running statistics: a mixture of two models has none of its own."""
        super().__init__(model, args)
        if len(self.shared) > len(self.trained):
            raise ValueError("a mixture of two models has no running statistics; take a model without BatchNorm")
        self.alpha = self.hyper.alpha
        self.adapts = False  # whether α is due at the next batch

    def get_private_state(self) -> Params:
        kept = {f"v.{name}": tensor for name, tensor in super().get_private_state().items()}
        return kept | {"alpha": torch.tensor(self.alpha, dtype=torch.float64)}

    def set_private_state(self, state: Params) -> None:
        super().set_private_state({name.removeprefix("v."): v for name, v in state.items() if name != "alpha"})
        self.alpha = state["alpha"].item()

    def train(self, train_data: TensorDataset, device: Any, args: Any) -> None:
        self.adapts = self.hyper.adaptive
        super().train(train_data, device, args)
        self.w = copy_of(self.shared)
        self.mix()
        self.check_finite(self.learning_rate())

    @torch.no_grad()
    def mix(self) -> None:
        """Turns the model from w into v̄ = α v + (1 − α) w."""
        for parameter, v in zip(self.trained, self.v.values(), strict=True):
            parameter.lerp_(v, self.alpha)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        _, gradients = self.gradients(x, y)
        w = [parameter.detach().clone() for parameter in self.trained]
        self.mix()
        loss, mixed = self.gradients(x, y)
        alpha, slope = self.alpha, 0.0
        with torch.no_grad():
            for parameter, u, v, at_w, at_mixed in zip(self.trained, w, self.v.values(), gradients, mixed, strict=True):
                slope += float(((v - u) * at_mixed).sum())
                parameter.copy_(u.add_(at_w, alpha=-lr))
                v.add_(at_mixed, alpha=-lr * alpha)
        if self.adapts:
            self.alpha, self.adapts = min(max(alpha - lr * slope, 0.0), 1.0), False
        return loss
