"""One style a method: fixed, and told apart by readers of every colour vision."""

from itertools import combinations

import numpy as np
import pytest
from bokeh.plotting import figure as bokeh_figure
from matplotlib.figure import Figure

from benchmarks.styles import BLACK, BLUE, DOTTED, GREEN, KNOWN, ORANGE, PINK, SKY, SOLID, VERMILION, Style, style_of

COLORS = (BLUE, GREEN, BLACK, PINK, VERMILION, ORANGE, SKY)

# Machado, Oliveira and Fernandes (IEEE TVCG 15, 2009), table 1, severity 1.0: linear RGB as such a reader sees it.
SEEN = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(color: str) -> np.ndarray:
    """Linear RGB of "#RRGGBB", as sRGB defines it."""
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB under D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb, 1e-3, None) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", SEEN)
def test_colors_are_told_apart(vision: str) -> None:
    """A distance of 2.3 is just noticed; a legend's short line wants several times that."""
    seen = {color: lab(np.clip(SEEN[vision] @ linear(color), 0, 1)) for color in COLORS}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(COLORS, 2)}
    assert min(distances.values()) > 12


def test_every_known_method_has_a_style_of_its_own() -> None:
    assert len(set(KNOWN.values())) == len(KNOWN)
    first = [KNOWN[name].color for name in ("local", "fedavg", "fedper", "pfedme", "pfedpara")]
    assert len(set(first)) == 5  # the quick comparison's


def test_styles_never_change() -> None:
    """Also of names that no table knows: the values are those of the first report that drew them."""
    assert style_of("pfedpara") == Style("#D55E00", "o", SOLID)
    assert style_of("pfedpara-gamma=0.1") == Style("#56B4E9", "*", DOTTED)
    assert style_of("pfedpara-gamma=0.1") not in KNOWN.values()
    assert style_of("<script>$[\udcff").marker


def test_both_libraries_draw_them() -> None:
    axes, page = Figure().subplots(), bokeh_figure()
    for style in KNOWN.values():
        (line,) = axes.plot([0, 1], **style.line)
        assert (line.get_color(), line.get_marker()) == (style.color, style.marker)
        assert (line.get_linestyle() == "-") == (style.dash == SOLID)
        assert page.line([0, 1], [0, 1], **style.bokeh_line).glyph.line_color == style.color
        assert page.scatter([0], [0], **style.bokeh_marker).glyph.fill_color == style.color
