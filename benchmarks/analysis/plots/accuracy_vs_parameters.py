"""Accuracy against what was sent for it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, PercentFormatter

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.plots.plot import FEW, Looks, Plot
from benchmarks.analysis.statistics import mean_curve
from benchmarks.analysis.tables import percent
from benchmarks.terminal import printable


def label_ends(axes: Axes, ends: list[tuple[str, float, float, str]]) -> None:
    """Writes a name, right of ``axes``, for each curve: (name, x and y of its end, colour). None covers another."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[2])
    gap = min(1.06 / len(ends), 0.055)
    steps = gap * np.arange(len(ends))
    wanted = np.clip([(y - low) / (high - low) for _, _, y, _ in ends], 0, 1)  # shares of the height
    heights = steps + np.maximum.accumulate(wanted - steps)  # each at least a gap above the one below
    heights = np.minimum(heights, 1.03 - steps[::-1])  # and none above the top
    for (name, x, y, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (x, min(max(y, low), high)),
            (1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=11,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
        )


def draw(comparison: Comparison, looks: Looks) -> Figure:
    figure = Figure(figsize=(10, max(5.2, 0.34 * len(comparison.runs))), layout="constrained")
    axes = figure.subplots()
    few = len(comparison.runs) <= FEW
    counted = not any(run.rounds["to_model"].isna().any() for runs in comparison.runs.values() for run in runs)
    sent = "to_model" if counted else "parameters"
    ends = []
    for algo, runs in comparison.runs.items():
        curve = mean_curve(runs)
        color, marker, _ = looks[algo]
        final = comparison.table.loc[algo, "accuracy"]
        label = printable(f"{algo}  {percent(final)} %")
        if not curve[sent].any():  # a logarithmic axis has no place for 0
            axes.axhline(final, color=color, linestyle="--", label=f"{label}, sends nothing")
            ends.append((f"{label}, sends nothing", np.inf, final, color))
            continue
        ends.append((label, curve[sent].iloc[-1], curve["accuracy"].iloc[-1], color))
        axes.plot(curve[sent], curve["accuracy"], markevery=[-1], markersize=8, label=label, color=color, marker=marker)
        if not few:  # one over another, bands would hide the curves
            continue
        low, high = (curve["accuracy"] + sign * curve["half_interval"] for sign in (-1, 1))
        axes.fill_between(curve[sent], low.clip(lower=0), high.clip(upper=1), color=color, alpha=0.15, linewidth=0)
    target = f"target {percent(comparison.target)} %"
    axes.axhline(comparison.target, color="#777777", linewidth=1, linestyle=":", label=target)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set(
        xlabel=f"parameters sent {'up to the judged models' if counted else 'so far'}, up and down, all clients",
        ylabel="personalized accuracy",
        title=printable(comparison.title),
    )
    accuracies = comparison.table["accuracy"].dropna()
    span = max(accuracies.max() - accuracies.median(), 0.01)
    axes.set_ylim(max(0, accuracies.max() - 6 * span), min(1, accuracies.max() + 0.6 * span))
    right = axes.get_xlim()[1]
    label_ends(axes, [(name, min(x, right), y, color) for name, x, y, color in ends])
    inside = axes.get_yaxis_transform()  # x as a share of the width
    axes.text(0.01, comparison.target, target, color="#777777", fontsize=10, transform=inside, va="bottom")
    return figure


ACCURACY_VS_PARAMETERS = Plot(
    "accuracy_vs_parameters",
    "Accuracy after each round against the parameters sent up to the judged models (all sent so far, where a run "
    "did not count those): mean over seeds, and its 95 % interval.",
    draw,
)
