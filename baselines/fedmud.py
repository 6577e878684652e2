"""FedMUD (Li et al., "The Panaceas for Improving Low-Rank Decomposition in Communication-Efficient Federated Learning",
ICML 2025): factors of the update, not of the weight.

Each weight is W + Δ. In round t its W stands still, and clients train L and R of
    Δ = F ⊗ R + L ⊗ F'           (aggregation-aware: with F and F' fixed, the mean of L and R gives the mean of Δ)
from 0, where A ⊗ B has the entries A[o, i, m] · B[o, j, n], o ≤ r and i, j, m, n ≤ k (block-wise Kronecker); Δ is the
first mn of these r k⁴ numbers. F and F' are drawn anew each round, uniform in [−a, a], the same at both ends by a seed.
    r = ⌈ρ² mn / 4⌉,  k the least with r k⁴ ≥ mn:   2 r k² numbers, about the share ρ of mn.
Server: L, R ← the means.  Before the next round both ends add Δ to W.

Up go L and R, biases and what is left dense. So it is down, for a client that took part in the round before; any other
is sent W as well, as the authors' code does for all. A number of the round goes both ways.

Deviations: the last weight alone stays dense, where the paper leaves the first one so too; a convolution's Δ is dealt
out over the kernel in its own order. What a codec left out of L and R is dropped with them.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, Params, Trainer, copy_into, copy_of, search
from pfedpara.sharing import layers
from pfedpara.streams import stream_seed

NUMBER = "update_number"  # the model's buffer that says how often Δ was averaged


class FedMudHyper(Hyper, frozen=True):
    ratio: float = Field(0.03125, gt=0, le=0.5, description="ρ, share of a weight's parameters that its update has")
    magnitude: float = Field(1.0, gt=0, description="a, largest size of the fixed factors", **search(0.1, 5))


class Update(nn.Module):
    """W + Δ, a parametrization of a weight. ``fixed`` are F and F', each (r, k, k) as ``left`` and ``right`` are."""

    def __init__(self, weight: Tensor, ratio: float) -> None:
        super().__init__()
        size = weight.numel()
        rank = math.ceil(ratio**2 * size / 4)
        side = next(k for k in range(1, size + 1) if rank * k**4 >= size)
        self.left, self.right = (nn.Parameter(weight.new_zeros(rank, side, side)) for _ in range(2))
        self.fixed = (self.left.detach().clone(), self.right.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.update(weight)

    def update(self, weight: Tensor) -> Tensor:
        """Returns Δ in the shape of ``weight``."""
        pairs = (self.fixed[0], self.right), (self.left, self.fixed[1])
        products = sum(torch.einsum("oim,ojn->oijmn", a, b) for a, b in pairs)  # (r, k, k, k, k)
        return products.flatten()[: weight.numel()].view(weight.shape)  # type: ignore[union-attr]


def factored(model: nn.Module) -> Iterator[tuple[str, nn.Module, Update]]:
    """Yields the weights with an update: the name of W, the module that holds it, and the update."""
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], Update):
            yield f"{path}.original", module, module[0]


def draw(model: nn.Module, magnitude: float) -> None:
    """Draws the fixed factors that belong to the model's number."""
    keys = int(model.update_seed), int(model.get_buffer(NUMBER))  # type: ignore[arg-type]
    for place, (_, _, update) in enumerate(factored(model)):
        stream = np.random.default_rng(stream_seed("fixed factors", *keys, place))
        update.fixed = tuple(  # type: ignore[assignment]
            torch.from_numpy(stream.uniform(-magnitude, magnitude, like.shape)).to(like) for like in update.fixed
        )


@torch.no_grad()
def push(model: nn.Module) -> None:
    """Adds Δ to W, on the CPU, so that both ends have the same bits."""
    for _, module, update in factored(model):
        weight: Tensor = module.original  # type: ignore[assignment]
        here = weight.device
        update.cpu()
        update.fixed = update.fixed[0].cpu(), update.fixed[1].cpu()
        at_home = weight.cpu()
        weight.copy_(at_home + update.update(at_home))
        update.to(here)


class FedMudAggregator(Aggregator):
    """FedAvg's server, which adds the last round's update to the weights before it takes the next one."""

    hyper: FedMudHyper

    def set_model_params(self, model_parameters: Params) -> None:
        super().set_model_params(model_parameters)
        draw(self.model, self.hyper.magnitude)

    def of_mean(self, mean: Params, clients: int) -> Params:
        push(self.model)
        return copy_of(self.shared) | mean | {NUMBER: self.shared[NUMBER] + 1}


class FedMudTrainer(Trainer):
    """FedMUD: clients train and send factors of each round's update, which then becomes part of the weights."""

    hyper_class = FedMudHyper
    aggregator_class = FedMudAggregator
    hyper: FedMudHyper
    adds_up = True

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.still = {name: self.shared[name] for name, _, _ in factored(model)}  # the W
        self.factors = {f"{name.removesuffix('original')}0.{side}" for name in self.still for side in ("left", "right")}
        self.differences = self.factors
        self.private_state = {**self.private, **self.still}
        still = set(map(id, self.still.values()))
        self.trainable = [parameter for parameter in self.trainable if id(parameter) not in still]
        self.sent: Mapping[str, Tensor] = self.travelling

    def declare_private(self, model: nn.Module) -> None:
        """Gives each weight but the last its update. Raises ValueError where there is none, or one has factors."""
        found = [parts[0] for parts in layers(model) if isinstance(parts[0], nn.Linear | nn.Conv2d)]
        if any(parametrize.is_parametrized(layer) for layer in found):
            raise ValueError("the update of a weight is factored, not the weight; take --parameterization dense")
        if len(found) < 2:
            raise ValueError("no weight is before the last one, which stays dense; take a deeper model")
        for layer in found[:-1]:
            parametrize.register_parametrization(layer, "weight", Update(layer.weight, self.hyper.ratio))
        model.register_buffer(NUMBER, torch.zeros(()))
        model.update_seed = int(torch.randint(1 << 62, ()))  # type: ignore[assignment]

    def changing(self, round: int) -> Mapping[str, Tensor]:
        return {name: tensor for name, tensor in self.travelling.items() if name not in self.still}

    def get_model_params(self) -> Params:
        """Returns what was trained; all that travels before that."""
        return copy_of(self.sent)

    def set_model_params(self, model_parameters: Params) -> None:
        """Takes over what came: all, or all but the W that the client has."""
        copy_into({name: self.travelling[name] for name in model_parameters}, model_parameters)
        draw(self.model, self.hyper.magnitude)

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        push(self.model)
        self.sent = self.changing(context.round)
        with torch.no_grad():
            self.travelling[NUMBER].add_(1)
            for name in self.factors:
                self.travelling[name].zero_()
                self.feedback.get(name, torch.empty(0)).zero_()
        draw(self.model, self.hyper.magnitude)
        super().fit(data, context)
