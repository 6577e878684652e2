"""The methods ranked over all comparisons, and which of them the ranks tell apart.

Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006): Friedman's test over the
comparisons, and Nemenyi's, which corrects for the number of pairs.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # which imports its parts when they are needed: one comparison needs no test

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.tables import NONE, percent

LEVEL = 0.05
"""Of both tests."""


class Leaderboard(NamedTuple):
    """N comparisons, and the k methods that all of them hold."""

    scores: pd.DataFrame  # a row a method, a column a comparison's title: accuracy, a fraction; NaN where it diverged
    ranks: pd.DataFrame  # the same, of the k methods: 1 is best; methods that tie share the mean of their ranks
    missing: dict[str, list[str]]  # the titles that lack a method, of each method that is not in all
    p_value: float  # Friedman's; NaN for fewer than two comparisons or three methods
    critical_difference: float  # of two average ranks, Nemenyi's; NaN as p_value
    groups: list[list[str]]  # methods that are not told apart, each group best first and none inside another
    datasets: list[str]  # of each comparison

    @property
    def average_ranks(self) -> pd.Series:
        """Of the k methods, best first."""
        return self.ranks.mean(axis=1).sort_values(kind="stable")

    @property
    def figures(self) -> pd.DataFrame:
        """A row a method: average_rank, mean_accuracy (a fraction), and rank and accuracy in each comparison."""
        columns = {"average_rank": self.average_ranks, "mean_accuracy": self.scores.mean(axis=1, skipna=False)}
        for title in self.scores:
            columns |= {f"rank: {title}": self.ranks[title], f"accuracy: {title}": self.scores[title]}
        return pd.DataFrame(columns).reindex(self.scores.index).rename_axis("method")

    @property
    def pairs(self) -> int:
        """The comparisons of two methods that Nemenyi's test corrects for."""
        return math.comb(len(self.ranks), 2)


def critical_difference(methods: int, comparisons: int) -> float:
    """Returns q √(k (k + 1) / 6N), q the Studentized range's quantile at infinite degrees of freedom over √2."""
    quantile = scipy.stats.studentized_range.ppf(1 - LEVEL, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * comparisons)))


def find_groups(ranks: pd.Series, difference: float) -> list[list[str]]:
    """Returns the largest groups of neighbours in ``ranks`` (ascending) that are less than ``difference`` apart."""
    groups: list[list[str]] = []
    reached = 0
    for begin in range(len(ranks)):
        end = int(np.searchsorted(ranks, ranks.iloc[begin] + difference))
        if end > reached and end - begin > 1:
            groups.append(list(ranks.index[begin:end]))
            reached = end
    return groups


def rank(comparisons: list[Comparison]) -> Leaderboard | None:
    """Ranks the methods by their accuracy to a tenth of a point, or returns None where no two comparisons share two.

    A method that diverged with every seed comes last. Comparisons of fewer than two methods rank nothing and do not
    count; nor does a method that one of the others lacks.
    """
    ranked = [each for each in comparisons if len(each.table) > 1]
    tables = {each.title: each.table["accuracy"] for each in ranked}
    scores = pd.DataFrame(tables)
    missing = {
        method: lacking
        for method in scores.index
        if (lacking := [title for title, table in tables.items() if method not in table.index])
    }
    full = scores.drop(index=list(missing))
    if len(tables) < 2 or len(full) < 2:
        return None
    ranks = full.apply(lambda column: scipy.stats.rankdata(-column.round(3).fillna(-1)))
    p_value = difference = math.nan
    groups: list[list[str]] = []
    average = ranks.mean(axis=1).sort_values(kind="stable")
    if len(full) > 2 and (ranks.nunique() > 1).any():
        p_value = float(scipy.stats.friedmanchisquare(*ranks.to_numpy()).pvalue)
        difference = critical_difference(*ranks.shape)
        groups = find_groups(average, difference) if p_value < LEVEL else [list(average.index)]
    order = [*average.index, *sorted(missing)]
    datasets = [each.dataset for each in ranked]
    return Leaderboard(scores.loc[order], ranks.loc[order[: len(full)]], missing, p_value, difference, groups, datasets)


def explain(board: Leaderboard) -> list[str]:
    """Returns sentences: what the test says, what it corrects for, and what is left out or counts with a caveat."""
    count, methods = len(board.scores.columns), len(board.ranks)
    words = [f"{methods} methods over {count} comparisons."]
    if math.isnan(board.p_value):
        words.append("No test: it takes three methods that are not all alike.")
    elif board.p_value >= LEVEL:
        words.append(f"Friedman's test finds no difference between the average ranks (p = {board.p_value:.2g}).")
    else:
        words.append(
            f"Friedman's test finds a difference (p = {board.p_value:.2g}). Two methods are told apart where their "
            f"average ranks differ by {board.critical_difference:.2f} or more "
            f"(Nemenyi's test at {100 * LEVEL:g} %, corrected for {board.pairs} pairs)."
        )
        if board.critical_difference > methods - 1:
            words.append("So few comparisons tell no two methods apart, whatever their ranks.")
    if repeated := [f"{name} ({n})" for name, n in Counter(board.datasets).items() if n > 1]:
        words.append(
            f"The test takes comparisons as independent; those on the same data are not: {', '.join(repeated)}."
        )
    lost = board.scores.loc[board.ranks.index].isna()
    if diverged := [f"{method} ({'; '.join(lost.columns[row])})" for method, row in lost.iterrows() if row.any()]:
        words.append(f"Ranked last where every seed diverged: {', '.join(diverged)}.")
    left_out: dict[str, list[str]] = {}
    for method, titles in sorted(board.missing.items()):
        left_out.setdefault("; ".join(titles), []).append(method)
    words += [f"Not ranked, for missing on {where}: {', '.join(names)}." for where, names in left_out.items()]
    return words


def wording_of_leaderboard(board: Leaderboard) -> pd.DataFrame:
    """Returns the leaderboard as a person reads it: in each comparison the rank, and the accuracy in brackets."""
    table: dict[str, list[str]] = {"method": list(board.scores.index)}
    places = {title: find_places(board.ranks[title]) for title in board.ranks}
    overall = find_places(board.average_ranks.rank())
    table["place"] = [overall.get(method, NONE) for method in table["method"]]
    averages, means = board.average_ranks, board.scores.mean(axis=1, skipna=False)
    table["average rank"] = [f"{averages[method]:.1f}" if method in averages else NONE for method in table["method"]]
    table["mean accuracy %"] = [percent(means[method]) for method in table["method"]]
    for title, scores in board.scores.items():
        table[f"{title}: rank (accuracy %)"] = [
            NONE
            if title in board.missing.get(method, ())
            else f"{places[title].get(method, NONE)} ({'diverged' if np.isnan(score) else percent(score)})"
            for method, score in scores.items()
        ]
    return pd.DataFrame(table)


def find_places(ranks: pd.Series) -> dict[str, str]:
    """Returns each method's rank in words, those that tie as the span that they share, such as "2–3"."""
    sharing = ranks.map(ranks.value_counts())
    first, last = ranks - (sharing - 1) / 2, ranks + (sharing - 1) / 2
    return {
        method: f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"
        for method, low, high in zip(ranks.index, first, last, strict=True)
    }
