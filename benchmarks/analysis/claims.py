"""The FedPara paper's Fig. 5 beside runs of the suites paper-*.yaml: statements, accuracies, and the picture.

    python -m benchmarks.analysis.claims runs/paper-unipen runs/paper-unipen20 runs/paper-mnist --picture fig5.png

A folder is named after its suite, which tells the scenario. docs/paper.md has the rules of the verdicts.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.analysis.load import ReportError
from benchmarks.analysis.statistics import half_interval
from benchmarks.analysis.steps import FIGURES, Runs, by_label, differences, forms, words
from benchmarks.styles import style_of
from benchmarks.terminal import printable

ACCURACY = FIGURES["after training"]
CLOSE = 0.01
"""Accuracies within so much of each other are close together."""


class Scenario(NamedTuple):
    """What the paper says of one panel of its Fig. 5."""

    number: int
    axis: tuple[float, float]  # the accuracies in percent between which its panel is drawn
    above: tuple[tuple[str, str], ...]  # the first of each pair is said to be above the second
    close: tuple[tuple[str, str], ...] = ()  # said to be close together


PAPERS = ("local", "fedavg", "fedper", "pfedpara")
"""The bars of the paper's panels, in its order."""
BEST = tuple(("pfedpara", rival) for rival in ("local", "fedavg", "fedper"))
FIRST = Scenario(1, (58, 75), (("local", "fedavg"), ("local", "fedper"), *BEST))
SECOND = Scenario(2, (42, 59), (("fedavg", "local"), ("fedavg", "fedper"), *BEST))
THIRD = Scenario(
    3,
    (92.5, 99.5),
    tuple((each, "fedavg") for each in ("local", "fedper", "pfedpara")),
    (("local", "fedper"), ("local", "pfedpara"), ("fedper", "pfedpara")),
)
PANELS = {
    "paper-femnist": ("FEMNIST", FIRST),
    "paper-femnist20": ("FEMNIST, a fifth", SECOND),
    "paper-unipen": ("UNIPEN by writer", FIRST),
    "paper-unipen20": ("UNIPEN by writer, a fifth", SECOND),
    "paper-mnist": ("MNIST, two classes a client", THIRD),
}


def judge_above(gains: list[float]) -> str:
    """Returns whether a first method is above a second one by these differences, paired by seed."""
    half = half_interval(gains)
    if not abs(mean := float(np.mean(gains or [0]))) > half:
        return "open"
    return "holds" if mean > 0 else "contradicted"


def judge_close(gains: list[float]) -> str:
    """Returns whether two methods are close together by these differences, paired by seed."""
    half = half_interval(gains)
    away = abs(float(np.mean(gains or [0])))
    if away + half <= CLOSE:
        return "holds"
    return "contradicted" if away - half > CLOSE else "open"


def statements(scenario: Scenario, runs: Runs) -> list[tuple[str, list[float], str]]:
    """Returns each statement of the paper about a scenario, its differences paired by seed, and what they say."""
    found = []
    for one, other in scenario.above:
        gains = differences(runs, one, other, ACCURACY)
        found.append((f"`{one}` above `{other}`", gains, judge_above(gains)))
    for one, other in scenario.close:
        gains = differences(runs, one, other, ACCURACY)
        found.append((f"`{one}` and `{other}` close together", gains, judge_close(gains)))
    return found


def verdict(outcomes: list[str]) -> str:
    """Returns the verdict on a claim by what the runs say of its statements."""
    holding = outcomes.count("holds")
    if holding == len(outcomes):
        return "reproduced"
    return "in part" if holding else "not reproduced"


def after(runs: Runs, number: int) -> Runs:
    """Returns the runs that judged clients after the round ``number``, with the accuracy that they had then."""
    found: Runs = {}
    for label, seeds in runs.items():
        for seed, run in seeds.items():
            for accuracy in run.rounds["accuracy_mean"][run.rounds["round"] == number]:
                found.setdefault(label, {})[seed] = run._replace(summary=run.summary | {"accuracy": {"mean": accuracy}})
    return found


def tell(name: str, runs: Runs) -> str:
    """Returns the statements about one scenario, judged."""
    title, scenario = PANELS[name]
    judged = statements(scenario, runs)
    lines = [f"Scenario {scenario.number}, {title}: {verdict([outcome for *_, outcome in judged])}", ""]
    lines += ["| statement of the paper | difference, points | seeds | here |", "|---|---:|---:|---|"]
    lines += [f"| {said} | {words(gains, '+')} | {len(gains)} | {outcome} |" for said, gains, outcome in judged]
    return "\n".join(lines)


def against(runs: Runs, ours: str = "pfedpara") -> str:
    """Returns a row for each other method: how far ``ours`` is above it."""
    lines = [f"| `{ours}` against | difference, points | seeds |", "|---|---:|---:|"]
    for other in sorted(runs.keys() - {ours}):
        gains = differences(runs, ours, other, ACCURACY)
        lines.append(f"| `{other}` | {words(gains, '+')} | {len(gains)} |")
    return "\n".join(lines)


def draw(scenarios: dict[str, Runs]) -> Figure:
    """Returns a panel of bars for each scenario, with 95 % intervals and, dashed, the ends of the paper's axis."""
    figure = Figure(figsize=(4.2 * len(scenarios), 4.4), layout="constrained")
    panels = figure.subplots(1, len(scenarios), squeeze=False)[0]
    for axes, (name, runs) in zip(panels, scenarios.items(), strict=True):
        title, scenario = PANELS[name]
        labels = [label for label in PAPERS if label in runs] + sorted(runs.keys() - {*PAPERS})
        columns = [[100 * ACCURACY(run) for run in runs[label].values()] for label in labels]
        means = [float(np.mean(column)) for column in columns]
        halves = [float(np.nan_to_num(half_interval(column))) for column in columns]
        methods = [next(iter(runs[label].values())).summary["algo"] for label in labels]
        bars = axes.bar(range(len(labels)), means, yerr=halves, color=[style_of(m).color for m in methods], capsize=3)
        for bar, label, method in zip(bars, labels, methods, strict=True):
            bar.set(hatch="" if label == method else "//", edgecolor="white")
        for end in scenario.axis:
            axes.axhline(end, color="0.4", linestyle="--", linewidth=1)
        lowest = min([*np.subtract(means, halves), scenario.axis[0]])
        axes.set_ylim(max(0, lowest - 3), min(100, max([*np.add(means, halves), scenario.axis[1]]) + 1))
        ticks = [label.replace(f"{method}-", f"{method}\n") for label, method in zip(labels, methods, strict=True)]
        axes.set_xticks(range(len(labels)), ticks, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_title(f"scenario {scenario.number}: {title}")
    panels[0].set_ylabel("accuracy %")
    return figure


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs of a paper-*.yaml each")
    p.add_argument("--picture", type=Path, metavar="FILE", help="draw the accuracies in the form of Fig. 5")
    p.add_argument("--round", type=int, metavar="N", help="judge the statements by the accuracies after that round")
    options = p.parse_args()
    try:
        if strange := [folder.name for folder in options.folders if folder.name not in PANELS]:
            raise ReportError(f"{strange[0]} is no scenario; there are {', '.join(PANELS)}")
        scenarios = {folder.name: by_label(folder) for folder in options.folders}
    except ReportError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    for name, runs in scenarios.items():
        if options.round:
            print(tell(name, after(runs, options.round)), end="\n\n")
        else:
            print(tell(name, runs), forms(runs), against(runs), sep="\n\n", end="\n\n")
    if options.picture:
        draw(scenarios).savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
