"""What the figures show, on every width, and that what their captions say is there."""

from itertools import combinations
from typing import Any

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.analysis import WIDTHS
from benchmarks.analysis.compare import Comparison, compare
from benchmarks.analysis.latex import latex, latex_text
from benchmarks.analysis.load import ReportError, load
from benchmarks.analysis.plots.accuracy_per_client import ACCURACY_PER_CLIENT
from benchmarks.analysis.plots.accuracy_vs_parameters import ACCURACY_VS_PARAMETERS
from benchmarks.analysis.plots.plot import GREY, STYLE, Drawn, Plot, choose_looks, short
from benchmarks.styles import KNOWN, style_of
from tests.unit.analysis.recorded import record

HOSTILE = ("<script>alert(1)</script>", "$x_1$ [bold]", "n" * 90)


def draw(plot: Plot, comparison: Comparison, width: float = WIDTHS[1], *highlight: str) -> Drawn:
    with rc_context(STYLE):
        return plot.draw(comparison, choose_looks([comparison], highlight), width)


def words_of(figure: Figure) -> list[Text]:
    """Every text that is drawn, laid out: not the ticks beyond an axis."""
    drawn: list[Text] = []
    original = Text.draw

    def note(text: Text, renderer: Any) -> None:
        drawn.append(text)
        original(text, renderer)

    with rc_context(STYLE), pytest.MonkeyPatch.context() as patch:
        figure.draw_without_rendering()  # lays it out
        patch.setattr(Text, "draw", note)
        figure.draw_without_rendering()
    return [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text()]


def check_layout(figure: Figure) -> None:
    """No text covers another one or is cut off."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in words_of(figure)]
    assert len(boxes) > 10
    page = figure.bbox.padded(1)
    assert [
        text for text, box in boxes if not all(map(page.contains, box.get_points()[:, 0], box.get_points()[:, 1]))
    ] == []
    assert [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.padded(-1).overlaps(two.padded(-1))] == []


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Three methods, two clients, three rounds, and seeds 0 1 2."""
    out = tmp_path_factory.mktemp("three")
    for seed in range(3):
        record(out, "fedavg", seed, [(0.1, 0.3), (0.5, 0.7), (0.70 + 0.02 * seed, 0.90 + 0.02 * seed)])
        record(out, "local", seed, [(0.5, 0.5), (0.6, 0.6), (0.74, 0.74)], sent=0, judged_on="trained")
        record(out, "pfedpara", seed, [(0.4, 0.6), (0.8, 0.9), (0.85, 0.95)], sent=25, judged_on="trained")
    return compare(load([out]))[0]


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Sixty methods of one seed, three of them with names that something could obey."""
    out = tmp_path_factory.mktemp("sixty")
    for n, name in enumerate((*HOSTILE, *(f"method{n}" for n in range(56)), "pfedpara")):
        rounds = [(0.5, 0.5), (0.9 - n / 1000, 0.9 - n / 1000)]
        record(out / str(n), f"m{n}", 0, rounds, sent=100 * (n + 1), label=name)
    return compare(load([out]))[0]


def test_curves_are_the_means_in_each_methods_style(three: Comparison) -> None:
    figure, caption = draw(ACCURACY_VS_PARAMETERS, three)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    curves = {str(line.get_label()).split()[0]: line for line in axes.lines}
    assert curves["pfedpara"].get_xdata().tolist() == [50, 150, 250]
    assert curves["pfedpara"].get_ydata().tolist() == pytest.approx([0.5, 0.85, 0.9])
    for method in ("pfedpara", "fedavg"):
        style = style_of(method)
        assert (curves[method].get_color(), curves[method].get_marker()) == (style.color, style.marker)
    assert curves["local"].get_ydata() == pytest.approx([0.74, 0.74])  # it sends nothing: a level line
    assert "as a band its 95 % interval" in caption
    assert len(axes.collections) == 2  # a band each
    half = 4.302653 * 0.02 / 3**0.5  # FedAvg's 0.80, 0.82, 0.84; Student's t for two degrees of freedom
    assert axes.collections[1].get_paths()[0].vertices[:, 1].max() == pytest.approx(0.82 + half)


def test_each_client_is_a_mark(three: Comparison) -> None:
    accuracy, difference = draw(ACCURACY_PER_CLIENT, three).figure.axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["pfedpara", "fedavg", "local"]
    marks = [line for line in difference.lines if line.get_linestyle() == "None"]
    assert marks[0].get_xdata().tolist() == pytest.approx([11, 21] * 3)  # points above 74 %
    assert len(marks) == 2  # not local against itself
    assert len(set(marks[0].get_ydata())) == 3  # a row for each seed


def test_one_seed_has_no_band_and_no_word_of_one(sixty: Comparison) -> None:
    few = sixty._replace(runs=dict(list(sixty.runs.items())[:3]))
    caption = draw(ACCURACY_VS_PARAMETERS, few).caption
    assert "fewer than 3 seeds, so no band" in caption
    assert "interval" not in caption


def test_more_than_eight_methods_have_a_panel_each(sixty: Comparison) -> None:
    figure, caption = draw(ACCURACY_VS_PARAMETERS, sixty)
    assert len(figure.axes) == 60
    assert "A panel for each method" in caption
    colored = [[line for line in axes.lines if line.get_color() not in (GREY, "#777777")] for axes in figure.axes]
    assert all(len(lines) == 1 for lines in colored)


def test_what_is_highlighted_has_its_colour_and_the_others_are_grey(sixty: Comparison) -> None:
    figure, caption = draw(ACCURACY_VS_PARAMETERS, sixty, WIDTHS[1], "pfedpara")
    (axes,) = figure.axes
    assert {line.get_color() for line in axes.lines} == {GREY, "#777777", KNOWN["pfedpara"].color}
    assert "The other methods are grey." in caption
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pfedpara  84.1"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("plot", [ACCURACY_VS_PARAMETERS, ACCURACY_PER_CLIENT], ids=lambda plot: plot.name)
def test_nothing_covers_another_or_is_cut(plot: Plot, width: float, three: Comparison, sixty: Comparison) -> None:
    for comparison, highlight in ((three, ()), (sixty, ()), (sixty, ("pfedpara", HOSTILE[2]))):
        figure = draw(plot, comparison, width, *highlight).figure
        assert figure.get_figwidth() == width
        check_layout(figure)


def test_long_names_keep_both_ends() -> None:
    assert short("fedavg") == "fedavg"
    assert short("pfedpara-gamma=0.1", 9) == "pfed…=0.1"


def test_names_are_not_parsed(sixty: Comparison) -> None:
    assert set(HOSTILE[:2]) < {text.get_text() for text in words_of(draw(ACCURACY_PER_CLIENT, sixty).figure)}


def test_tables_in_latex_hold_names_as_they_are(sixty: Comparison) -> None:
    """LaTeX would obey $, _, #, % and \\, and after a row's end read [ as an option."""
    lines = latex([sixty]).splitlines()
    assert lines[3] == r"\toprule"
    assert any(line.startswith(r"\$x\_1\$ {[}bold{]} & ") for line in lines)
    assert any(line.startswith(r"\textless{}script\textgreater{}alert(1)") for line in lines)
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 61
    assert {row.count(" & ") for row in rows} == {6}
    assert latex_text("-1.2 ± 0.3 & 5 % of {a}\\b") == r"$-$1.2 $\pm$ 0.3 \& 5 \% of \{a\}\textbackslash{}b"


def test_methods_are_chosen_by_name_and_keep_their_differences(three: Comparison) -> None:
    runs = [run for found in three.runs.values() for run in found]
    (chosen,) = compare(runs, None, ["fedavg"])
    assert chosen.table["difference"].to_dict() == pytest.approx({"fedavg": -0.08})
    assert chosen.target == three.target
    assert len(chosen.commands) == 1
    with pytest.raises(ReportError, match="no run is of a method fedagv; there are: fedavg, local, pfedpara"):
        compare(runs, None, ["fedagv"])
