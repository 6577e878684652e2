"""What a plot of the report is, and what all of them share: how it looks, and how many methods fit."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.analysis.compare import Comparison
from benchmarks.styles import Style, style_of

FEW = 8
"""Methods that fit a plot with room to spare."""

STYLE: dict[Any, Any] = {
    **{"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "savefig.dpi": 160},
    "text.parse_math": False,  # names may hold $
}

Looks = dict[str, Style]
"""The style of each method."""


def choose_looks(comparisons: Iterable[Comparison]) -> Looks:
    return {algo: style_of(algo) for comparison in comparisons for algo in comparison.table.index}


class Plot(NamedTuple):
    """A plot that the report draws of each comparison."""

    name: str  # the beginning of its file's name
    caption: str
    draw: Callable[[Comparison, Looks], Figure]
