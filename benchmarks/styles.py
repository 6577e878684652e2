"""One fixed style for each method, in every figure: colour, marker and line."""

import hashlib
from itertools import product
from typing import Any, NamedTuple

BLUE, GREEN, BLACK, PINK, VERMILION, ORANGE, SKY = (
    *("#0072B2", "#009E73", "#000000", "#CC79A7"),
    *("#D55E00", "#E69F00", "#56B4E9"),
)
"""Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow, too pale on white."""

MARKERS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle"},
    **{"v": "inverted_triangle", "P": "plus", "*": "star", "h": "hex"},
}
"""Bokeh's name of each of Matplotlib's markers."""

SOLID: tuple[float, ...] = ()
DASHED, DOTTED, MIXED = (5.0, 2.0), (1.0, 1.2), (5.0, 1.5, 1.0, 1.5)
LONG = (9.0, 2.0)  # of methods known later: what is left for names that are not known stays as it was


class Style(NamedTuple):
    """How a method is drawn."""

    color: str  # "#RRGGBB"
    marker: str  # one of MARKERS
    dash: tuple[float, ...]  # lengths of line and gap in line widths; empty for a solid line

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of Matplotlib's ``Axes.plot``."""
        return {"color": self.color, "marker": self.marker, "linestyle": (0, self.dash) if self.dash else "-"}

    @property
    def bokeh_line(self) -> dict[str, Any]:
        """Keywords of Bokeh's ``line``, two pixels wide."""
        return {"line_color": self.color, "line_dash": [round(2 * length) for length in self.dash], "line_width": 2}

    @property
    def bokeh_marker(self) -> dict[str, Any]:
        """Keywords of Bokeh's ``scatter``."""
        return {"marker": MARKERS[self.marker], "color": self.color}


KNOWN = {
    # What is alike has one colour: factored weights, one global model, its optimizers, private layers, fine-tuning,
    # a second model, and what is all or mostly local.
    "pfedpara": Style(VERMILION, "o", SOLID),
    "fedpara": Style(VERMILION, "h", DASHED),
    "lowrank": Style(VERMILION, "D", DOTTED),
    "fedavg": Style(BLUE, "s", SOLID),
    "fedprox": Style(BLUE, "v", DASHED),
    "scaffold": Style(BLUE, "*", DOTTED),
    "feddyn": Style(SKY, "P", SOLID),
    "fedavgm": Style(SKY, "^", DASHED),
    "fedadam": Style(SKY, "o", DOTTED),
    "fedyogi": Style(SKY, "D", MIXED),
    "fedper": Style(GREEN, "^", SOLID),
    "fedrep": Style(GREEN, "s", DASHED),
    "fedbn": Style(GREEN, "P", DOTTED),
    "fedavg-ft": Style(ORANGE, "*", SOLID),
    "per-fedavg": Style(ORANGE, "v", DASHED),
    "fedbabu": Style(ORANGE, "o", DOTTED),
    "pfedme": Style(PINK, "v", SOLID),
    "ditto": Style(PINK, "D", DASHED),
    "apfl": Style(PINK, "h", DOTTED),
    "local": Style(BLACK, "D", DASHED),
    "lg-fedavg": Style(BLACK, "s", SOLID),
    "pfedpara-x": Style(VERMILION, "^", LONG),
    "fedlmt": Style(VERMILION, "D", LONG),
    "fedselect": Style(GREEN, "D", LONG),
    "pfedlmt": Style(VERMILION, "s", LONG),
}

_COLORS = (BLUE, GREEN, BLACK, PINK, VERMILION, ORANGE, SKY)
_FREE = [
    style
    for style in (Style(*parts) for parts in product(_COLORS, MARKERS, (SOLID, DASHED, DOTTED, MIXED)))
    if style not in KNOWN.values()
]


def style_of(method: str) -> Style:
    """Returns the style of a method, or of a run's label: of another one than the known ones, by the hash of its name.

    The same name has the same style in every report. Two names that are not known may share one.
    """
    digest = hashlib.blake2b(method.encode(errors="surrogatepass"), digest_size=8).digest()
    return KNOWN.get(method) or _FREE[int.from_bytes(digest) % len(_FREE)]
