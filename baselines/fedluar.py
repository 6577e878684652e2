"""FedLUAR (Kim, Kang, Lee, "Layer-wise Update Aggregation with Recycling for Communication-Efficient Federated
Learning", NeurIPS 2025, Algorithms 1 and 2).

Clients train as in FedAvg, and send all but the weights (matrices and kernels) in a set R that the server names.
Server:
    l not in R:  Δ_l ← mean_k w_{k,l} − w_l,   s_l ← ‖Δ_l‖ / ‖w_l‖;      l in R:  Δ_l and s_l stay;      w_l ← w_l + Δ_l
    R ← δ of the weights, drawn without replacement with probabilities in proportion to 1 / s_l
R is empty in the first round. Biases, norms and running statistics are always sent. All weights go down, and R as a
number for each.

Deviations: the mean is weighted by samples, where the authors' code has equal clients; clients take plain SGD by
default; the shared clipping of baselines/base.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, Params, Trainer, copy_of
from pfedpara.sharing import learned
from pfedpara.streams import stream_seed

SET = "recycled"  # the model's buffer that holds R: 1 for each weight in it
LEAST = 1e-12  # score of a weight that did not move


class FedLuarHyper(Hyper, frozen=True):
    recycled_layers: int = Field(1, ge=0, description="δ, how many weights are not sent in a round, from the second on")


def weights(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of the matrices and kernels, which can be recycled."""
    return [name for name, tensor in learned(tensors).items() if tensor.dim() > 1]


class FedLuarAggregator(Aggregator):
    """FedAvg's server, which moves the weights that nobody sends as it moved them before."""

    hyper: FedLuarHyper

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        self.names = weights(self.shared)
        self.updates = {name: torch.zeros_like(self.shared[name]) for name in self.names}
        self.scores = torch.zeros(len(self.names), dtype=torch.float64)
        self.draws = torch.stack((torch.randint(1 << 62, ()), torch.tensor(0)))  # seed, and how often R was drawn
        self.server_state = {**self.updates, "scores": self.scores, "draws": self.draws}

    @torch.no_grad()
    def of_mean(self, mean: Params, clients: int) -> Params:
        new = copy_of(self.shared) | mean
        for place, name in enumerate(self.names):
            w, update = self.shared[name], self.updates[name]
            if name in mean:
                update.copy_(new[name] - w)
                self.scores[place] = float(update.norm() / w.norm().clamp(min=LEAST))
            else:
                new[name] = w + update
        inverse = 1 / self.scores.numpy().clip(min=LEAST)
        stream = np.random.default_rng(stream_seed("recycled layers", *self.draws.tolist()))
        drawn = stream.choice(len(inverse), self.hyper.recycled_layers, replace=False, p=inverse / inverse.sum())
        self.draws[1] += 1
        new[SET] = torch.zeros_like(new[SET])
        new[SET][drawn] = 1
        return new


class FedLuarTrainer(Trainer):
    """FedLUAR: each round some weights are not sent; the server moves them as it did before."""

    hyper_class = FedLuarHyper
    aggregator_class = FedLuarAggregator
    hyper: FedLuarHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """Raises ValueError where no weight would be left to send."""
        super().__init__(model, hyper)
        if self.hyper.recycled_layers >= len(weights(self.shared)):
            raise ValueError(
                f"recycled_layers must be below the {len(weights(self.shared))} weights that the model shares, "
                f"got {self.hyper.recycled_layers}"
            )
        self.sent: Mapping[str, Tensor] = self.travelling

    def declare_private(self, model: nn.Module) -> None:
        """Gives the model R, which both ends then have."""
        model.register_buffer(SET, torch.zeros(sum(p.dim() > 1 for p in model.parameters())))

    def changing(self, round: int) -> Mapping[str, Tensor]:
        recycled = {name for name, inside in zip(weights(self.shared), self.travelling[SET], strict=False) if inside}
        return {name: tensor for name, tensor in self.travelling.items() if name not in {*recycled, SET}}

    def parts(self, round: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Returns everything as changed: what nobody sends moves all the same."""
        return self.travelling, {}

    def get_model_params(self) -> Params:
        """Returns what is to be sent after training; all that travels before that."""
        return copy_of(self.sent)

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.sent = self.changing(context.round)
        super().fit(data, context)
