"""The trials of a grid on samples set aside for tuning, and what each method's best one is.

    python -m benchmarks.analysis.trials runs/tuning-unipen20 runs/tuning-unipen > benchmarks/studies/paper.yaml

It reads the runs of the suites tuning-*.yaml. A score is the mean validation accuracy after the last round, and 0 where
the run diverged; with several seeds, their mean. Of equal scores the first trial's wins. ``gradients`` counts what a
trial cost, each of a batch's samples once.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.analysis.load import EndedRun, ReportError, load
from benchmarks.terminal import printable

VARIED = ("lr", "personal_lr", "clip_norm")
"""The hyper-parameters that a grid goes over."""


def trials(folder: Path) -> dict[str, Any]:
    """Returns each method's trials, a mapping of its values, ``score`` and ``gradients`` each, and its ``chosen`` one.

    Raises ReportError where a run was not on samples set aside for tuning.
    """
    found: dict[str, dict[tuple[float, ...], list[EndedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in load([folder]):
        if not run.settings["tuning"]:
            raise ReportError(f"{run.folder} is not of samples set aside for tuning; give runs made by --tuning")
        values = run.hyper[_rate(run)], run.hyper["clip_norm"]
        found[run.summary["label"].partition(",")[0]][values].append(run)
    methods = {}
    for label, tried in sorted(found.items()):
        rate = _rate(next(iter(tried.values()))[0])
        rows = [
            {rate: lr, "clip_norm": clip, "score": round(float(np.mean([_score(run) for run in runs])), 4)}
            | {"gradients": sum(run.summary["work"]["gradients"]["training"] for run in runs)}
            | ({"diverged": True} if any(run.summary["accuracy"] is None for run in runs) else {})
            for (lr, clip), runs in sorted(tried.items())
        ]
        best = max(rows, key=lambda row: row["score"])
        methods[label] = {"chosen": {name: best[name] for name in VARIED if name in best}, "trials": rows}
    return methods


def _rate(run: EndedRun) -> str:
    """Returns the name of the learning rate that a grid of the run's method goes over."""
    return "personal_lr" if "personal_lr" in run.hyper else "lr"


def _score(run: EndedRun) -> float:
    return run.summary["validation_accuracy"]["mean"] if run.summary["accuracy"] else 0.0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs of a tuning-*.yaml each")
    options = p.parse_args()
    try:
        studies = {folder.name: trials(folder) for folder in options.folders}
    except ReportError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    print(yaml.safe_dump(studies, sort_keys=False, default_flow_style=None, width=120), end="")


if __name__ == "__main__":
    main()
