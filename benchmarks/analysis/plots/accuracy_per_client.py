"""The accuracy of each client, and what it gains over training alone."""

import numpy as np
from matplotlib.figure import Figure

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.plots.plot import FEW, Drawn, Looks, Plot, short
from benchmarks.analysis.statistics import differences_to_local
from benchmarks.terminal import printable


def draw(comparison: Comparison, looks: Looks, width: float) -> Drawn:
    local = comparison.runs.get("local", [])
    methods = list(comparison.runs)
    row = 0.4 if len(methods) <= FEW else 0.2
    figure = Figure(figsize=(width, 0.8 + row * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2 if local else 1, sharey=True, squeeze=False)[0]
    for position, (algo, runs) in enumerate(comparison.runs.items()):
        accuracies = [np.array(run.summary["accuracy"]["per_client"]) for run in runs]
        color, marker, _ = looks[algo]
        for axes, values in zip(panels, (accuracies, differences_to_local(runs, local)), strict=False):
            heights = position + np.linspace(-0.4, 0.4, len(values) + 2)[1:-1]
            if values:
                marks = 100 * np.concatenate(values)
                rows = np.repeat(heights, [len(seed) for seed in values])
                look = {"markersize": 8 * row + 1, "alpha": 0.6, "color": color, "marker": marker}
                axes.plot(marks, rows, linestyle="none", **look)
                mean = [marks.mean()] * 2
                axes.plot(mean, [position - 0.35, position + 0.35], color="black", linewidth=1.5, zorder=3)
    panels[0].set_yticks(range(len(methods)), [short(method) for method in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    panels[0].set(xlabel="accuracy, %")
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=6 if width > 5 else 4)
    if local:
        panels[1].axvline(0, color="#777777", linewidth=0.8)
        panels[1].set(xlabel="gain over local, points")
    figure.suptitle(printable(comparison.title), fontsize=8)
    words = "Final accuracy of each client: a mark for each client, a row of marks for each seed, a bar at the mean."
    gain = " Right: its difference from what the same client reaches alone; left of 0 it is worse off." if local else ""
    return Drawn(figure, words + gain)


ACCURACY_PER_CLIENT = Plot("accuracy_per_client", draw)
