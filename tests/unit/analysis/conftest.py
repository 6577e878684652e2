"""What the tests of the report share: a screen, no recorded cost, and nine runs."""

import pytest

from benchmarks.perf import cost
from tests.unit.analysis.recorded import record


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch):
    """A screen of 120 columns: what runs tests in several processes says that it has 80."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def recorded_cost(tmp_path_factory, monkeypatch):
    """Where these tests take the constants of a round's cost from: nothing is there at first."""
    monkeypatch.setattr(cost, "RECORDED", tmp_path_factory.mktemp("cost") / "cost.yaml")
    return cost.RECORDED


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three methods × seeds 0 1 2, two clients, three rounds; the last round decides."""
    out = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        record(out, "fedavg", seed, [(0.1, 0.3), (0.5, 0.7), (0.70 + 0.02 * seed, 0.90 + 0.02 * seed)])
        record(out, "local", seed, [(0.5, 0.5), (0.6, 0.6), (0.74, 0.74)], sent=0, judged_on="trained")
        ours = {"sent": 25, "judged_on": "trained", "hyper": {"lr": 0.1, "gamma": 0.5}}
        record(out, "pfedpara", seed, [(0.4, 0.6), (0.8, 0.9), (0.85, 0.95)], **ours)
    return out
