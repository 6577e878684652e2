"""What a client that poisons does to the others, and what the shared part alone is worth: docs/privacy.md.

    python -m benchmarks.analysis.hijack runs/hijack

It reads the runs of the suite hijack.yaml. Figures are means over seeds with the 95 % interval of the mean (Student's
t), in percent; those with nobody poisoning are of the same clients. Differences are paired by seed, in points.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.analysis.load import EndedRun, ReportError, load
from benchmarks.analysis.steps import words
from benchmarks.federation.metrics import TRIGGER_SUCCESS
from benchmarks.federation.poison import NONE, parse
from benchmarks.federation.robust import MEAN
from benchmarks.federation.settings import complete
from benchmarks.terminal import printable

CONTROL = "trigger:0"
Runs = dict[tuple[str, str, str], dict[int, EndedRun]]  # by method, aggregate and poison, then by seed


def arrange(runs: Iterable[EndedRun]) -> Runs:
    """Returns the finished runs that nobody joined later."""
    found: Runs = {}
    for run in runs:
        said = complete(run.settings)
        if run.summary["accuracy"] and not said["new_clients"]:
            found.setdefault((run.summary["algo"], said["aggregate"], said["poison"]), {})[run.summary["seed"]] = run
    return found


def poisoners(runs: Runs) -> dict[int, set[int]]:
    """Returns who poisons in any of the runs, by seed: the others are judged in all of them."""
    found: dict[int, set[int]] = {}
    for seeds in runs.values():
        for seed, run in seeds.items():
            found.setdefault(seed, set()).update(run.summary.get("poisoners", ()))
    return found


def values(runs: Runs, cell: tuple[str, str, str], figure: str) -> dict[int, float]:
    """Returns the mean of a ``figure`` over clients that nowhere poison, by seed; none where it is not recorded."""
    bad, found = poisoners(runs), dict[int, float]()
    for seed, run in runs.get(cell, {}).items():
        judged = [c for c in range(run.summary["clients"]) if c not in run.summary.get("poisoners", ())]
        known = run.summary.get(figure, {}).get("per_client", [])
        if len(known) == len(judged):
            found[seed] = float(np.mean([v for c, v in zip(judged, known, strict=True) if c not in bad[seed]]))
    return found


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def changes(runs: Runs, methods: list[str]) -> str:
    """Returns the others' accuracy with nobody poisoning, and what each kind changes, under the mean."""
    kinds = list(dict.fromkeys(kind for _, _, kind in runs if kind not in (CONTROL, NONE)))
    rows = []
    for method in methods:
        before = values(runs, (method, MEAN, CONTROL), "accuracy")
        cells = []
        for kind in kinds:
            after = values(runs, (method, MEAN, kind), "accuracy")
            cells.append(words([after[seed] - before[seed] for seed in sorted(after.keys() & before.keys())], "+"))
        rows.append([f"`{method}`", words(list(before.values())), *cells])
    return table(["method", "nobody poisons", *(f"`{kind}`" for kind in kinds)], rows)


def by_rule(runs: Runs, methods: list[str], kind: str, figure: str) -> str:
    """Returns a ``figure`` of the others for each rule."""
    rules = list(dict.fromkeys(rule for _, rule, poison in sorted(runs, key=lambda c: c[1] != MEAN) if poison == kind))
    rows = [[f"`{m}`", *(words(list(values(runs, (m, r, kind), figure).values())) for r in rules)] for m in methods]
    return table(["method", *(f"`{rule}`" for rule in rules)], rows)


def stolen(runs: Iterable[EndedRun]) -> str:
    """Returns what clients have of their models, and newcomers of the shared part alone, by method."""
    found: dict[str, list[EndedRun]] = {}
    for run in runs:
        if run.summary["accuracy"] and run.summary.get("new_clients"):
            found.setdefault(run.summary["algo"], []).append(run)
    rows = []
    for method, of in found.items():
        own = [run.summary["accuracy"]["mean"] for run in of]
        alone, adapted = ([run.summary["new_clients"][name]["mean"] for run in of] for name in ("received", "adapted"))
        cells = [words(own), words(alone), words([a - o for a, o in zip(alone, own, strict=True)], "+"), words(adapted)]
        rows.append([f"`{method}`", *cells])
    head = ["method", "a client's own model", "the shared part alone", "difference", "after a round on own samples"]
    return table(head, rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, searched to any depth")
    options = p.parse_args()
    try:
        every = load(options.folders)
    except ReportError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    runs = arrange(every)
    methods = sorted({method for method, *_ in runs})
    print(f"Accuracy of the others\n\n{changes(runs, methods)}")
    kinds = list(dict.fromkeys(kind for _, _, kind in runs if kind != NONE))
    for kind in kinds:
        print(f"\nAccuracy of the others, {kind}\n\n{by_rule(runs, methods, kind, 'accuracy')}")
    for kind in kinds:
        if (spec := parse(kind)[1]) and spec.stamps:
            print(f"\nSuccess of the trigger, {kind}\n\n{by_rule(runs, methods, kind, TRIGGER_SUCCESS.name)}")
    print(f"\nThe stolen model\n\n{stolen(every)}")


if __name__ == "__main__":
    main()
