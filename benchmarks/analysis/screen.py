"""The tables on the screen, at most 120 columns wide."""

import sys
import textwrap
from collections.abc import Callable

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.tables import further_tables, legend
from benchmarks.terminal import printable


def screen_table(words: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for heading in words:
        lines = textwrap.fill(heading, 9, break_long_words=False)
        table.add_column(lines, justify="left" if heading == "method" else "right", vertical="bottom", no_wrap=True)
    for row in words.itertuples(index=False):
        table.add_row(*map(printable, row))
    return table


def show(comparisons: list[Comparison], words_of: Callable[[Comparison], pd.DataFrame]) -> None:
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
