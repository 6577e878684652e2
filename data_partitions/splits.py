"""In which split each sample is: pure functions of labels, owners and a seeded generator.

`split` divides each client's samples into train, validation and test with the client's own mix of classes.

`set_aside` names the samples that hyper-parameters are tuned on, the same whatever partition and seed. None of them is
ever in a test split: `exchange` sees to it that each client has enough others.
"""

import math
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from data_partitions.errors import DataError

SPLITS = ("train", "validation", "test")
UNUSED = -1
"""In place of a client or a split: this sample takes no part."""


def set_aside(labels: np.ndarray, client: np.ndarray | None, is_test: np.ndarray | None, rng: Generator) -> np.ndarray:
    """Whether each sample is for tuning, bool (n,): half of every natural client's, without any half of every class.

    An odd one is not for tuning. Those of the source's test part never are; the others are halved as if alone.
    """
    group = labels if client is None else client
    shuffled = rng.permutation(len(labels) if is_test is None else np.flatnonzero(~is_test))
    order = shuffled[np.lexsort((labels[shuffled], group[shuffled]))]
    place = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    aside = np.zeros(len(labels), bool)
    aside[order[place % 2 == 1]] = True
    return aside


def exchange(labels: np.ndarray, owner: np.ndarray, testable: np.ndarray, rng: Generator) -> np.ndarray:
    """`owner` after clients exchanged samples within classes, so that each has as many `testable` as `split` takes.

    How many samples of which class a client has stays the same. It gets a fifth of each class, rounded down, in
    testable ones. Those that it lacks then come from the classes that have some, by a maximum flow; all others are
    dealt out at random. Raises DataError where there are not enough.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    clients, present = owner.max() + 1, np.unique(labels)
    column = np.searchsorted(present, labels)
    size = len(present)
    counts = np.bincount(owner * size + column, minlength=clients * size).reshape(clients, size)
    sure = counts // 5  # (clients, classes): testable samples that a client gets at least
    lacking = np.array([_tests(n) for n in counts.sum(axis=1)]) - sure.sum(axis=1)
    # From a source, the last node but one, to the classes, from these to clients, from clients to a sink.
    nodes = size + clients + 2
    left = np.bincount(column[testable], minlength=size) - sure.sum(axis=0)
    taker, giver = np.nonzero(counts > sure)
    room = (counts - sure)[taker, giver]
    starts = np.concatenate([np.full(size, nodes - 2), giver, size + np.arange(clients)])
    ends = np.concatenate([np.arange(size), size + taker, np.full(clients, nodes - 1)])
    capacity = np.concatenate([left, room, lacking])
    starts, ends, capacity = (numbers.astype(np.int32) for numbers in (starts, ends, capacity))  # SciPy < 1.15 insists
    flow = maximum_flow(csr_array((capacity, (starts, ends)), (nodes, nodes)), nodes - 2, nodes - 1)
    if flow.flow_value < lacking.sum():
        raise DataError(
            f"{clients} clients are too many for {len(labels)} samples: half are for tuning alone, and of the others "
            f"not each client has a fifth to be tested on; give fewer clients"
        )
    sure = sure + flow.flow[:size, size:-2].toarray().T
    owner = np.empty_like(owner)
    for number in range(size):
        mine = column == number
        tests = rng.permutation(np.flatnonzero(mine & testable))
        given = sure[:, number].sum()
        rest = rng.permutation(np.concatenate([tests[given:], np.flatnonzero(mine & ~testable)]))
        owner[tests[:given]] = np.repeat(np.arange(clients), sure[:, number])
        owner[rest] = np.repeat(np.arange(clients), counts[:, number] - sure[:, number])
    return owner


def split(
    labels: np.ndarray,
    owner: np.ndarray,
    is_test: np.ndarray | None,
    fraction: float,
    rng: Generator,
    testable: np.ndarray | None = None,
) -> np.ndarray:
    """The split of each sample, int8 (n,): an index into SPLITS, or UNUSED.

    Of a client's n samples, 20 % (rounded, at least one) are test and 10 % (rounded, at least one) validation. They are
    taken at even distances from the samples sorted by class, so a class has within 1 of its share in test, whatever
    its size; a class with one or two samples may be missing from a split. Only `testable` samples (None: all) are test;
    where a class has too few, those of others stand in. Where `is_test` is given, it decides the test split and an
    eighth of the rest is validation. `fraction` of a client's training samples (rounded, at least one) is kept, chosen
    the same way; validation and test do not depend on it.
    """
    testable = np.ones(len(labels), bool) if testable is None else testable
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.lexsort((labels[shuffled], owner[shuffled]))]
    part = np.full(len(labels), UNUSED, np.int8)
    starts = np.searchsorted(owner[order], np.arange(owner.max() + 2))
    for start, end in pairwise(starts):
        mine = order[start:end]
        if is_test is None:
            tested = np.zeros(len(mine), bool)
            tested[_stratified(labels[mine], testable[mine], _tests(len(mine)))] = True
            validation = max(1, _rounded(len(mine), 0.1))
        else:
            tested = is_test[mine]
            validation = max(1, _rounded((~tested).sum(), 0.125))
        rest = mine[~tested]
        held = rest[_spread(len(rest), validation)]
        part[mine] = SPLITS.index("train")
        part[held] = SPLITS.index("validation")
        part[mine[tested]] = SPLITS.index("test")
        train = mine[part[mine] == SPLITS.index("train")]
        part[train] = UNUSED
        part[train[_spread(len(train), max(1, _rounded(len(train), fraction)))]] = SPLITS.index("train")
    return part


def _rounded(count: int, share: float) -> int:
    """`count`·`share`, halves up: Python's own rounding to even would favour some sizes."""
    return math.floor(count * share + 0.5)


def _spread(count: int, chosen: int) -> np.ndarray:
    """`chosen` positions out of `count` at even distances, in integers so that every machine finds the same ones."""
    return (2 * np.arange(chosen) + 1) * count // (2 * max(chosen, 1))


def _tests(count: int) -> int:
    """How many of a client's `count` samples are test."""
    return max(1, _rounded(count, 0.2))


def _stratified(labels: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` allowed samples (all, if fewer) at even distances, as far as their classes have some.

    labels: sorted.
    """
    wanted = _spread(len(labels), count)
    start = np.searchsorted(labels, labels[wanted])
    size = np.searchsorted(labels, labels[wanted], side="right") - start
    before = np.concatenate([[0], np.cumsum(allowed)])
    there = before[start + size] - before[start]  # allowed ones of the class
    chosen = np.unique((before[start] + (wanted - start) * there // size)[there > 0])
    others = np.setdiff1d(np.arange(before[-1]), chosen)
    chosen = np.concatenate([chosen, others[_spread(len(others), min(count - len(chosen), len(others)))]])
    return np.flatnonzero(allowed)[chosen]
