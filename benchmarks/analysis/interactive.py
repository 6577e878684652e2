"""What the page can draw of a comparison, as numbers, and the Bokeh plots that its switches fill with them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, FixedTicker, HoverTool, LogTicker, Range1d
from bokeh.models.annotations import Span
from bokeh.plotting import figure

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.load import EndedRun
from benchmarks.analysis.plots.plot import Looks
from benchmarks.analysis.statistics import align, differences_to_local, half_intervals
from benchmarks.analysis.tables import seconds_of_rounds
from benchmarks.federation.metrics import METRICS, Metric, recorded_metrics
from benchmarks.terminal import printable

VALUES = 250_000
"""Numbers that all comparisons of a page may have together, seven bytes each."""

TEXT, LINE = "#010203", "#040506"
"""What the page's script replaces by its own colours, which are others in the dark."""


class Axis(NamedTuple):
    label: str
    log: bool = True


AXES = {
    "to_model": Axis("parameters sent up to the judged models, all clients"),
    "parameters": Axis("parameters sent so far, up and down, all clients"),
    "bytes_to_model": Axis("bytes sent up to the judged models, all clients"),
    "bytes": Axis("bytes sent so far, up and down, all clients"),
    "round": Axis("rounds", log=False),
    "seconds": Axis("seconds on the machine of the run, judging included", log=False),
    "cluster": Axis("seconds on 100 ranks, 10 Gb/s"),
    "phones": Axis("seconds on 10,000 phones, 10 Mb/s"),
    "gradients": Axis("gradients of a sample's loss, all clients"),
    "flops": Axis("floating-point operations of these gradients, all clients"),
}
"""What accuracy can be drawn against: columns of a run's rounds, and seconds by the model of perf/cost.py."""


class Choice(NamedTuple):
    """A figure of the clients that can be drawn."""

    column: str  # of a run's rounds
    label: str
    higher_is_better: bool = True
    scale: float = 100
    digits: int = 1

    @classmethod
    def of(cls, metric: Metric) -> "Choice":
        return cls(f"{metric.name}_mean", metric.label, metric.higher_is_better, metric.scale, metric.digits)


BELOW = "below_local"
CHOICES = {
    **{m.name: Choice.of(m) for m in METRICS},
    "worst_decile": Choice("accuracy_worst_decile", "worst decile of accuracy %"),
    BELOW: Choice("", "clients below local %", higher_is_better=False),
}


def metrics_of(comparison: Comparison) -> tuple[Metric, ...]:
    """Returns METRICS, then what users of these runs judged clients by beside them."""
    return recorded_metrics(run.summary for runs in comparison.runs.values() for run in runs)


def choices_of(comparison: Comparison) -> dict[str, Choice]:
    return CHOICES | {metric.name: Choice.of(metric) for metric in metrics_of(comparison)[len(METRICS) :]}


def below_local(runs: list[EndedRun], local: list[EndedRun]) -> list[pd.Series]:
    """Returns the share of clients below what each of them has in the end alone, by round, for each run; empty where a
    run has no partner in ``local`` or no readable clients.csv.
    """
    alone = {run.partition: np.array(run.summary["accuracy"]["per_client"]) for run in local}
    found = []
    for run in runs:
        try:
            table = pd.read_csv(run.folder / "clients.csv", usecols=["round", "client", "accuracy"])
            below = table["accuracy"] < alone[run.partition][table["client"]]
        except (OSError, ValueError, LookupError):
            return []
        found.append(below.groupby(table["round"]).mean())
    return found


def short(values: Iterable[float], digits: int = 4) -> list[float | None] | None:
    """Returns the numbers to so many digits, None for NaN; None where all are."""
    found = [None if value != value else float(f"{value:.{digits}g}") for value in values]
    return found if any(value is not None for value in found) else None


def curves(comparison: Comparison, method: str, runs: list[EndedRun], points: int) -> dict[str, Any]:
    """Returns the method's rounds, at most ``points`` of those that all runs have, and for them the means over runs: x
    by axis, y by choice, and half, the half width of its 95 % interval. What one run lacks is missing.
    """
    tables = align(runs)
    common = tables[0].index
    kept = common[np.unique(np.linspace(0, len(common) - 1, min(points, len(common))).round().astype(int))]
    tables = [table.loc[kept] for table in tables]
    rounds = kept.to_numpy(float)
    x = {name: np.mean([table[name] for table in tables], axis=0) for name in AXES if name in tables[0]}
    x |= {"round": rounds} | {name: seconds * rounds for name, seconds in seconds_of_rounds(comparison, method).items()}
    y, half = {}, {}
    below = below_local(runs, comparison.runs.get("local", [])) if method != "local" else []
    for name, choice in choices_of(comparison).items():
        if name == BELOW:
            values = np.array([each.reindex(kept) for each in below])
        else:
            known = all(choice.column in table for table in tables)
            values = np.array([table[choice.column] for table in tables if known])
        if values.size:
            y[name], half[name] = values.mean(axis=0) * choice.scale, half_intervals(values) * choice.scale
    shortened = {
        part: {name: found for name, values in of.items() if (found := short(values))}
        for part, of in (("x", x), ("y", y), ("half", half))
    }
    return {"rounds": [int(number) for number in kept], **shortened}


def of_clients(
    runs: list[EndedRun], local: list[EndedRun], most: int, metrics: Iterable[Metric] = METRICS
) -> dict[str, list[Any]]:
    """Returns each client's final figure by choice, a list for each run, at most ``most`` in it, evenly spaced."""
    found: dict[str, list[Any]] = {}
    for metric in metrics:
        values = [run.summary.get(metric.name, {}).get("per_client") for run in runs]
        if all(values) and not any(value is None for each in values for value in each):
            found[metric.name] = [metric.scale * np.array(each) for each in values]
    if differences := differences_to_local(runs, local):
        found[BELOW] = [100 * each for each in differences]
    return {name: [short(spaced(each, most)) for each in several] for name, several in found.items()}


def spaced(values: np.ndarray, most: int) -> np.ndarray:
    """Returns ``values``, or where they are more than ``most``, so many of them from the lowest to the highest."""
    if len(values) <= most:
        return values
    return np.sort(values)[np.linspace(0, len(values) - 1, most).round().astype(int)]


def describe(comparison: Comparison, looks: Looks, comparisons: int) -> dict[str, Any]:
    """Returns what the page's script draws of one of so many ``comparisons``.

    That is the methods, the axes and choices that any of them has, each with its range, and by axis and choice the
    numbers of the methods on the Pareto front.
    """
    runs, offered = comparison.runs, choices_of(comparison)
    share = VALUES // comparisons // 2
    points = max(10, share // max(1, len(runs) * (len(AXES) + 2 * len(offered))))
    most = max(10, share // max(1, sum(map(len, runs.values())) * (len(METRICS) + 1)))
    methods = []
    for method, found in runs.items():
        look = looks[method]
        methods.append(
            {
                **{"name": printable(method), **look.bokeh_marker, "dash": look.bokeh_line["line_dash"]},
                **curves(comparison, method, found, points),
                "clients": of_clients(found, runs.get("local", []), most, metrics_of(comparison)),
            }
        )
    axes = {
        key: axis._asdict() | across(methods, key, axis.log)
        for key, axis in AXES.items()
        if any(key in method["x"] for method in methods)
    }
    choices = {
        key: choice._asdict() | {"range": upright(methods, key, choice)}
        for key, choice in offered.items()
        if any(key in method["y"] for method in methods)
    }
    fronts = {axis: {key: front(methods, axis, key, offered[key].higher_is_better) for key in choices} for axis in axes}
    return {"methods": methods, "axes": axes, "choices": choices, "fronts": fronts}


def front(methods: list[dict[str, Any]], axis: str, choice: str, higher_is_better: bool) -> list[int]:
    """Returns which methods none beats in the end that needs as little, from the one that needs least."""
    sign = -1 if higher_is_better else 1
    ends = [
        (method["x"][axis][-1], sign * method["y"][choice][-1], number)
        for number, method in enumerate(methods)
        if axis in method["x"] and choice in method["y"] and method["y"][choice][-1] is not None
    ]
    best, found = float("inf"), []
    for _, value, number in sorted(ends):
        if value < best:
            best = value
            found.append(number)
    return found


def across(methods: list[dict[str, Any]], axis: str, log: bool) -> dict[str, Any]:
    """Returns the range of an axis, with room for names at the right, and where a logarithmic one has its zero.

    Moves the methods' zeros there.
    """
    values = [value for method in methods for value in method["x"].get(axis, ()) if value > 0 or not log] or [1.0]
    low, high = min(values), max(values)
    if not log:
        return {"range": [low - 0.02 * (high - low), high + 0.2 * (high - low) + (high == low)]}
    zero = low / 1.5
    for method in methods:
        if axis in method["x"]:
            method["x"][axis] = [value if value > 0 else zero for value in method["x"][axis]]
    return {"range": [low / 2, 1.4 * high * (high / low) ** 0.15], "zero": zero}


def upright(methods: list[dict[str, Any]], choice: str, how: Choice) -> list[float]:
    """Returns the range of a choice in which the better half of the methods has room."""
    values = [value for method in methods for value in method["y"].get(choice, ()) if value is not None]
    ends = sorted(method["y"][choice][-1] for method in methods if choice in method["y"])
    better = max if how.higher_is_better else min
    best, middle = better(ends), ends[len(ends) // 2]
    span = max(abs(best - middle), 0.01 * how.scale)
    if how.higher_is_better:
        return [max(min(values), best - 6 * span) - 0.3 * span, best + 0.6 * span]
    return [best - 0.6 * span, min(max(values), best + 6 * span) + 0.3 * span]


def missing(store: Mapping[str, Any]) -> list[str]:
    """Returns in words what no run of the comparison recorded."""
    return [
        each.label
        for every, found in ((AXES, store["axes"]), (CHOICES, store["choices"]))
        for key, each in every.items()
        if key not in found
    ]


def embedded(value: Any) -> str:
    """Returns JSON that nothing in it can end, as the text of a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")


def plots() -> str:
    """Returns Bokeh's description of the plots: accuracy on a linear and on a logarithmic axis, and a row a method."""
    sources = {
        name: ColumnDataSource({column: [] for column in columns.split()}, name=name)
        for name, columns in {
            "lines": "x y color dash width alpha",
            "bands": "x y color alpha",
            "points": "x y color marker size alpha method round value at",
            "front": "x y",
            "labels": "x y text alpha down",
            "dots": "x y color marker alpha method value",
            "means": "x y",
        }.items()
    }
    heights = Range1d(start=0, end=1, name="heights")
    found = []
    for kind in ("linear", "log"):
        plot = _figure(kind, x_axis_type=kind, x_range=Range1d(start=1, end=10), y_range=heights, height=460)
        plot.patches("x", "y", source=sources["bands"], color="color", alpha="alpha", line_width=0)
        plot.step("x", "y", source=sources["front"], mode="after", line_width=9, line_alpha=0.25, line_color=LINE)
        plot.multi_line(
            "x", "y", source=sources["lines"], color="color", line_dash="dash", line_width="width", alpha="alpha"
        )
        marks = plot.scatter(
            *("x", "y"), source=sources["points"], color="color", marker="marker", size="size", alpha="alpha"
        )
        plot.text(
            *("x", "y"),
            "text",
            source=sources["labels"],
            x_offset=9,
            y_offset="down",
            text_color=TEXT,
            alpha="alpha",
            text_font_size="13px",
        )
        hover = "<b>@method</b>, round @round<br>@value<br>@at"
        plot.add_tools(HoverTool(renderers=[marks], tooltips=hover))
        plot.xaxis.formatter = CustomJSTickFormatter(code='return tick.toLocaleString("en", {notation: "compact"})')
        if kind == "log":
            plot.xaxis.ticker = LogTicker(mantissas=[1, 2, 5], desired_num_ticks=8)
        found.append(plot)
    clients = _figure("clients", x_range=Range1d(start=0, end=1), y_range=Range1d(start=0, end=1), height=460)
    clients.add_layout(Span(location=0, dimension="height", line_color=TEXT, line_dash="dashed", name="alone"))
    dots = clients.scatter(
        *("x", "y"), source=sources["dots"], color="color", marker="marker", alpha="alpha", size=8, line_alpha=0
    )
    clients.scatter(
        "x", "y", source=sources["means"], marker="dash", angle=np.pi / 2, size=22, line_width=3, color=TEXT
    )
    clients.add_tools(HoverTool(renderers=[dots], tooltips="<b>@method</b><br>@value"))
    clients.yaxis.ticker = FixedTicker(ticks=[])
    clients.ygrid.visible = False
    return embedded(json_item(column(*found, clients, sizing_mode="stretch_width")))


def _figure(name: str, **options: Any) -> figure:
    tools = "pan,box_zoom,reset,save"
    plot = figure(
        name=name, sizing_mode="stretch_width", tools=tools, toolbar_location="above", min_border_right=12, **options
    )
    plot.toolbar.logo = None
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.outline_line_color = None
    plot.grid.grid_line_color, plot.grid.grid_line_alpha = LINE, 0.35
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = axis.major_tick_line_color = (
            TEXT
        )
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "13px"
    return plot
