"""What a megabyte buys: each method and size by what a client has to send and receive until it has its model.

    python -m benchmarks.analysis.frontier runs/frontier

It reads the runs of the suite frontier.yaml, or any others. MB are 10⁶ bytes up and down until the judged models are
on the clients, headers included, as a mean over clients. On the front is what no other beats with as little.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.analysis.compare import Comparison, compare
from benchmarks.analysis.load import EndedRun, ReportError, load
from benchmarks.terminal import printable

BUDGETS = (1, 10, 100)  # MB
NONE = "–"


class Point(NamedTuple):
    method: str
    megabytes: float
    accuracy: float  # after the last round
    within: list[float | None]  # accuracy for each of BUDGETS; None where one round needs more
    to_target: float | None  # MB


def curve(runs: Sequence[EndedRun]) -> pd.DataFrame:
    """Returns megabytes and accuracy of a method, a row for each round that all of its ``runs`` recorded: means."""
    tables = [
        pd.DataFrame({"megabytes": run.rounds["bytes_to_model"] / 1e6 / run.summary["clients"]}).assign(
            accuracy=run.rounds["accuracy_mean"], round=run.rounds["round"]
        )
        for run in runs
    ]
    rounds = pd.concat(tables).dropna().groupby("round")
    return rounds.mean()[rounds.size() == len(runs)]


def points(methods: Mapping[str, Sequence[EndedRun]], target: float) -> list[Point]:
    """Returns the methods that recorded bytes, from the one that needs least."""
    found = []
    for method, runs in methods.items():
        known = curve(runs) if runs else pd.DataFrame()
        if known.empty:
            continue
        spent = [known.loc[known["megabytes"] <= budget, "accuracy"] for budget in BUDGETS]
        reached = known.loc[known["accuracy"] >= target - 1e-9, "megabytes"]
        last = known.iloc[-1]
        found.append(
            Point(
                method,
                last["megabytes"],
                last["accuracy"],
                [None if each.empty else each.iloc[-1] for each in spent],
                None if reached.empty else reached.iloc[0],
            )
        )
    return sorted(found, key=lambda point: (point.megabytes, -point.accuracy))


def on_front(found: Sequence[Point]) -> list[str]:
    """Returns the methods that none beats with as little; ``found`` goes from the one that needs least.

    Not ``pooled``: how the samples came to one place is not counted.
    """
    best, front = -1.0, []
    for point in found:
        if point.accuracy > best and point.method != "pooled":
            best = point.accuracy
            front.append(point.method)
    return front


def words(comparison: Comparison) -> str:
    """Returns the table of a comparison. Raises ReportError where there is nothing to compare."""
    found = points(comparison.runs, comparison.target)
    if len(found) < 2:
        there = f"{found[0].method} alone" if found else "none"
        raise ReportError(
            f"{comparison.title}: a frontier needs two methods or sizes that finished and counted bytes, found {there}"
        )
    front = on_front(found)
    heads = ["method", "MB", "accuracy %", *(f"at {budget} MB" for budget in BUDGETS)]
    heads += [f"MB to {100 * comparison.target:.1f} %", "on the front"]
    lines = [f"{comparison.title}; {comparison.shared}", "", f"| {' | '.join(heads)} |"]
    lines.append("|---|" + "---:|" * (len(heads) - 2) + "---|")
    for point in found:
        shares = [NONE if share is None else f"{100 * share:.1f}" for share in (point.accuracy, *point.within)]
        reached = NONE if point.to_target is None else f"{point.to_target:.2f}"
        cells = [f"`{point.method}`", f"{point.megabytes:.2f}", *shares, reached]
        lines.append(f"| {' | '.join([*cells, 'yes' if point.method in front else ''])} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, searched to any depth")
    p.add_argument("--target", type=float, metavar="ACC", help="accuracy to reach, a fraction (default: the report's)")
    options = p.parse_args()
    try:
        tables = [words(each) for each in compare(load(options.folders), options.target)]
    except ReportError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
