"""Accuracy against what was sent for it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.analysis import WIDTHS
from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.plots.plot import FEW, GREY, Drawn, Looks, Plot, number_panels, short
from benchmarks.analysis.statistics import FEWEST, mean_curve
from benchmarks.analysis.tables import percent
from benchmarks.styles import Style
from benchmarks.terminal import printable

TARGET_LINE: dict[str, Any] = {"color": "#777777", "linewidth": 0.8, "linestyle": ":", "zorder": 1.2}
"""How the target is drawn."""


def draw_curve(axes: Axes, curve: pd.DataFrame, style: Style, label: str) -> None:
    """Draws accuracy over what was ``sent``, with its band and markers; level, where nothing was."""
    accuracy, sent, half = curve["accuracy"], curve["sent"], curve["half_interval"]
    low, high = (accuracy - half).clip(lower=0), (accuracy + half).clip(upper=1)
    if sent.any():
        every = -(-len(curve) // 10)
        axes.plot(sent, accuracy, **style.line, label=label, markevery=((len(curve) - 1) % every, every), zorder=2.5)
        axes.fill_between(sent, low, high, color=style.color, alpha=0.18, linewidth=0)
    else:  # a logarithmic axis has no place for 0
        axes.axhline(accuracy.iloc[-1], **style.line | {"marker": ""}, label=label, zorder=2.5)
        axes.axhspan(low.iloc[-1], high.iloc[-1], color=style.color, alpha=0.18, linewidth=0)


def draw_others(axes: Axes, curves: list[pd.DataFrame]) -> None:
    """Draws the background of what is looked at, as one line with gaps."""
    gap = [[np.nan, np.nan]]
    if drawn := [part for curve in curves if curve["sent"].any() for part in (curve[["sent", "accuracy"]], gap)]:
        axes.plot(*np.concatenate(drawn).T, color=GREY, linewidth=0.6, zorder=1.5)
    for curve in curves:
        if not curve["sent"].any():
            axes.axhline(curve["accuracy"].iloc[-1], color=GREY, linewidth=0.6, zorder=1.5)


def caption_of(curves: dict[str, pd.DataFrame], comparison: Comparison, looks: Looks, counted: bool) -> str:
    """Says of bands and grey curves only what is there."""
    colored = [method for method in curves if looks[method].color != GREY]
    bands = [method for method in colored if curves[method]["half_interval"].notna().any()]
    words = "Personalized accuracy after each round against the parameters "
    words += "sent up to the judged models" if counted else "sent so far"
    words += ", up and down, of all clients; "
    if not bands:
        words += f"fewer than {FEWEST} seeds, so no band."
    else:
        words += "mean over seeds, and as a band its 95 % interval (Student's t)"
        words += "." if len(bands) == len(colored) else f", where a method has {FEWEST} seeds or more."
    if len(colored) > FEW:
        words += " A panel for each method, best first, with its final accuracy; the others grey."
    elif len(colored) < len(curves):
        words += " The other methods are grey."
    if comparison.target == comparison.target:
        words += f" Dotted: the target, {percent(comparison.target)} %."
    return words


def set_axes(axes: Axes, comparison: Comparison, curves: Iterable[pd.DataFrame], ticks: int) -> None:
    """Gives the panels of a comparison the axes that they share."""
    axes.set_xscale("log")
    if sending := [curve["sent"] for curve in curves if curve["sent"].any()]:
        axes.set_xlim(min(each.min() for each in sending) / 1.15, max(each.max() for each in sending) * 1.15)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 10 ** (ticks / 2.5) else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(ticks))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g}")
    accuracies = comparison.table["accuracy"].dropna()
    span = max(accuracies.max() - accuracies.median(), 0.01)
    axes.set_ylim(max(0, accuracies.max() - 6 * span), min(1, accuracies.max() + 0.6 * span))


def make_panels(rows: int, columns: int, width: float, title: float) -> tuple[Figure, list[Axes]]:
    """Returns a figure so many inches wide, and its panels, row by row, each below a title so many inches high.

    Placed by hand: Matplotlib would draw each panel twice to find out what room it takes.
    """
    height = 0.95 * width / columns - title  # of a panel
    above, below, left, right, between = 0.25 + title, 0.45, 0.52, 0.12, 0.14
    whole = above + rows * height + (rows - 1) * (title + 0.06) + below
    figure = Figure(figsize=(width, whole))
    panels = figure.subplots(
        *(rows, columns),
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw={
            **{"left": left / width, "right": 1 - right / width, "bottom": below / whole, "top": 1 - above / whole},
            "hspace": (title + 0.06) / height,
            "wspace": between / ((width - left - right - (columns - 1) * between) / columns),
        },
    )
    return figure, list(panels.ravel())


def draw(comparison: Comparison, looks: Looks, width: float) -> Drawn:
    counted = not any(run.rounds["to_model"].isna().any() for runs in comparison.runs.values() for run in runs)
    curves = {method: mean_curve(runs) for method, runs in comparison.runs.items()}
    for curve in curves.values():
        curve["sent"] = curve["to_model" if counted else "parameters"]
    finals = {method: percent(comparison.table.loc[method, "accuracy"]) for method in curves}
    colored = [method for method in curves if looks[method].color != GREY]
    sent, reached = f"parameters sent {'up to the judged models' if counted else 'so far'}", "accuracy, %"
    if len(colored) > FEW:
        rows, columns = number_panels(len(colored), width)
        room = int(13 * width / columns)  # letters
        gap = "\n" if any(len(method) + 6 > room for method in colored) else "  "
        figure, panels = make_panels(rows, columns, width, 0.3 if gap == "\n" else 0.18)
        for place, (axes, method) in enumerate(zip(panels, colored, strict=False)):
            draw_others(axes, [curve for other, curve in curves.items() if other != method])
            draw_curve(axes, curves[method], looks[method], "")
            axes.set_title(f"{short(method, room)}{gap}{finals[method]}", fontsize=7)
            axes.axhline(comparison.target, **TARGET_LINE)
            axes.tick_params(labelbottom=place + columns >= len(colored))
        set_axes(panels[0], comparison, curves.values(), 3)  # they share them
        for axes in panels[len(colored) :]:
            axes.remove()
        figure.supxlabel(sent, fontsize=8, y=0.05 / figure.get_figheight(), va="bottom")
        figure.supylabel(reached, fontsize=8, x=0.05 / width, ha="left")
        figure.suptitle(printable(comparison.title), fontsize=8, y=1 - 0.05 / figure.get_figheight(), va="top")
    else:
        narrow = width < WIDTHS[1]
        figure = Figure(figsize=(width, 2.1 + 0.07 * len(colored) if narrow else 3), layout="constrained")
        axes = figure.subplots()
        draw_others(axes, [curve for method, curve in curves.items() if method not in colored])
        for method in colored:
            draw_curve(axes, curves[method], looks[method], f"{short(method)}  {finals[method]}")
        axes.axhline(comparison.target, **TARGET_LINE)
        set_axes(axes, comparison, curves.values(), 4 if narrow else 6)
        axes.set(xlabel=sent, ylabel=reached)
        columns = 2 if narrow and max(map(len, colored), default=0) < 14 else 1
        figure.legend(loc="outside lower center" if narrow else "outside right center", ncols=columns)
        figure.suptitle(printable(comparison.title), fontsize=8)
    return Drawn(figure, caption_of(curves, comparison, looks, counted))


ACCURACY_VS_PARAMETERS = Plot("accuracy_vs_parameters", draw)
