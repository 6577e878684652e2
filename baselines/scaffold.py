"""SCAFFOLD (Karimireddy et al., "Stochastic Controlled Averaging for Federated Learning", ICML 2020, Algorithm 1).

Down travel x and the server's control variate c. Client i, from y ← x, K times:
    y ← y − η_l (g_i(y) + c − c_i)                                                     (their eq. 3)
then, with option II of their eq. 4,
    c_i⁺ = c_i − c + (x − y) / (K η_l);   up travel y and Δc_i = c_i⁺ − c_i;   c_i ← c_i⁺.
Server (their eq. 5), of N clients with S taking part, each with the same weight:
    x ← x + η_g / |S| Σ_{i∈S} (y_i − x),    c ← c + 1/N Σ_{i∈S} Δc_i.
All control variates start at 0.

Deviations: K is each client's own number of batches in E epochs, so that every method sees the same samples; the paper
has one K for all. g_i is clipped as in baselines/base.py, its correction is not. y_i travels in place of y_i − x.
Control variates belong to the shared parameters alone: a private one has no server's c to drift from, and is trained by
plain SGD.
"""

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.base import Aggregator, Hyper, Params, Trainer, copy_of, search
from pfedpara.sharing import learned


class ScaffoldHyper(Hyper, frozen=True):
    server_lr: float = Field(1.0, gt=0, description="η_g, the server's step size", **search(0.3, 1))

    @model_validator(mode="after")
    def _plain_steps(self) -> Self:
        if self.optimizer != "sgd":
            raise ValueError(
                "--optimizer: a control variate is the mean gradient of a round's steps of sgd, which others do not "
                f"reveal; take sgd, or --set scaffold.optimizer=sgd beside other methods, got {self.optimizer}"
            )
        return self


class ScaffoldAggregator(Aggregator):
    """x and c, moved by the means of what the clients send."""

    hyper: ScaffoldHyper
    needs_mean = True  # c is the mean of the c_i

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        self.travelling = self.shared | {
            f"control.{name}": torch.zeros_like(x) for name, x in learned(self.shared).items()
        }

    def weight(self, samples: float) -> float:
        return 1.0

    @torch.no_grad()
    def of_mean(self, mean: Params, clients: int) -> Params:
        share = clients / self.clients  # |S| / N
        for name, x in learned(self.shared).items():
            mean[name] = x + self.hyper.server_lr * (mean[name] - x)
            mean[f"control.{name}"] = self.travelling[f"control.{name}"] + share * mean[f"control.{name}"]
        return mean


class ScaffoldTrainer(Trainer):
    """SCAFFOLD: control variates, which travel as well, take each client's drift out of its steps."""

    hyper_class = ScaffoldHyper
    aggregator_class = ScaffoldAggregator
    hyper: ScaffoldHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.message, self.own = (  # c on the way down and Δc_i on the way up; c_i
            {f"{whose}control.{name}": torch.zeros_like(x) for name, x in learned(self.shared).items()}
            for whose in ("", "own_")
        )
        self.travelling, self.private_state = self.shared | self.message, self.private | self.own
        self.differences = self.message.keys()

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        x = copy_of(self.shared)
        super().run_epochs(data, epochs, lr)
        steps = epochs * math.ceil(len(data) / self.hyper.batch_size)  # K
        with torch.no_grad():
            for name, y in learned(self.shared).items():
                c, c_i = self.message[f"control.{name}"], self.own[f"own_control.{name}"]
                c.copy_((x[name] - y) / (steps * lr) - c)
                c_i.add_(c)

    def settle(self, arrived: Params) -> None:
        """Moves c_i by the Δc_i that the server adds, so that c stays the mean of all c_i."""
        for name, sent in self.message.items():
            self.own[f"own_{name}"].add_(arrived[name] - sent)

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        """Adds c − c_i."""
        for name, gradient in self.of_shared(gradients).items():
            gradient.add_(self.message[f"control.{name}"]).sub_(self.own[f"own_control.{name}"])
