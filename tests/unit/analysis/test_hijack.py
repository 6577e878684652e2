"""The tables of docs/privacy.md on clients that poison, by hand."""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.analysis.hijack import arrange, by_rule, changes, stolen
from benchmarks.analysis.load import EndedRun


def ended(
    accuracies: list[float], bad: list[int], seed: int = 0, new: list[float] | None = None, **said: Any
) -> EndedRun:
    summary: dict[str, Any] = {"algo": "fedavg", "seed": seed, "clients": len(accuracies) + len(bad)}
    summary |= {"accuracy": {"mean": sum(accuracies) / len(accuracies), "per_client": accuracies}}
    summary |= {"poisoners": bad, "trigger_success": {"per_client": [a / 2 for a in accuracies]}}
    if new:
        summary["new_clients"] = {name: {"mean": mean} for name, mean in zip(("received", "adapted"), new, strict=True)}
    return EndedRun(Path(), summary, pd.DataFrame(), {"algo": "fedavg", "new_clients": 2 if new else 0, **said})


RUNS = [
    ended([0.1, 0.6, 0.8], [], poison="trigger:0"),
    ended([0.5, 0.7], [0], poison="replace:1"),
    ended([0.3, 0.5], [0], poison="replace:1", aggregate="median"),
    ended([0.9, 0.3, 0.5], [], seed=1, poison="trigger:0"),
    ended([0.8, 0.4], [1], seed=1, poison="replace:1"),
    ended([0.9, 0.7], [], new=[0.5, 0.6]),
]


def test_what_a_poisoner_changes_is_of_the_same_clients() -> None:
    # Without client 0, then without client 1: 0.7 and 0.7 before, 0.6 and 0.6 after.
    assert changes(arrange(RUNS), ["fedavg"]).splitlines()[2] == "| `fedavg` | 70.0 | -10.0 |"


def test_rules_stand_side_by_side() -> None:
    lines = by_rule(arrange(RUNS), ["fedavg"], "replace:1", "trigger_success").splitlines()
    assert (lines[0], lines[2]) == ("| method | `mean` | `median` |", "| `fedavg` | 30.0 | 20.0 |")


def test_the_stolen_model_is_set_against_the_clients_own() -> None:
    assert stolen(RUNS).splitlines()[2] == "| `fedavg` | 80.0 | 50.0 | -30.0 | 60.0 |"
