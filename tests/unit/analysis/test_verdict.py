"""The sentence at the head of a comparison, on figures worked out by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.analysis.compare import compare
from benchmarks.analysis.load import load
from benchmarks.analysis.verdict import verdict
from tests.unit.analysis.recorded import record

SENT = {"pfedpara": 25, "local": 0}
TRAINED = {"pfedpara", "local"}


def said(out: Path, accuracies: Mapping[str, Sequence[float]], first: Mapping[str, int] | None = None) -> str:
    """Returns what is said of one round of methods with these accuracies, a seed each, on dirichlet:0.5.

    FedAvg's kind sends 4 × 100 and 2 × 100 down to the model, pFedPara 2 × 25, local nothing.
    """
    for algo, values in accuracies.items():
        for seed, value in enumerate(values, (first or {}).get(algo, 0)):
            judged_on = "trained" if algo in TRAINED else "received"
            record(out, algo, seed, [(value, value)], sent=SENT.get(algo, 100), judged_on=judged_on)
    (comparison,) = compare(load([out]))
    return verdict(comparison)


@pytest.mark.parametrize(
    ("accuracies", "sentence"),
    [
        # Differences to fedper 0.10, 0.06, 0.08: mean 0.08, deviation 0.02, half 4.303 · 0.02 / √3 = 0.0497.
        (
            {"fedper": (0.9, 0.8, 0.85), "pfedpara": (0.8, 0.74, 0.77)},
            "fedper leads, 8.0 ± 5.0 points ahead of pfedpara; pfedpara is 8.0 ± 5.0 points behind at 0.083 of "
            "fedper's traffic.",
        ),
        # fedper − ditto 0.02, −0.01, 0.01: mean 0.0067, half 0.038.
        (
            {"fedper": (0.9, 0.8, 0.85), "ditto": (0.88, 0.81, 0.84), "pfedpara": (0.8, 0.74, 0.77)},
            "fedper and ditto lead, within each other's intervals; pfedpara is 8.0 ± 5.0 points behind at 0.083 of "
            "fedper's traffic.",
        ),
        # Each is close to fedper in its own way, but apfl and ditto are always 0.02 apart.
        (
            {"fedper": (0.9, 0.8, 0.85), "apfl": (0.87, 0.82, 0.85), "ditto": (0.85, 0.8, 0.83)},
            "fedper leads, and the intervals of apfl and ditto reach it.",
        ),
        (
            {"pfedpara": (0.9, 0.8, 0.85), "local": (0.8, 0.74, 0.77)},
            "pfedpara leads, 8.0 ± 5.0 points ahead of local; pfedpara is there and sends 50 parameters, local none.",
        ),
        (
            {"pfedpara": (0.9, 0.9, 0.9), "fedavg": (0.9, 0.9, 0.9), "local": (0.5, 0.5, 0.5)},
            "fedavg and pfedpara lead with the same accuracy; pfedpara is there at 0.083 of fedavg's traffic.",
        ),
        # Their interval is 10 ± 127 points: even 10 points behind, local would be within it.
        (
            {"fedavg": (0.9, 0.7), "local": (0.7, 0.7)},
            "by mean accuracy: fedavg (80.0 %), local (70.0 %); two seeds are too few for intervals, or to say who "
            "leads.",
        ),
        (
            {"fedavg": (0.9,), "pfedpara": (0.88,)},
            "by mean accuracy: fedavg (90.0 %), pfedpara (88.0 %); one seed is too few for intervals, or to say who "
            "leads.",
        ),
        (
            {"fedavg": (0.9, 0.7, 0.8)},
            "fedavg reaches 80.0 %, with nothing to compare it with.",
        ),
    ],
)
def test_who_leads(tmp_path: Path, accuracies: dict[str, tuple[float, ...]], sentence: str) -> None:
    assert said(tmp_path, accuracies) == f"On dirichlet:0.5, {sentence}"


def test_a_sentence_names_eight_methods_at_most(tmp_path: Path) -> None:
    accuracies = {f"m{n}": (0.9 - n / 100,) for n in range(9)}
    means = ", ".join(f"m{n} ({90 - n}.0 %)" for n in range(6))
    few = "one seed is too few for intervals, or to say who leads."
    assert said(tmp_path, accuracies) == f"On dirichlet:0.5, by mean accuracy: {means}, 3 others; {few}"


def test_methods_on_other_seeds_are_not_ranked(tmp_path: Path) -> None:
    accuracies = {"fedavg": (0.7, 0.7, 0.7), "fedper": (0.6, 0.6, 0.6), "ditto": (0.9, 0.9, 0.9)}
    assert said(tmp_path, accuracies, {"ditto": 1}) == (
        "On dirichlet:0.5, fedavg leads, 10.0 ± 0.0 points ahead of fedper. "
        "Not ranked, for they ran on other seeds or partitions: ditto."
    )


def test_where_all_diverged_nobody_leads(tmp_path: Path) -> None:
    record(tmp_path, "fedavg", 0, [], diverged={"client": 0, "round": 1, "lr": 1.0, "reason": "nan"})
    (comparison,) = compare(load([tmp_path]))
    assert verdict(comparison) == "On dirichlet:0.5, every run diverged."
