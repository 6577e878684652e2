"""The sum of a round: the same bits in whatever order updates come, and memory for those alone that come early."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from baselines.base import Aggregator, Hyper, Params
from benchmarks.federation.registry import METHODS
from benchmarks.federation.updates import Updates

SIZES = {3: 5, 4: 7, 8: 1, 9: 11}
MODEL = nn.Linear(3, 2, bias=False)


class Median(Aggregator):
    """A server that needs all updates at once."""

    def aggregate(self, updates: list[tuple[float, Params]]) -> Params:
        return {name: torch.stack([params[name] for _, params in updates]).median(0).values for name in updates[0][1]}


class Plain(Aggregator):
    def weight(self, samples: float) -> float:
        return 1.0

    def of_mean(self, mean: Params, clients: int) -> Params:
        return {name: tensor / clients for name, tensor in mean.items()}


def sent() -> dict[int, Params]:
    stream = np.random.default_rng(0)
    return {client: {"weight": torch.from_numpy(stream.normal(size=(2, 3)).astype(np.float32))} for client in SIZES}


def collect(kind: type[Aggregator], order: list[int], params: dict[int, Params]) -> Updates:
    updates = Updates(kind(MODEL, Hyper(), 10), SIZES)
    for client in order:
        updates.take(client, params[client])
    return updates


@given(st.permutations(list(SIZES)))
def test_the_sum_has_the_same_bits_in_any_order(order: list[int]) -> None:
    params, expected = sent(), np.zeros((2, 3), np.float32)
    for client, samples in SIZES.items():
        expected += np.float32(samples / 24) * params[client]["weight"].numpy()
    found = collect(Aggregator, order, params).aggregate()["weight"]
    torch.testing.assert_close(found, torch.from_numpy(expected))
    in_turn = [(float(samples), params[client]) for client, samples in SIZES.items()]
    for kind in (Aggregator, Plain, Median):
        whole = kind(MODEL, Hyper(), 10).aggregate(in_turn)["weight"]
        assert torch.equal(collect(kind, order, params).aggregate()["weight"], whole)


def test_a_method_weighs_and_changes_the_mean() -> None:
    params = {client: {"weight": torch.full((2, 3), float(client))} for client in SIZES}
    assert collect(Plain, list(SIZES), params).aggregate()["weight"].tolist() == [[1.5] * 3] * 2  # 24 / 4 / 4


def test_an_update_is_let_go_of_when_it_is_in_the_sum() -> None:
    params = sent()
    alive = {client: weakref.ref(own["weight"]) for client, own in params.items()}
    updates = Updates(Aggregator(MODEL, Hyper(), 10), SIZES)
    held = []
    for client in (4, 3, 9, 8):
        updates.take(client, params.pop(client))
        held.append([c for c in SIZES if c not in params and alive[c]() is not None])
    assert held == [[4], [], [9], []]


def test_an_aggregator_of_another_kind_gets_all_of_them_at_the_end() -> None:
    params = {client: {"weight": torch.full((2, 3), float(client))} for client in SIZES}
    updates = collect(Median, [9, 4, 8, 3], params)
    assert set(updates.waiting) == set(SIZES)
    assert updates.aggregate()["weight"].tolist() == [[4.0] * 3] * 2


@pytest.mark.parametrize("kind", [Aggregator, Median])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_the_first_client_that_sent_a_wild_number_is_known(kind: type[Aggregator], number: float) -> None:
    params = sent()
    for client in (8, 4):
        params[client]["weight"][1, 2] = number
    updates = collect(kind, [8, 9, 4, 3], params)
    updates.aggregate()
    assert updates.wild == 4


def test_no_method_here_needs_all_updates_at_once() -> None:
    for method in METHODS.values():
        assert method.trainer.aggregator_class.aggregate is Aggregator.aggregate
