"""The accuracy of each client, and what it gains over training alone."""

import numpy as np
from matplotlib.figure import Figure

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.plots.plot import FEW, Looks, Plot
from benchmarks.analysis.statistics import differences_to_local
from benchmarks.terminal import printable


def draw(comparison: Comparison, looks: Looks) -> Figure:
    local = comparison.runs.get("local", [])
    methods = list(comparison.runs)
    row = 0.85 if len(methods) <= FEW else 0.5
    figure = Figure(figsize=(11 if local else 7, 1.6 + row * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2 if local else 1, sharey=True, squeeze=False)[0]
    for position, (algo, runs) in enumerate(comparison.runs.items()):
        accuracies = [np.array(run.summary["accuracy"]["per_client"]) for run in runs]
        color, marker, _ = looks[algo]
        for axes, values in zip(panels, (accuracies, differences_to_local(runs, local)), strict=False):
            heights = position + np.linspace(-0.4, 0.4, len(values) + 2)[1:-1]
            for height, seed in zip(heights, values, strict=True):
                look = {"s": 40 * row, "alpha": 0.6, "linewidths": 0, "color": color, "marker": marker}
                axes.scatter(100 * seed, np.full(len(seed), height), **look)
            if values:
                mean = 100 * np.concatenate(values).mean()
                axes.plot([mean, mean], [position - 0.35, position + 0.35], color="black", linewidth=2.5)
    panels[0].set_yticks(range(len(methods)), map(printable, methods))
    panels[0].invert_yaxis()
    panels[0].set(xlabel="accuracy of a client, %", title=printable(comparison.title))
    for axes in panels:
        axes.locator_params(axis="x", nbins=6)
    if local:
        panels[1].axvline(0, color="#777777", linewidth=1)
        panels[1].set(
            xlabel="difference from the same client's local-only, points", title="left of 0: worse off than alone"
        )
    return figure


ACCURACY_PER_CLIENT = Plot(
    "accuracy_per_client",
    "Final accuracy of each client, and its difference from what the same client reaches alone: "
    "a dot for each client, a row of dots for each seed, a bar at the mean.",
    draw,
)
