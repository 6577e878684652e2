"""Factors in turn: each round trains and sends one shared factor of every weight, and holds the others still.

Round t, for a weight with the shared factors F_0 … F_{k−1}, such as X and Y of X Yᵀ:
    Clients: F_{t mod k} by E epochs of SGD, with whatever is not such a factor (private factors, biases, dense layers).
    Server:  F_{t mod k} ← Σ_i (n_i / n) F_{t mod k, i}.

A weight is linear in one of its factors, and the others are the same at every client. The mean of that factor therefore
gives the mean of the products exactly, Σ_i p_i (X_i Yᵀ) = (Σ_i p_i X_i) Yᵀ, where averaging X and Y apart does not.
RoLoRA (Chen et al., 2025) alternates so between the factors of LoRA.

Up goes the factor that was trained. Down goes the one that the round before trained: a client that took part in it has
the others. Any other client, and everyone in the first round, is sent all of them.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, Params, Trainer, copy_into, copy_of


def overlay(tensors: Mapping[str, Tensor], values: Params) -> None:
    """Copies ``values`` into those of ``tensors``. Raises ValueError where one is not there or of another shape."""
    copy_into({name: tensors[name] for name in values if name in tensors}, values)


class AlternatingAggregator(Aggregator):
    """FedAvg's server, which is sent some of the shared tensors and keeps the others as they are."""

    def set_model_params(self, model_parameters: Params) -> None:
        overlay(self.travelling, model_parameters)


class AlternatingTrainer(Trainer):
    """The method that it is mixed into, on factors in turn."""

    aggregator_class = AlternatingAggregator

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """Raises ValueError where the method sends other tensors than the shared ones, or there are no turns."""
        super().__init__(model, hyper)
        if self.travelling is not self.shared:
            raise ValueError("--alternate: the method sends more than the shared parameters; take fedavg or fedper")
        self.turns: dict[
            str, tuple[int, int]
        ] = {}  # of a shared factor: its number among its weight's, and of how many
        for path, module in model.named_modules():
            if isinstance(module, ParametrizationList) and (shapes := getattr(module[0], "factor_shapes", None)):
                factors = [f"{path}.original{i}" for i in range(len(shapes))]
                shared = [name for name in factors if name in self.shared]
                self.turns |= {name: (number, len(shared)) for number, name in enumerate(shared)}
        if not any(count > 1 for _, count in self.turns.values()):
            raise ValueError("--alternate: no weight has two shared factors to take in turn; take pfedpara or lowrank")
        self.private_state = {**self.private, **{name: self.shared[name] for name in self.turns}}
        self.sent: Mapping[str, Tensor] = self.travelling

    def changing(self, round: int) -> Mapping[str, Tensor]:
        turns = {name: self.turns.get(name, (0, 1)) for name in self.travelling}
        return {name: self.travelling[name] for name, (number, count) in turns.items() if number == round % count}

    def get_model_params(self) -> Params:
        """Returns what was trained last; all shared tensors before that."""
        return copy_of(self.sent)

    def set_model_params(self, model_parameters: Params) -> None:
        overlay(self.travelling, model_parameters)

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.sent, everything = self.changing(context.round), self.trainable
        still = {id(tensor) for name, tensor in self.travelling.items() if name not in self.sent}
        self.trainable = [parameter for parameter in everything if id(parameter) not in still]
        try:
            super().fit(data, context)
        finally:
            self.trainable = everything


def alternating(trainer: type[Trainer]) -> type[Trainer]:
    """Returns the method on factors in turn. Raises ValueError where it has local steps or a server of its own."""
    if issubclass(trainer, AlternatingTrainer):
        raise ValueError("--alternate: the method takes its factors in turn already; leave it out")
    own = (trainer.run_epochs, trainer.step, trainer.aggregator_class)
    if own != (Trainer.run_epochs, Trainer.step, Aggregator):
        raise ValueError("--alternate: the method has local steps or a server of its own; take fedavg or fedper")
    return type(f"Alternating{trainer.__name__}", (AlternatingTrainer, trainer), {})
