"""Average ranks over all comparisons, and bars over methods that they do not tell apart (Demšar, JMLR 7, 2006)."""

from matplotlib.figure import Figure

from benchmarks.analysis import WIDTHS
from benchmarks.analysis.leaderboard import LEVEL, Leaderboard
from benchmarks.analysis.plots.plot import Drawn, Looks, short

BAR = 0.5
"""Distance of two bars, in rows of names."""


def stack(spans: list[tuple[float, float]]) -> list[int]:
    """Returns a level for each of the spans, ascending by their begin, so that none covers another on its level."""
    ends: list[float] = []
    levels = []
    for begin, end in spans:
        level = next((n for n, last in enumerate(ends) if last < begin), len(ends))
        ends[level : level + 1] = [end]
        levels.append(level)
    return levels


def draw_leaderboard(board: Leaderboard, looks: Looks, width: float) -> Drawn:
    ranks = board.average_ranks
    count = len(ranks)
    left = -(-count // 2)
    spans = [(ranks[group[0]], ranks[group[-1]]) for group in board.groups]
    levels = stack(spans)
    first = 1.3 + BAR * (max(levels, default=-1) + 1)  # the row of the first name; the axis is at 0
    height, top = first + left - 0.2, 2.6
    figure = Figure(figsize=(width, 0.155 * (height + top)))
    axes = figure.add_axes((0, 0, 1, 1))
    named = {method: short(method, 15 if width < WIDTHS[1] else 28) for method in ranks.index}
    names = 0.45 + 0.062 * max(map(len, named.values()))  # inches on either side
    inch = (count - 1) / (width - 2 * names)
    axes.set(xlim=(1 - names * inch, count + names * inch), ylim=(height, -top))
    axes.set_axis_off()
    axes.plot([1, count], [0, 0], color="black", linewidth=0.8)
    step = -(-count // 6)
    for tick in (1, *range(2 * step, count, step), count) if step > 1 else range(1, count + 1):
        axes.plot([tick, tick], [0, -0.3], color="black", linewidth=0.8)
        axes.text(tick, -0.4, f"{tick:.0f}", ha="center", va="bottom", fontsize=7)
    if board.p_value < LEVEL and board.critical_difference <= count - 1:
        end = 1 + board.critical_difference
        axes.plot([1, end], [-1.7, -1.7], color="black", linewidth=0.8, marker="|", markeredgewidth=0.8)
        axes.text(
            end + 0.06 * inch, -1.7, f"critical difference {board.critical_difference:.2f}", va="center", fontsize=7
        )
    for (begin, end), level in zip(spans, levels, strict=True):
        y = 0.6 + BAR * level
        axes.plot([begin - 0.03 * inch, end + 0.03 * inch], [y, y], color="black", linewidth=2.2)
    for position, (method, rank) in enumerate(ranks.items()):
        on_left = position < left
        row = first + (position if on_left else count - 1 - position)
        edge = 1 - 0.08 * inch if on_left else count + 0.08 * inch
        style = looks[method]
        axes.plot([rank, rank, edge], [0, row, row], color=style.color, linewidth=0.8, zorder=1)
        axes.plot([rank], [0], color=style.color, marker=style.marker, zorder=3)
        text = f"{named[method]}  {rank:.1f}" if on_left else f"{rank:.1f}  {named[method]}"
        where = edge - 0.04 * inch if on_left else edge + 0.04 * inch
        axes.text(where, row, text, ha="right" if on_left else "left", va="center", fontsize=7)
    words = f"Average ranks over {len(board.ranks.columns)} comparisons; 1 is best."
    if board.groups:
        words += " A bar joins methods that are not told apart"
        if board.p_value < LEVEL:
            words += f" (Friedman's test, then Nemenyi's at {100 * LEVEL:g} %, corrected for {board.pairs} pairs)."
        else:
            words += f": Friedman's test finds no difference (p = {board.p_value:.2g})."
    elif board.p_value < LEVEL:
        words += f" All methods are told apart (Friedman's test, then Nemenyi's at {100 * LEVEL:g} %)."
    return Drawn(figure, words)
