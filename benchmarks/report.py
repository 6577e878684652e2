"""Shows recorded runs side by side: a table and two plots for each data set and partition, on screen and as files.

    python benchmarks/report.py runs

Reads what benchmarks/run.py wrote; needs neither torch nor FedML.
"""

import argparse
import base64
import html
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, PercentFormatter
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that no installation is needed

from benchmarks.analysis.comparison import (
    REFERENCE,
    TARGET,
    Comparison,
    ReportError,
    arrange,
    compare,
    differences_to_local,
    find_unfinished,
    load,
    mean_curve,
)
from benchmarks.perf import cost
from benchmarks.terminal import printable

LEGEND = (
    "Accuracy: each client's own model on its own test split after the last round, mean over clients; "
    "± the 95 % interval of the mean over seeds (Student's t).",
    f"Difference to {REFERENCE}: in points, on the same partition and seed, ± the 95 % interval of the mean of these "
    "paired differences (Student's t).",
    "Worst decile: mean over the worst tenth of the clients.",
    "Below local: clients worse off than with local-only training, compared one by one on the same partition and seed.",
    "Parameters per client and round: each way. Total sent: parameters, up and down, of all clients, in all rounds. "
    "MB: 10⁶ bytes handed to MPI, headers included.",
    "Sent up to the model: what of this the judged models need. A client that is judged on what it receives needs one "
    "more downlink; where all are judged on what they trained, the last round's uplink is not needed.",
    "Sent to reach: the same for the first round in which the mean over seeds reaches the target accuracy. The target "
    f"is {100 * TARGET:.0f} % of the best method's final accuracy, or as given; where local training reaches that, the "
    "middle between what local training reaches and the best.",
)

LEGEND_OF_COST = (
    "Seconds of a round: what benchmarks/perf/cost.py computes from these bytes and the recorded run of "
    "benchmarks/perf/runtime.py, for a client on each of 100 ranks, and for 10,000 phones with 10 Mb/s each way, the "
    "server at 10 Gb/s; training "
    f"takes what it took there on one core, one local epoch of {cost.SAMPLES} samples of 28 × 28 in batches of "
    f"{cost.BATCH} on the {cost.MODEL}, whatever the runs did. Other models, and methods not measured, are left out."
)

COLORS = ("#0072B2", "#009E73", "#000000", "#CC79A7", "#D55E00", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow, too pale on white."""

MARKERS = "osD^vP*X"
"""One more than there are colours, so that the pairs repeat only after 56 methods."""

FEW = 8
"""Methods that fit a plot with room to spare."""

STYLE: dict[Any, Any] = {
    **{"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "savefig.dpi": 160},
    "text.parse_math": False,  # names may hold $
}

NONE = "–"


Looks = dict[str, tuple[str, str]]
"""Colour and marker of each method, the same in all plots of a report."""


def choose_looks(comparisons: Iterable[Comparison]) -> Looks:
    methods = sorted({algo for comparison in comparisons for algo in comparison.table.index})
    return dict(zip(methods, zip(cycle(COLORS), cycle(MARKERS)), strict=False))


def amount(parameters: float) -> str:
    if np.isnan(parameters):
        return NONE
    return f"{parameters:,.0f}" if parameters < 1e5 else EngFormatter(places=1)(parameters)


def percent(fraction: float) -> str:
    return NONE if np.isnan(fraction) else f"{100 * fraction:.1f}"


def megabytes(count: float) -> str:
    return NONE if np.isnan(count) else f"{count / 1e6:,.0f}"


def difference(fraction: float, half: float) -> str:
    if np.isnan(fraction):
        return NONE
    return f"{100 * fraction:+.1f}" + ("" if np.isnan(half) else f" ± {percent(half)}")


def wording_of_grid(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each optimizer and a column for each choice of weights and bits: accuracy, and MB sent."""
    found = arrange(comparison)
    order = {"dense": 0, "lowrank": 1, "fedpara": 2, "pfedpara": 3}
    optimizers = sorted({optimizer for optimizer, *_ in found})
    columns = sorted(
        {tuple(column) for _, *column in found}, key=lambda c: (order[c[0]], *(-int(b.lstrip("float")) for b in c[1:]))
    )
    rows = []
    for optimizer in optimizers:
        row = {"optimizer": optimizer}
        for weights, up, down in columns:
            cell = NONE
            if method := found.get((optimizer, weights, up, down)):
                figures = comparison.table.loc[method]
                half = "" if np.isnan(figures["half_interval"]) else f" ± {percent(figures['half_interval'])}"
                cell = f"{percent(figures['accuracy'])}{half} ({megabytes(figures['bytes'])} MB)"
            way_up, way_down = (f"{form} bits" if form.isdigit() else form for form in (up, down))
            row[f"{weights}, {way_up}" + (f" up, {way_down} down" if down != "32" else "")] = cell
        rows.append(row)
    return pd.DataFrame(rows)


def wording(comparison: Comparison) -> pd.DataFrame:
    """Returns the comparison's table as a person reads it, with headings that explain themselves."""
    rows = []
    for row in comparison.table.reset_index().itertuples():
        accuracy = percent(row.accuracy) if row.seeds else "diverged"
        exchanged = [f"{row.up:,.0f}"] if row.up == row.down else [f"{row.up:,.0f} up", f"{row.down:,.0f} down"]
        rows.append(
            {
                "method": row.method,
                "seeds": f"{row.seeds}/{row.seeds + row.diverged}" if row.diverged else row.seeds,
                "accuracy %": accuracy if np.isnan(row.half_interval) else f"{accuracy} ± {percent(row.half_interval)}",
                f"difference to {REFERENCE}": difference(row.difference, row.half_interval_of_difference),
                "worst decile %": percent(row.worst_decile),
                "clients below local %": percent(row.below_local),
                "parameters per client and round": ", ".join(exchanged) if row.seeds else NONE,
                "total sent": amount(row.transmitted),
                "sent up to the model": amount(row.to_model),
                "MB sent": megabytes(row.bytes),
                f"sent to reach {percent(comparison.target)} %": amount(row.to_target),
            }
        )
    return pd.DataFrame(rows).astype(str)


def wording_of_cost(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each method whose training perf.py measured; none where no run of it is recorded."""
    constants, train = cost.recorded() or (None, {})
    rows = []
    for method, (run, *_) in comparison.runs.items():
        algo, weights = run.summary["algo"], run.summary.get("parameterization", "dense")
        if not constants or algo not in train or weights not in ("dense", algo) or run.summary["model"] != cost.MODEL:
            continue
        figures = comparison.table.loc[method]
        round_of = constants, train[algo], (figures["bytes_up"] + figures["bytes_down"]) / 2
        rows.append(
            {
                "method": method,
                "bytes up per client and round": f"{figures['bytes_up']:,.0f}",
                "bytes down per client and round": f"{figures['bytes_down']:,.0f}",
                "seconds a round, 100 ranks, 10 Gb/s": f"{cost.cluster_round(*round_of).total:.3f}",
                "seconds a round, 10,000 phones, 10 Mb/s": f"{cost.phones_round(*round_of).total:.2f}",
            }
        )
    return pd.DataFrame(rows)


def legend(comparisons: Iterable[Comparison]) -> tuple[str, ...]:
    costs = any(not wording_of_cost(comparison).empty for comparison in comparisons)
    return (*LEGEND, LEGEND_OF_COST) if costs else LEGEND


def screen_table(words: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for heading in words:
        lines = textwrap.fill(heading, 9, break_long_words=False)
        table.add_column(lines, justify="left" if heading == "method" else "right", vertical="bottom", no_wrap=True)
    for row in words.itertuples(index=False):
        table.add_row(*map(printable, row))
    return table


def show(comparisons: list[Comparison], words_of: Callable[[Comparison], pd.DataFrame]) -> None:
    """Prints the tables, at most 120 columns wide."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False, emoji=False)
    for comparison in comparisons:
        console.print(printable(f"{comparison.title} ({comparison.shared})"), style="bold")
        console.print(screen_table(words_of(comparison)))
        for note in comparison.notes:
            console.print(printable(f"* {note}"))
        console.print()
        if not (costs := wording_of_cost(comparison)).empty:
            console.print(screen_table(costs))
            console.print()
    for line in legend(comparisons):
        console.print(line, style="dim")


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


def plot_accuracy_by_parameters(comparison: Comparison, looks: Looks) -> Figure:
    figure = Figure(figsize=(10, max(5.2, 0.34 * len(comparison.runs))), layout="constrained")
    axes = figure.subplots()
    few = len(comparison.runs) <= FEW
    counted = not any(run.rounds["to_model"].isna().any() for runs in comparison.runs.values() for run in runs)
    sent = "to_model" if counted else "parameters"
    ends = []
    for algo, runs in comparison.runs.items():
        curve = mean_curve(runs)
        color, marker = looks[algo]
        final = comparison.table.loc[algo, "accuracy"]
        label = printable(f"{algo}  {percent(final)} %")
        if not curve[sent].any():  # a logarithmic axis has no place for 0
            axes.axhline(final, color=color, linestyle="--", label=f"{label}, sends nothing")
            ends.append((f"{label}, sends nothing", np.inf, final, color))
            continue
        ends.append((label, curve[sent].iloc[-1], curve["accuracy"].iloc[-1], color))
        axes.plot(
            curve[sent],
            curve["accuracy"],
            markevery=[-1],
            markersize=8,
            label=label,
            color=color,
            marker=marker,
        )
        if not few:  # one over another, bands would hide the curves
            continue
        low, high = (curve["accuracy"] + sign * curve["half_interval"] for sign in (-1, 1))
        axes.fill_between(curve[sent], low.clip(lower=0), high.clip(upper=1), color=color, alpha=0.15, linewidth=0)
    axes.axhline(
        comparison.target, color="#777777", linewidth=1, linestyle=":", label=f"target {percent(comparison.target)} %"
    )
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
    axes.text(
        0.01,
        comparison.target,
        f"target {percent(comparison.target)} %",
        color="#777777",
        fontsize=10,
        transform=axes.get_yaxis_transform(),
        va="bottom",
    )
    return figure


def plot_accuracy_by_client(comparison: Comparison, looks: Looks) -> Figure:
    local = comparison.runs.get("local", [])
    methods = list(comparison.runs)
    row = 0.85 if len(methods) <= FEW else 0.5
    figure = Figure(figsize=(11 if local else 7, 1.6 + row * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2 if local else 1, sharey=True, squeeze=False)[0]
    for position, (algo, runs) in enumerate(comparison.runs.items()):
        accuracies = [np.array(run.summary["accuracy"]["per_client"]) for run in runs]
        color, marker = looks[algo]
        for axes, values in zip(panels, (accuracies, differences_to_local(runs, local)), strict=False):
            heights = position + np.linspace(-0.4, 0.4, len(values) + 2)[1:-1]
            for height, seed in zip(heights, values, strict=True):
                axes.scatter(
                    100 * seed,
                    np.full(len(seed), height),
                    s=40 * row,
                    alpha=0.6,
                    linewidths=0,
                    color=color,
                    marker=marker,
                )
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


PLOTS = {
    "accuracy_vs_parameters": (
        plot_accuracy_by_parameters,
        "Accuracy after each round against the parameters sent up to the judged models (all sent so far, where a run "
        "did not count those): mean over seeds, and its 95 % interval.",
    ),
    "accuracy_per_client": (
        plot_accuracy_by_client,
        "Final accuracy of each client, and its difference from what the same client reaches alone: "
        "a dot for each client, a row of dots for each seed, a bar at the mean.",
    ),
}
"""Each plot by the beginning of its file's name, with its caption."""


def write(
    comparisons: list[Comparison], out: Path, words_of: Callable[[Comparison], pd.DataFrame], command: str
) -> list[Path]:
    """Writes table.csv, table.md, the plots and index.html into ``out`` and returns their paths.

    table.csv holds the figures of `comparison.tabulate` as they are; the others, rounded, are for people.
    ``command`` is what the runs come from, printed above each table.
    """
    out.mkdir(parents=True, exist_ok=True)
    looks = choose_looks(comparisons)
    sections, pictures = [], []
    markdown: list[str] = []
    for comparison in comparisons:
        images = []
        for kind, (plot, caption) in PLOTS.items() if comparison.runs else ():
            path = out / f"{kind}-{comparison.name}.png"
            with matplotlib.rc_context(STYLE):
                plot(comparison, looks).savefig(path)
            images.append((caption, base64.b64encode(path.read_bytes()).decode()))
            pictures.append(path)
        words, costs = words_of(comparison), wording_of_cost(comparison)
        sections.append({"comparison": comparison, "words": words, "costs": costs, "images": images})
        markdown += [f"## {markdown_text(comparison.title)}", "", markdown_text(comparison.shared), ""]
        markdown += [f"    {printable(command)}", ""] if command else []
        markdown += [*markdown_rows(words), ""]
        markdown += [f"- {markdown_text(note)}" for note in comparison.notes] + [""] * bool(comparison.notes)
        markdown += [] if costs.empty else [*markdown_rows(costs), ""]
    table = pd.concat({(c.dataset, c.partition, c.apart): c.table.assign(target=c.target) for c in comparisons})
    levels = ["dataset", "partition", "settings", "method"]
    table.to_csv(out / "table.csv", index_label=levels, errors="backslashreplace")
    (out / "table.md").write_text("\n".join([*markdown, *legend(comparisons), ""]), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "analysis"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
        trim_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(sections=sections, legend=legend(comparisons))
    (out / "index.html").write_text(page, encoding="utf-8")
    return [out / "index.html", out / "table.md", out / "table.csv", *pictures]


def markdown_rows(words: pd.DataFrame) -> list[str]:
    rows = [[markdown_text(cell) for cell in row] for row in (words.columns, *words.to_numpy())]
    rows.insert(1, ["---"] + ["---:"] * (words.shape[1] - 1))
    return [f"| {' | '.join(row)} |" for row in rows]


def markdown_text(text: str) -> str:
    """Returns ``text`` as Markdown that shows it as it is, also where raw HTML or formulas are read."""
    return re.sub(r"[\\`*_\[\]|#~$]", r"\\\g<0>", html.escape(printable(text), quote=False))


def accuracy(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"an accuracy is a fraction above 0 and at most 1, got {text}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/report.py", description="Compares recorded runs.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of runs, searched to any depth")
    parser.add_argument(
        "--target",
        type=accuracy,
        metavar="ACC",
        help=f"accuracy of the last column, a fraction (default: {100 * TARGET:.0f} %% of the best method's final one, "
        "above what local training reaches)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: FOLDER/report)")
    parser.add_argument(
        "--grid", action="store_true", help="set optimizers against weights and bits: accuracy, and megabytes sent"
    )
    parser.add_argument(
        "--command", default="", metavar="TEXT", help="what the runs come from, printed above the tables"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables to this Markdown file as well")
    options = parser.parse_args()
    words_of = wording_of_grid if options.grid else wording
    out = options.out or options.folders[0] / "report"
    try:
        comparisons = compare(load(options.folders), options.target)
        written = write(comparisons, out, words_of, options.command)
        if options.page:
            options.page.parent.mkdir(parents=True, exist_ok=True)
            options.page.write_text("# Results\n\n" + (out / "table.md").read_text(encoding="utf-8"), encoding="utf-8")
            written.append(options.page)
    except (ReportError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    show(comparisons, words_of)
    for folder in find_unfinished(options.folders):
        print(printable(f"Not finished, left out: {folder}"))
    print("\n" + printable(f"The report is {written[0]}; its tables and pictures also lie in {out}:"))
    for path in written[1:]:
        print(printable(f"  {path.name}"))


if __name__ == "__main__":
    main()
