"""Server optimizers: FedAvgM, FedAdam and FedYogi.

Clients train as FedAvg's. The server takes the mean of their moves for a gradient, Δ_t = Σ_k (n_k / n) w_k − w_t:
    FedAvgM   m_t = β m_{t−1} + Δ_t                       w_{t+1} = w_t + η m_t
    FedAdam   m_t = β1 m_{t−1} + (1 − β1) Δ_t             w_{t+1} = w_t + η m_t / (√v_t + τ)
              v_t = β2 v_{t−1} + (1 − β2) Δ_t²
    FedYogi   as FedAdam, but v_t = v_{t−1} − (1 − β2) Δ_t² sign(v_{t−1} − Δ_t²)
from m_{−1} = 0 and v_{−1} = τ², without bias correction. FedAvgM with β = 0 and η = 1 is FedAvg.

FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
2019, with the server's η of the next. FedAdam, FedYogi: Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
Algorithm 2. Deviations: the clients are weighted by samples, as in FedAvg; the shared clipping of baselines/base.py.
The optimizer acts on the shared parameters; private ones are trained by plain SGD and stay.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.base import Aggregator, Hyper, Params, Trainer, search
from pfedpara.sharing import learned


class ServerOptimizerHyper(Hyper, frozen=True):
    server_lr: float = Field(1.0, gt=0, description="η, the server's learning rate")


class FedAvgMHyper(ServerOptimizerHyper, frozen=True):
    momentum: float = Field(0.9, ge=0, lt=1, description="β, the server's momentum", **search(0, 0.95, log=False))


class FedAdamHyper(ServerOptimizerHyper, frozen=True):
    server_lr: float = Field(0.01, gt=0, description="η, the server's learning rate", **search(0.001, 0.1))
    beta1: float = Field(0.9, ge=0, lt=1, description="β1, decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="β2, decay of the second moment")
    tau: float = Field(1e-3, gt=0, description="τ, adaptivity: the smaller, the more so")


class ServerOptimizer(Aggregator):
    """An optimizer whose gradient is the clients' mean move; ``m.`` is its first moment."""

    hyper: ServerOptimizerHyper

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        self.server_state = {f"m.{name}": torch.zeros_like(w) for name, w in learned(self.shared).items()}

    @torch.no_grad()
    def of_mean(self, mean: Params, clients: int) -> Params:
        for name, w in learned(self.shared).items():
            mean[name] = w + self.hyper.server_lr * self.move(name, mean[name] - w)
        return mean

    def move(self, name: str, delta: Tensor) -> Tensor:
        """Returns the direction in which the parameter ``name`` goes for the pseudo-gradient ``delta``."""
        raise NotImplementedError


class FedAvgMAggregator(ServerOptimizer):
    hyper: FedAvgMHyper

    def move(self, name: str, delta: Tensor) -> Tensor:
        return self.server_state[f"m.{name}"].mul_(self.hyper.momentum).add_(delta)


class FedAdamAggregator(ServerOptimizer):
    hyper: FedAdamHyper

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        floor = self.hyper.tau**2
        self.server_state |= {f"v.{name}": torch.full_like(w, floor) for name, w in learned(self.shared).items()}

    def move(self, name: str, delta: Tensor) -> Tensor:
        m, v = self.server_state[f"m.{name}"], self.server_state[f"v.{name}"]
        m.lerp_(delta, 1 - self.hyper.beta1)
        self.adapt(v, delta.square())
        return m / (v.sqrt() + self.hyper.tau)

    def adapt(self, v: Tensor, square: Tensor) -> None:
        """Takes Δ² into the second moment ``v``, in place."""
        v.lerp_(square, 1 - self.hyper.beta2)


class FedYogiAggregator(FedAdamAggregator):
    def adapt(self, v: Tensor, square: Tensor) -> None:
        v.sub_(square * (v - square).sign(), alpha=1 - self.hyper.beta2)


class FedAvgMTrainer(Trainer):
    """FedAvgM: FedAvg with momentum on the server."""

    hyper_class = FedAvgMHyper
    aggregator_class = FedAvgMAggregator


class FedAdamTrainer(Trainer):
    """FedAdam: FedAvg with Adam on the server."""

    hyper_class = FedAdamHyper
    aggregator_class = FedAdamAggregator


class FedYogiTrainer(FedAdamTrainer):
    """FedYogi: FedAvg with Yogi on the server."""

    aggregator_class = FedYogiAggregator
