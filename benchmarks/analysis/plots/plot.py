"""What a plot of the report is, and what all of them share: colours, markers, and how many methods fit."""

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.analysis.compare import Comparison

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

Looks = dict[str, tuple[str, str]]
"""Colour and marker of each method, the same in all plots of a report."""


def choose_looks(comparisons: Iterable[Comparison]) -> Looks:
    methods = sorted({algo for comparison in comparisons for algo in comparison.table.index})
    return dict(zip(methods, zip(cycle(COLORS), cycle(MARKERS)), strict=False))


class Plot(NamedTuple):
    """A plot that the report draws of each comparison."""

    name: str  # the beginning of its file's name
    caption: str
    draw: Callable[[Comparison, Looks], Figure]
