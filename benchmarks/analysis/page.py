"""The report: as files, the tables, the plots and a page that holds both; and the tables on the screen."""

import base64
import html
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.plots import PLOTS
from benchmarks.analysis.plots.plot import STYLE, choose_looks
from benchmarks.analysis.tables import further_tables, legend
from benchmarks.terminal import printable


def write(
    comparisons: list[Comparison], out: Path, words_of: Callable[[Comparison], pd.DataFrame], command: str
) -> list[Path]:
    """Writes table.csv, table.md, the plots and index.html into ``out`` and returns their paths.

    table.csv holds the figures of `statistics.tabulate` as they are; the others, rounded, are for people.
    ``command`` is what the runs come from, printed above each table.
    """
    out.mkdir(parents=True, exist_ok=True)
    looks = choose_looks(comparisons)
    sections, pictures = [], []
    markdown: list[str] = []
    for comparison in comparisons:
        images = []
        for plot in PLOTS if comparison.runs else ():
            path = out / f"{plot.name}-{comparison.name}.png"
            with matplotlib.rc_context(STYLE):
                plot.draw(comparison, looks).savefig(path)
            images.append((plot.caption, base64.b64encode(path.read_bytes()).decode()))
            pictures.append(path)
        words, further = words_of(comparison), further_tables(comparison)
        sections.append({"comparison": comparison, "words": words, "further": further, "images": images})
        markdown += [f"## {markdown_text(comparison.title)}", "", markdown_text(comparison.shared), ""]
        markdown += [f"    {printable(command)}", ""] if command else []
        markdown += [*markdown_rows(words), ""]
        markdown += [f"- {markdown_text(note)}" for note in comparison.notes] + [""] * bool(comparison.notes)
        for each in further:
            markdown += [*markdown_rows(each), ""]
    table = pd.concat({(c.dataset, c.partition, c.apart): c.table.assign(target=c.target) for c in comparisons})
    levels = ["dataset", "partition", "settings", "method"]
    table.to_csv(out / "table.csv", index_label=levels, errors="backslashreplace")
    (out / "table.md").write_text("\n".join([*markdown, *legend(comparisons), ""]), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
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
        for words in further_tables(comparison):
            console.print(screen_table(words))
            console.print()
    for line in legend(comparisons):
        console.print(line, style="dim")
