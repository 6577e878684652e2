"""pFedPara's steps against the form without each: paired differences, and the picture of the head's rank.

    python -m benchmarks.analysis.steps runs/study-mnist5k runs/study-digits runs/study-unipen --picture head.png

It reads the runs of the suites study-*.yaml. A difference is in points, the mean over the seeds that both have, with
the 95 % interval of the mean (Student's t) from three seeds on.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.analysis.load import EndedRun, load
from benchmarks.analysis.statistics import half_interval
from benchmarks.analysis.tables import with_half

DENSE = "pfedpara-dense-classifier"
STEPS = {
    "a dense head": (DENSE, "pfedpara"),
    "W2, against W2 = 0": (DENSE, f"{DENSE}-frozen"),
    "D added, at a tenth of the rate": (f"{DENSE}-additive", DENSE),
    "factors in turn": (f"{DENSE}-alternate", DENSE),
    "in turn, against both at half the rank": (f"{DENSE}-alternate", f"{DENSE}-half"),
    "D added to factors in turn": (f"{DENSE}-alternate-additive", f"{DENSE}-alternate"),
    "W2 from a later round on, in turn": (f"{DENSE}-alternate-warm", f"{DENSE}-alternate"),
    "W2 three times as fast, in turn": (f"{DENSE}-alternate-private3", f"{DENSE}-alternate"),
    "Adam, against SGD": (f"{DENSE}-adam", DENSE),
    "fine-tuned FedAvg with Adam, against SGD": ("fedavg-ft-adam", "fedavg-ft"),
    "a private head": (f"fedper-{DENSE}", DENSE),
    "dense head, against fine-tuned FedAvg": (DENSE, "fedavg-ft"),
    "in turn, against fine-tuned FedAvg": (f"{DENSE}-alternate", "fedavg-ft"),
    "added, against fine-tuned FedAvg": (f"{DENSE}-additive", "fedavg-ft"),
    "in turn with W2 three times as fast, against fine-tuned FedAvg": (f"{DENSE}-alternate-private3", "fedavg-ft"),
    "in turn and added, against fine-tuned FedAvg": (f"{DENSE}-alternate-additive", "fedavg-ft"),
    "dense head, against FedPer": (DENSE, "fedper"),
    "in turn, against FedPer": (f"{DENSE}-alternate", "fedper"),
    "in turn and added, against FedPer": (f"{DENSE}-alternate-additive", "fedper"),
}
FIGURES: dict[str, Callable[[EndedRun], float]] = {
    "after training": lambda run: run.summary["accuracy"]["mean"],
    "as received": lambda run: run.summary["accuracy_received_mean"],
}
Runs = dict[str, dict[int, EndedRun]]  # by label and seed
CLASSES = 62  # UNIPEN's
RANKS = {f"pfedpara-dense-hidden,gamma={gamma}": rank for gamma, rank in (("0", 8), ("0.5", 16), ("1", 24))}


def by_label(folder: Path) -> Runs:
    """Returns the finished runs by label and seed."""
    found: Runs = {}
    for run in load([folder]):
        if run.summary["accuracy"]:
            found.setdefault(run.summary["label"], {})[run.summary["seed"]] = run
    return found


def words(values: list[float], sign: str = "") -> str:
    """Returns the mean of fractions in percent, with its interval."""
    if not values:
        return "–"
    return with_half(f"{100 * np.mean(values):{sign}.1f}", half_interval(values))


def forms(runs: Runs) -> str:
    lines = ["| form | seeds | sent up a round | after training | as received |", "|---|---:|---:|---:|---:|"]
    for label, seeds in sorted(
        runs.items(), key=lambda item: -np.mean([FIGURES["after training"](r) for r in item[1].values()])
    ):
        sent = np.mean([run.summary["parameters_per_client_round"]["up"] for run in seeds.values()])
        cells = [words([figure(run) for run in seeds.values()]) for figure in FIGURES.values()]
        lines.append(f"| `{label}` | {len(seeds)} | {sent:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(runs: Runs, one: str, other: str, value: Callable[[EndedRun], float]) -> list[float]:
    """Returns the first form's ``value`` less the second's, for each seed that both have."""
    ours, theirs = runs.get(one, {}), runs.get(other, {})
    return [value(ours[seed]) - value(theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def steps(studies: dict[str, Runs], value: Callable[[EndedRun], float]) -> str:
    """Returns a row for each step that was taken, a column for each study: the difference, and over how many seeds."""
    lines = ["| step | " + " | ".join(studies) + " |", "|---|" + "---:|" * len(studies)]
    for step, (label, without) in STEPS.items():
        gains = [differences(runs, label, without, value) for runs in studies.values()]
        cells = [f"{words(each, '+')} ({len(each)})" for each in gains]
        if any(gains):
            lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: Runs) -> Figure:
    """Returns the accuracy by the rank of the head, with a dense hidden layer, and that of a dense head."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, value in FIGURES.items():
        columns = [[100 * value(run) for run in runs[label].values()] for label in RANKS]
        halves = [half_interval(column) for column in columns]
        bars = axes.errorbar(
            np.array(list(RANKS.values())), [np.mean(c) for c in columns], yerr=halves, marker="o", label=name
        )
        full = float(np.mean([100 * value(run) for run in runs["fedavg-ft"].values()]))
        axes.axhline(full, color=bars[0].get_color(), linestyle=":", label=f"{name}, dense head (fedavg-ft)")
    axes.set(xlabel=f"rank of the head's shared factors, of {CLASSES} classes", ylabel="accuracy %")
    axes.legend()
    return figure


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs of a study-*.yaml each")
    p.add_argument("--picture", type=Path, metavar="FILE", help="draw the head's rank from the last of them")
    options = p.parse_args()
    studies = {folder.name: by_label(folder) for folder in options.folders}
    for name, runs in studies.items():
        print(f"\n{name}\n\n{forms(runs)}")
    for name, value in FIGURES.items():
        print(f"\nDifferences {name}, and over how many seeds\n\n{steps(studies, value)}")
    if options.picture:
        draw(studies[options.folders[-1].name]).savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
