"""The report: as files, the tables, the plots and a page that holds both; and the tables on the screen."""

import base64
import html
import os
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.analysis import WIDTHS
from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.interactive import describe, embedded, missing, plots
from benchmarks.analysis.latex import latex
from benchmarks.analysis.leaderboard import Leaderboard, explain, rank, wording_of_leaderboard
from benchmarks.analysis.plots import PLOTS
from benchmarks.analysis.plots.critical_difference import draw_leaderboard
from benchmarks.analysis.plots.plot import Looks, Picture, choose_looks, save
from benchmarks.analysis.provenance import boxed
from benchmarks.analysis.tables import further_tables, legend
from benchmarks.analysis.verdict import verdict
from benchmarks.terminal import printable

INLINE = Resources(mode="inline", components=["bokeh"])
LARGEST = 3_700_000
"""Bytes that the numbers, scripts and pictures of a page may take."""

SCALES = {None: 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SIGNS = dict(zip("osD^vP*h", "●■◆▲▼✚★⬢", strict=True))
"""A character for each of Matplotlib's markers."""


def write(
    comparisons: list[Comparison],
    out: Path,
    words_of: Callable[[Comparison], pd.DataFrame],
    command: str,
    highlight: Collection[str] = (),
    width: float = WIDTHS[1],
) -> list[Path]:
    """Writes the tables, the plots and index.html into ``out`` and returns their paths.

    table.csv and leaderboard.csv hold figures as they are; the others, rounded, are for people. ``command`` is what the
    runs come from, printed above each table. Plots are ``width`` inches wide; ``highlight`` greys the other methods.
    """
    out.mkdir(parents=True, exist_ok=True)
    looks = choose_looks(comparisons, highlight)
    sections: list[dict[str, Any]] = []
    pictures: list[Path] = []
    markdown: list[str] = []
    for comparison, drawn in zip(comparisons, draw(comparisons, out, looks, width), strict=True):
        images = [(each.caption, each.files[0]) for each in drawn]
        pictures += [file for each in drawn for file in each.files]
        words, further = words_of(comparison), further_tables(comparison)
        sections.append({"comparison": comparison, "words": words, "further": further, "images": images})
        markdown += [f"## {markdown_text(comparison.title)}", "", markdown_text(comparison.shared), ""]
        markdown += [f"    {printable(command)}", ""] if command else []
        markdown += [*markdown_rows(words), ""]
        markdown += [f"- {markdown_text(note)}" for note in comparison.notes] + [""] * bool(comparison.notes)
        for each in further:
            markdown += [*markdown_rows(each), ""]
    tables = [out / "table.md", out / "table.csv", out / "table.tex"]
    ranking = None
    if board := rank(comparisons):
        ranking = board, save(partial(draw_leaderboard, board, looks, width), out / "leaderboard")
        pictures += ranking[1].files
        tables.append(out / "leaderboard.csv")
        board.figures.to_csv(tables[-1], errors="backslashreplace")
        markdown += ["## Leaderboard", "", *markdown_rows(wording_of_leaderboard(board)), ""]
        markdown += [*(f"- {markdown_text(sentence)}" for sentence in explain(board)), ""]
    table = pd.concat({(c.dataset, c.partition, c.apart): c.table.assign(target=c.target) for c in comparisons})
    levels = ["dataset", "partition", "settings", "method"]
    table.to_csv(out / "table.csv", index_label=levels, errors="backslashreplace")
    explained = legend(comparisons)
    (out / "table.md").write_text("\n".join([*markdown, *explained, ""]), encoding="utf-8")
    (out / "table.tex").write_text(latex(comparisons), encoding="utf-8")
    (out / "index.html").write_text(page(sections, out, looks, explained, command, ranking), encoding="utf-8")
    return [out / "index.html", *tables, *pictures]


def draw(comparisons: list[Comparison], out: Path, looks: Looks, width: float) -> list[list[Picture]]:
    """Draws the plots of each comparison into ``out``, in two processes: drawing takes most of a report's time."""
    for backend in ("agg", "pdf", "svg"):  # here, and not in each process
        import_module(f"matplotlib.backends.backend_{backend}")
    fork = "fork" if "fork" in get_all_start_methods() else None  # nothing is imported again
    with ProcessPoolExecutor(2, get_context(fork)) as pool:
        jobs = [
            [
                pool.submit(save, partial(plot.draw, comparison, looks, width), out / f"{plot.name}-{comparison.name}")
                for plot in (PLOTS if comparison.runs else ())
            ]
            for comparison in comparisons
        ]
        return [[job.result() for job in each] for each in jobs]


def page(
    sections: list[dict[str, Any]],
    out: Path,
    looks: Looks,
    legend: Sequence[str],
    command: str,
    ranking: tuple[Leaderboard, Picture] | None,
) -> str:
    """Returns index.html, which lies in ``out``.

    Each of the ``sections`` has a comparison, words and further tables, and images. Those beyond ``LARGEST`` bytes of
    the page in all are left out: they lie beside it.
    """
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
        trim_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "lines": lambda text: Markup("\n").join(map(printable, text.splitlines())),
    }
    scripts = [*INLINE.js_raw, (here / "page.js").read_text(encoding="utf-8")]
    shown, described = [], plots()
    for section in sections:
        comparison: Comparison = section["comparison"]
        store = describe(comparison, looks, len(sections))
        counted = all("to_model" in method["x"] for method in store["methods"])
        shown.append(
            {
                **section,
                "verdict": verdict(comparison),
                "store": store,
                "data": Markup(embedded(store)),
                "axis": "to_model" if counted else "parameters",
                "missing": missing(store),
                "box": boxed(comparison, out),
                "looks": [(method, looks[method]) for method in comparison.runs],
            }
        )
    board = {}
    if ranking:
        picture = base64.b64encode(ranking[1].files[0].read_bytes()).decode()
        board = {"words": wording_of_leaderboard(ranking[0]), "sentences": explain(ranking[0])}
        board |= {"caption": ranking[1].caption, "image": picture}
    left = (
        LARGEST - len(board.get("image", "")) - sum(map(len, scripts)) - sum(len(section["data"]) for section in shown)
    )
    for section in shown:
        images = [(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in section["images"]]
        left -= sum(len(image) for _, image in images)
        section["images"] = images if left > 0 else []
    return environment.get_template("report.html.j2").render(
        sections=shown,
        board=board,
        legend=legend,
        command=command,
        plots=Markup(described),
        scripts=Markup("\n".join(f"<script>{script}</script>" for script in scripts)),
        signs=SIGNS,
    )


def number(cell: str) -> str:
    """Returns the first number in a table's cell, by which a page sorts it; empty where there is none."""
    found = re.search(r"([-+]?[\d,]*\.?\d+)(?: ([kMGT])\b)?", cell)
    return f"{float(found[1].replace(',', '')) * SCALES[found[2]]:.12g}" if found else ""


def markdown_rows(words: pd.DataFrame) -> list[str]:
    rows = [[markdown_text(cell) for cell in row] for row in (words.columns, *words.to_numpy())]
    rows.insert(1, ["---"] + ["---:"] * (words.shape[1] - 1))
    return [f"| {' | '.join(row)} |" for row in rows]


def markdown_text(text: str) -> str:
    """Returns ``text`` as Markdown that shows it as it is, also where raw HTML or formulas are read."""
    return re.sub(r"[\\`*_\[\]|#~$]", r"\\\g<0>", html.escape(printable(text), quote=False))


def screen_table(words: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for heading in words:
        lines = textwrap.fill(heading, 9, break_long_words=False)
        table.add_column(lines, justify="left" if heading == "method" else "right", vertical="bottom", no_wrap=True)
    for row in words.itertuples(index=False):
        table.add_row(*map(printable, row))
    return table


def fit(console: Console, words: pd.DataFrame) -> tuple[Table, list[str]]:
    """Returns the table without the last columns that a screen has no room for, and their headings."""
    unbounded, shown = console.options.update(width=10_000), words.shape[1]
    while shown > 2 and console.measure(screen_table(words.iloc[:, :shown]), options=unbounded).maximum > console.width:
        shown -= 1
    return screen_table(words.iloc[:, :shown]), list(words.columns[shown:])


def show(comparisons: list[Comparison], words_of: Callable[[Comparison], pd.DataFrame], explained: bool) -> None:
    """Prints the tables as wide as the screen is, elsewhere at most 120 columns; what columns mean if ``explained``."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    narrow = dict[str, None]()
    for comparison in comparisons:
        console.print(printable(f"{comparison.title} ({comparison.shared})"), style="bold")
        for words in (words_of(comparison), *further_tables(comparison)):
            table, left = fit(console, words)
            narrow |= dict.fromkeys(left)
            console.print(table)
            console.print()
        for note in comparison.notes:
            console.print(printable(f"* {note}"))
        console.print("\n" * bool(comparison.notes), end="")
    if narrow:
        console.print(f"Not shown in {console.width} columns, but in the report: {', '.join(narrow)}", style="dim")
    for line in legend(comparisons) if explained else ["--legend explains the columns."]:
        console.print(line, style="dim")
