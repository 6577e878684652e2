"""What the participants of a round send, taken in as it comes and added up in the clients' order."""

from collections.abc import Mapping

import numpy as np
import torch

from baselines.aggregator import Aggregator, Mean
from baselines.base import Params, all_finite
from benchmarks.federation import codec
from benchmarks.federation.robust import Rule


class Updates:
    """The updates of one round.

    One that comes before its turn waits, and is let go of once it is in the sum. So the sum has the same bits in
    whatever order they come, and the memory they take is that of those that wait. An aggregator that overrides
    ``aggregate``, or a ``rule`` in place of the mean, gets them all at once, at the end.
    """

    def __init__(self, aggregator: Aggregator, sizes: Mapping[int, int], rule: Rule | None = None) -> None:
        """``sizes``: the samples of each client whose update will come, in the order in which they are added."""
        self.aggregator, self.sizes, self.rule = aggregator, sizes, rule
        self.waiting: dict[int, Params] = {}
        self.wild: int | None = None  # the first client in the order that sent a number which is not finite
        self.turns = iter(sizes)
        self.turn = next(self.turns, None)  # whose update is added next
        self.adds = rule is None and type(aggregator).aggregate is Aggregator.aggregate
        self.mean = Mean(sum(map(aggregator.weight, sizes.values())))

    def take(self, client: int, params: Params) -> None:
        """Takes in the tensors that ``client`` sent."""
        self.waiting[client] = params
        while self.adds and self.turn in self.waiting:
            self.add(self.turn, self.waiting.pop(self.turn))
            self.turn = next(self.turns, None)

    def add(self, client: int, params: Params) -> None:
        if self.wild is None and not finite(params):
            self.wild = client
        self.aggregator.note(client, params)
        self.mean.add(self.aggregator.weight(self.sizes[client]), params)

    def aggregate(self) -> Params:
        """Returns the new global model, from all updates."""
        if self.adds:
            return self.aggregator.of_mean(self.mean.sums, len(self.sizes))
        self.wild = next((client for client in self.sizes if not finite(self.waiting[client])), None)
        if self.rule:
            return self.aggregator.of_mean(self.by_rule(self.rule), len(self.sizes))
        return self.aggregator.aggregate([(samples, self.waiting[client]) for client, samples in self.sizes.items()])

    def by_rule(self, rule: Rule) -> Params:
        """Returns what the ``rule`` makes of all updates, each with its tensors end to end."""
        like = self.waiting[next(iter(self.sizes))]
        flat = np.stack([codec.flatten(self.waiting.pop(client)).numpy() for client in self.sizes])  # (n, size)
        return codec.unflatten(torch.from_numpy(rule.of(flat)), like)


def finite(params: Params) -> bool:
    return all(map(all_finite, params.values()))
