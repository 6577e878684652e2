"""The server's half of a method."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.adapter import FedMLAggregator
from baselines.hyper import Hyper
from baselines.tensors import Params, copy_into, copy_of
from pfedpara.sharing import split_parameters


class Aggregator(FedMLAggregator):
    """The server's half: holds the shared tensors and averages what the clients send.

    The tensors in ``travelling`` go down, and those in a trainer's go up, both with the same names and shapes; a method
    whose messages hold more than the shared parameters adds to both. ``server_state`` is what the server keeps beside
    that between rounds, such as moments of an optimizer.
    """

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        """``model`` and ``hyper`` are the trainer's; ``clients`` counts those that are registered."""
        super().__init__(model)
        self.hyper, self.clients = hyper, clients
        self.shared, _ = split_parameters(model)
        self.travelling: Mapping[str, Tensor] = self.shared
        self.server_state: Params = {}

    def get_model_params(self) -> Params:
        return copy_of(self.travelling)

    def set_model_params(self, model_parameters: Params) -> None:
        copy_into(self.travelling, model_parameters)

    def get_server_state(self) -> Params:
        return copy_of(self.server_state)

    def set_server_state(self, state: Params) -> None:
        """Takes over what ``get_server_state`` returned. Raises ValueError where names or shapes differ."""
        copy_into(self.server_state, state)

    def set_received(self, received: Params) -> None:
        """Makes the model what the clients received of it, where their moves began. What else the server has is exact.

        Under FedML's own server nothing is lost on the way, and nobody calls this.
        """
        copy_into(self.shared, {name: received[name] for name in self.shared})

    def aggregate(self, updates: list[tuple[float, Params]]) -> Params:
        """Returns Σ_k (n_k / n) w_k of the pairs (n_k, w_k), added in the order of the list in float32."""
        n = sum(weight for weight, _ in updates)
        total = {name: torch.zeros_like(self.travelling[name]) for name in updates[0][1]}
        for weight, params in updates:
            for name, tensor in total.items():
                tensor.add_(params[name], alpha=weight / n)
        return total
