"""What stands for the clients in place of their mean, by hand and against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.base import Params
from baselines.fedopt import FedAvgMAggregator, FedAvgMHyper
from benchmarks.federation.robust import parse
from benchmarks.federation.updates import Updates

ROWS = [[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [3.0, 13.0], [100.0, -50.0]]


def rule_of(spec: str, rows: list[list[float]]) -> list[float]:
    rule = parse(spec)[1]
    assert rule is not None
    assert rule.needs <= len(rows)
    return rule.of(np.array(rows, np.float32)).tolist()


def test_rules_by_hand() -> None:
    assert rule_of("median", ROWS) == [2, 11]
    assert rule_of("median", ROWS[:4]) == [1.5, 11.5]
    assert rule_of("median", ROWS[4:]) == [100, -50]
    assert rule_of("trimmed", ROWS) == [2, 11]  # (1 + 2 + 3) / 3, (10 + 11 + 12) / 3
    assert rule_of("trimmed:2", ROWS) == [2, 11]
    # Squared distances to the 5 − 1 − 2 nearest: 2 + 8, 2 + 2, 2 + 2, 2 + 8, far; of the two least the first.
    assert rule_of("krum", ROWS) == [1, 11]


@given(st.integers(5, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_rules_against_numpy(n: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, 7)).astype(np.float32)
    assert rule_of("median", rows.tolist()) == pytest.approx(np.median(rows, axis=0).tolist(), abs=1e-6)
    trimmed = np.partition(rows, [1, n - 2], axis=0)[1:-1].mean(axis=0)
    assert rule_of("trimmed:1", rows.tolist()) == pytest.approx(trimmed.tolist(), abs=1e-6)
    distances = np.linalg.norm(rows[:, None].astype(float) - rows, axis=2) ** 2
    scores = [sum(sorted(np.delete(distances[i], i))[: n - 3]) for i in range(n)]
    assert rule_of("krum:1", rows.tolist()) == rows[np.argmin(scores)].tolist()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", ["median", "trimmed", "krum"])
def test_one_wild_update_does_no_harm(spec: str, number: float) -> None:
    assert np.isfinite(rule_of(spec, [[number, number], *ROWS[:4]])).all()


@pytest.mark.parametrize(
    ("spec", "canonical", "needs"),
    [("median", "median", 1), ("trimmed", "trimmed:1", 3), ("trimmed:02", "trimmed:2", 5), ("krum:3", "krum:3", 9)],
)
def test_spelling_and_needs(spec: str, canonical: str, needs: int) -> None:
    found, rule = parse(spec)
    assert rule is not None
    assert (found, rule.needs) == (canonical, needs)


def test_a_server_s_momentum_takes_the_rule_s_result_for_the_mean() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    sizes = {client: 1 + client for client in range(5)}
    updates = Updates(FedAvgMAggregator(model, FedAvgMHyper(server_lr=0.5), 5), sizes, parse("median")[1])
    for client in (4, 2, 0, 3, 1):
        params: Params = {"weight": torch.tensor([ROWS[client]])}
        updates.take(client, params)
    assert updates.aggregate()["weight"].tolist() == [[1.0, 5.5]]  # 0 + 0.5 (median − 0)
    assert not updates.waiting
