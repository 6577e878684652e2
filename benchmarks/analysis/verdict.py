"""What the figures say in a sentence: who leads, who is within the noise, and how far pFedPara is from the best."""

from collections import Counter
from itertools import combinations
from typing import NamedTuple

import numpy as np

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.load import EndedRun
from benchmarks.analysis.statistics import FEWEST, REFERENCE, half_interval, paired_differences
from benchmarks.analysis.tables import percent, with_half

MOST = 8
"""Names that a sentence lists."""


class Gap(NamedTuple):
    """The mean of paired differences in accuracy, a fraction, and half its 95 % interval, NaN below FEWEST pairs."""

    mean: float
    half: float

    @property
    def open(self) -> bool:
        """Whether 0 is within the interval."""
        return self.mean == 0 or abs(self.mean) <= self.half

    @property
    def words(self) -> str:
        return f"{with_half(percent(abs(self.mean)), self.half)} points"


def gap(ours: list[EndedRun], theirs: list[EndedRun]) -> Gap:
    """Returns how far ``ours`` are above ``theirs``, which ran on the same seeds and partitions."""
    differences = paired_differences(ours, theirs)
    return Gap(float(np.mean(differences)), half_interval(differences))


def shorten(names: list[str]) -> list[str]:
    """Returns the names, or where they are too many, the first of them and how many others there are."""
    return names if len(names) <= MOST else [*names[: MOST - 2], f"{len(names) - MOST + 2} others"]


def listed(names: list[str]) -> str:
    names = shorten(names)
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def verdict(comparison: Comparison) -> str:
    """Returns the sentences at the head of a comparison.

    Ranked are the methods that ran on the same seeds and partitions, those of which most did. The intervals are those
    of the paired differences, one by one: they are not corrected for how many there are.
    """
    place = ", ".join(filter(None, (comparison.partition, comparison.apart)))
    if not comparison.runs:
        return f"On {place}, every run diverged."
    ran_on = {method: frozenset(run.partition for run in runs) for method, runs in comparison.runs.items()}
    most, _ = max(Counter(ran_on.values()).items(), key=lambda item: (item[1], len(item[0])))
    runs = {method: found for method, found in comparison.runs.items() if ran_on[method] == most}  # best first
    if len(most) < FEWEST:
        means = [f"{method} ({percent(comparison.table.loc[method, 'accuracy'])} %)" for method in runs]
        count = "one seed is" if len(most) == 1 else "two seeds are"
        order = ", ".join(shorten(means))
        found = f"On {place}, by mean accuracy: {order}; {count} too few for intervals, or to say who leads."
    else:
        found = f"On {place}, {_ranking(comparison, runs)}."
    if others := [method for method in comparison.runs if method not in runs]:
        found += f" Not ranked, for they ran on other seeds or partitions: {listed(others)}."
    return found


def _ranking(comparison: Comparison, runs: dict[str, list[EndedRun]]) -> str:
    best, *others = runs
    if not others:
        return f"{best} reaches {percent(comparison.table.loc[best, 'accuracy'])} %, with nothing to compare it with"
    gaps = {method: gap(runs[best], runs[method]) for method in others}
    leaders = [best, *(method for method in others if gaps[method].open)]
    between = [gap(runs[one], runs[other]) for one, other in combinations(leaders, 2)]
    if not between:
        words = f"{best} leads, {gaps[others[0]].words} ahead of {others[0]}"
    elif all(each.mean == 0 and not each.half > 0 for each in between):
        words = f"{listed(leaders)} lead with the same accuracy"
    elif all(each.open for each in between):
        words = f"{listed(leaders)} lead, within each other's intervals"
    else:
        words = f"{best} leads, and the intervals of {listed(leaders[1:])} reach it"
    if REFERENCE not in runs:
        return words
    traffic = _traffic(comparison, others[0] if best == REFERENCE else best)
    if REFERENCE in gaps and REFERENCE not in leaders:
        return f"{words}; {REFERENCE} is {gaps[REFERENCE].words} behind {traffic}"
    return f"{words}; {REFERENCE} is there {traffic}"


def _traffic(comparison: Comparison, rival: str) -> str:
    """Returns at which share of the ``rival``'s traffic the reference is what it is."""
    columns = comparison.table.loc[[REFERENCE, rival], ["to_model", "transmitted"]].dropna(axis="columns")
    ours, theirs = columns.iloc[:, 0]
    if not theirs:
        return f"and sends {ours:,.0f} parameters, {rival} none"
    return f"at {ours / theirs:.2g} of {rival}'s traffic"
