"""SpaFL (Kim et al., "SpaFL: Communication-Efficient Federated Learning with Sparse Models and Low Computational
Overhead", NeurIPS 2024, Algorithm 1): only thresholds travel.

Each neuron or filter i of a weight W (O, …) has a threshold τ_i that starts at 0. It is used while it is large enough:
    p_i = [mean_j |w_ij| > τ_i],   the layer takes W ⊙ p
Client: E epochs of SGD on W and τ together, on the loss  ℓ + α Σ exp(−τ_i).  The step [·] has the derivative 1, for
τ and, as in the authors' code, for W.
Server: τ ← the plain mean.  The client that takes part next learns from it which of its weights matter to all:
    w_ij ← w_ij − (τ_i − τ_i') sgn(Σ_j w_ij) / n,   n the layer's inputs, or k² of a kernel k × k
where τ' are the thresholds that came to it before. W, biases and norms start alike and never leave the client.

τ goes both ways, a number for each neuron or filter. Where a layer keeps at most a hundredth, its τ starts at 0 again.
Deviations: that is seen after each step, in the authors' code a batch later; who was absent makes up for all that τ
moved since, there for the last round alone; biases, which the authors' models lack, are trained. What is pruned is
computed all the same, and counted.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, Trainer, search
from pfedpara.sharing import keep_private, layers

LEAST = 0.01  # share of a layer's neurons or filters


class SpaflHyper(Hyper, frozen=True):
    alpha: float = Field(
        0.002, ge=0, description="α, weight of the penalty that raises thresholds", **search(1e-4, 1e-2)
    )


class Mask(nn.Module):
    """W ⊙ p, a parametrization of a weight (O, …)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.threshold = nn.Parameter(weight.new_zeros(len(weight)))  # τ (O,)

    def forward(self, weight: Tensor) -> Tensor:
        above = self.above(weight)
        p = (above > 0).to(above) + (above - above.detach())  # (O,)
        return weight * along(p, weight)

    def above(self, weight: Tensor) -> Tensor:
        """Returns by how much each neuron or filter is above its threshold (O,)."""
        return weight.abs().flatten(1).mean(1) - self.threshold


def along(values: Tensor, weight: Tensor) -> Tensor:
    """Returns ``values`` (O,) in a shape that goes along the first axis of ``weight``."""
    return values.view(-1, *(1 for _ in weight.shape[1:]))


class SpaflAggregator(Aggregator):
    """The plain mean of the thresholds."""

    def weight(self, samples: float) -> float:
        return 1.0


class SpaflTrainer(Trainer):
    """SpaFL: thresholds, which prune neurons and filters, are all that travels; each client keeps its weights."""

    hyper_class = SpaflHyper
    aggregator_class = SpaflAggregator
    hyper: SpaflHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.before = {name: torch.zeros_like(threshold) for name, threshold in self.shared.items()}  # τ'
        self.private_state = {**self.private, **{f"before.{name}": tensor for name, tensor in self.before.items()}}

    def declare_private(self, model: nn.Module) -> None:
        """Gives weights thresholds, and keeps all else. Raises ValueError where a weight has factors, or none is."""
        found = [parts[0] for parts in layers(model) if isinstance(parts[0], nn.Linear | nn.Conv2d)]
        if any(parametrize.is_parametrized(layer) for layer in found):
            raise ValueError("thresholds prune a weight's own neurons, not its factors; take --parameterization dense")
        if not found:
            raise ValueError("no layer is a Linear or a Conv2d, whose neurons thresholds prune; take another model")
        for layer in found:
            parametrize.register_parametrization(layer, "weight", Mask(layer.weight))
        keep_private(module for module in model.modules() if not isinstance(module, Mask))
        self.masked: list[tuple[Tensor, Mask]] = [
            (module.original, module[0])  # type: ignore[misc]
            for module in model.modules()
            if isinstance(module, parametrize.ParametrizationList)
        ]

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        with torch.no_grad():
            for (weight, mask), before in zip(self.masked, self.before.values(), strict=True):
                inputs = weight.shape[1] if weight.dim() == 2 else weight[0, 0].numel()  # n
                move = (mask.threshold - before) * weight.flatten(1).sum(1).sign() / inputs  # (O,)
                weight.sub_(along(move, weight))
                before.copy_(mask.threshold)
        self.revive()
        super().fit(data, context)

    def loss_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, gradients = super().loss_gradients(x, y)
        with torch.no_grad():
            for name, gradient in self.of_shared(gradients).items():
                gradient.sub_(self.hyper.alpha * torch.exp(-self.shared[name]))
        return loss, gradients

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        loss = super().step(x, y, lr)
        self.revive()
        return loss

    @torch.no_grad()
    def revive(self) -> None:
        """Sets the thresholds of each layer to 0 that hardly uses any of its neurons or filters."""
        for weight, mask in self.masked:
            mask.threshold.mul_((mask.above(weight) > 0).float().mean() > LEAST)
