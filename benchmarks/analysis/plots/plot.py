"""What a plot of the report is, and what all of them share: how it looks, how wide it is, and how it is saved."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from benchmarks.analysis.compare import Comparison
from benchmarks.styles import Style, style_of
from benchmarks.terminal import printable

FEW = 8
"""Methods that can be told apart in one panel."""

STYLE: dict[Any, Any] = {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7},
    **{"legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 3.2},
    **{"axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 3.6, "lines.markeredgewidth": 0},
    **{"axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.5, "axes.axisbelow": True},
    **{"savefig.dpi": 200, "pdf.fonttype": 42},  # fonts as TrueType, which publishers ask for
    "text.parse_math": False,  # names may hold $
}

GREY = "#BBBBBB"

Looks = dict[str, Style]
"""The style of each method."""


def choose_looks(comparisons: Iterable[Comparison], highlight: Collection[str] = ()) -> Looks:
    """Returns each method's style; where some are to be highlighted, the others turn grey."""
    methods = {method for comparison in comparisons for method in comparison.table.index}
    return {
        method: style._replace(color=GREY) if highlight and method not in highlight else style
        for method, style in ((method, style_of(method)) for method in sorted(methods))
    }


class Drawn(NamedTuple):
    figure: Figure
    caption: str  # says what is drawn, and nothing that is not


class Plot(NamedTuple):
    """A plot that the report draws of each comparison, on a figure so many inches wide."""

    name: str  # the beginning of its file's name
    draw: Callable[[Comparison, Looks, float], Drawn]


class Picture(NamedTuple):
    """A plot in its files."""

    caption: str
    files: list[Path]  # PNG, PDF and SVG


def save(draw: Callable[[], Drawn], path: Path) -> Picture:
    """Draws in the common style, and writes ``path`` with the suffix of each format."""
    with matplotlib.rc_context(STYLE):
        figure, caption = draw()
        found = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "pdf", "svg")]
        for file in found:
            figure.savefig(file)
            figure.set_layout_engine()  # none: laid out once, it stays so
    return Picture(caption, found)


def short(name: str, limit: int = 28) -> str:
    """Returns the name on one line, its middle left out where it is longer than ``limit``."""
    name = printable(name)
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def number_panels(count: int, width: float) -> tuple[int, int]:
    """Returns rows and columns of small multiples, each about 1.2 inches wide."""
    columns = min(count, max(2, round(width / 1.25)))
    return -(-count // columns), columns
