"""The server's half of a method."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.adapter import FedMLAggregator
from baselines.hyper import Hyper
from baselines.tensors import Params, copy_into, copy_of
from pfedpara.sharing import split_parameters


class Mean:
    """Σ_k (p_k / p) w_k with p = Σ_k p_k, in float32, one w_k after another: another order may give other bits."""

    def __init__(self, total: float) -> None:
        """``total``: p."""
        self.total = total
        self.sums: Params = {}

    @torch.no_grad()
    def add(self, weight: float, params: Params) -> None:
        self.sums = self.sums or {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        for name, sum_ in self.sums.items():
            sum_.add_(params[name], alpha=weight / self.total)


class Aggregator(FedMLAggregator):
    """The server's half: holds the shared tensors and averages what the clients send.

    The tensors in ``travelling`` go down, and those in a trainer's go up, both with the same names and shapes; a method
    whose messages hold more than the shared parameters adds to both. ``server_state`` is what the server keeps beside
    that between rounds, such as moments of an optimizer.
    """

    needs_mean: ClassVar[bool] = False  # whether no other centre of the updates can stand for their mean

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

    def for_client(self, client: int) -> Params:
        """Returns a client's own of the tensors that the trainer calls ``addressed``; FedAvg sends all the same."""
        return {}

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

    def weight(self, samples: float) -> float:
        """Returns p_k, what the update of a client with so many samples counts in the mean; FedAvg takes n_k."""
        return samples

    def note(self, client: int, params: Params) -> None:
        """Sees each client's update, in their order, before it is added to the mean; FedAvg does not look at it."""

    def of_mean(self, mean: Params, clients: int) -> Params:
        """Returns the new global model from the ``mean`` of so many clients' updates; FedAvg takes it as it is."""
        return mean

    def aggregate(self, updates: list[tuple[float, Params]]) -> Params:
        """Returns ``of_mean`` of the pairs (n_k, w_k), added in the order of the list.

        A method that needs them all at once overrides this. The server then holds a round's updates until its end;
        otherwise it adds each up by itself, and lets go of it.
        """
        mean = Mean(sum(self.weight(samples) for samples, _ in updates))
        for samples, params in updates:
            mean.add(self.weight(samples), params)
        return self.of_mean(mean.sums, len(updates))
