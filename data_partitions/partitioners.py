"""Who owns which sample: pure functions of labels and a seeded generator.

A partitioner returns `owner`, the client of each sample, so that no sample can have two clients.

As published: iid and shards in McMahan et al. 2017, section 3; dirichlet in Yurochkin et al. 2019 and Hsu et al. 2019;
classes and quantity in Li et al. 2022 (NIID-Bench), section 4. Sizes, classes per client and label distances of iid,
dirichlet, shards and classes agree with those of flwr-datasets 0.6.1, which draws again until clients are large enough.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from data_partitions.errors import DataError
from data_partitions.splits import SPLITS, UNUSED

MINIMUM = 10
"""Fewest samples a client gets from `dirichlet` and `quantity` where there are enough: NIID-Bench's value."""


def iid(labels: np.ndarray, clients: int, _: None, rng: Generator) -> np.ndarray:
    """Owners of samples dealt out at random; the sizes of clients differ by at most one."""
    return rng.permutation(np.arange(len(labels)) * clients // len(labels))


def dirichlet(labels: np.ndarray, clients: int, alpha: float, rng: Generator) -> np.ndarray:
    """Owners after every class is shared out by its own draw from a symmetric Dirichlet(α) over clients."""
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = rng.permutation(np.flatnonzero(labels == label))
        owner[mine] = _shares(len(mine), clients, alpha, rng)
    return _top_up(owner, clients, rng)


def quantity(labels: np.ndarray, clients: int, alpha: float, rng: Generator) -> np.ndarray:
    """Owners after one draw from Dirichlet(α) fixed the clients' sizes; the class mix stays that of the whole."""
    return _top_up(rng.permutation(_shares(len(labels), clients, alpha, rng)), clients, rng)


def shards(labels: np.ndarray, clients: int, per_client: int, rng: Generator) -> np.ndarray:
    """Owners of equal shards of the samples sorted by label, `per_client` shards each.

    Raises DataError where the shards do not divide the samples. A shard may straddle two classes.
    """
    count = clients * per_client
    if len(labels) % count:
        fits = [k for k in range(1, len(labels) // clients + 1) if len(labels) % (clients * k) == 0]
        near = sorted(sorted(fits, key=lambda k: abs(k - per_client))[:3])
        raise DataError(
            f"shards:{per_client} with {clients} clients is {count} shards, which do not divide {len(labels)} samples; "
            + (f"per client {' or '.join(map(str, near))} would" if near else "no number would, so change the clients")
        )
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.empty(len(labels), np.int64)
    owner[by_label] = np.repeat(rng.permutation(count) // per_client, len(labels) // count)
    return owner


def classes(labels: np.ndarray, clients: int, per_client: int, rng: Generator) -> np.ndarray:
    """Owners where each client has exactly `per_client` classes and each class is shared evenly by those who have it.

    Every client takes the classes that the fewest have taken so far, ties at random. Raises DataError where a client
    cannot have that many classes, a class would have no client, or fewer samples than clients.
    """
    present = np.unique(labels)
    if not len(present) <= clients * per_client or per_client > len(present):
        raise DataError(
            f"classes:{per_client} with {clients} clients cannot cover {len(present)} classes; "
            f"per client {math.ceil(len(present) / clients)} to {len(present)} classes would"
        )
    taken = np.zeros(len(present), np.int64)
    has = np.zeros((clients, len(present)), bool)
    for row in has:
        order = rng.permutation(len(present))
        chosen = order[np.argsort(taken[order], kind="stable")[:per_client]]
        row[chosen] = True
        taken[chosen] += 1
    owner = np.empty(len(labels), np.int64)
    for column, label in enumerate(present):
        mine = rng.permutation(np.flatnonzero(labels == label))
        holders = np.flatnonzero(has[:, column])
        if len(mine) < len(holders):
            raise DataError(
                f"classes:{per_client} with {clients} clients shares class {label} among {len(holders)} clients, "
                f"but it has {len(mine)} samples; fewer clients would do"
            )
        owner[mine] = holders[np.arange(len(mine)) * len(holders) // len(mine)]
    return owner


def natural(client: np.ndarray, is_test: np.ndarray | None, clients: int | None) -> np.ndarray:
    """Owners as the data set names them: those `clients` natural clients that have most samples (None: all).

    Clients keep the source's order. Too small to take part: under three samples, or where the source divides train from
    test, under two to train on or none to test on. Raises DataError where fewer clients than asked for remain.
    """
    size = np.bincount(client)
    if is_test is None:
        usable = size >= len(SPLITS)
    else:
        tests = np.bincount(client[is_test], minlength=len(size))
        if is_test.any() and not is_test.all() and not ((tests > 0) & (size > tests)).any():
            raise DataError(
                "the data set is split by user, so that no client has both train and test samples; split it by sample "
                "(LEAF: -t sample), or choose another partition than 'natural'"
            )
        usable = (tests >= 1) & (size - tests >= 2)
    available = int(usable.sum())
    if available < (clients or 1):
        right = f"ask for 1 to {available}" if available else "choose another partition than 'natural'"
        raise DataError(
            f"{clients or 1} natural clients asked for, but the data set has {available} with samples for every split; "
            f"{right}"
        )
    largest = np.argsort(np.where(usable, -size, 1), kind="stable")[: clients or available]
    number = np.full(len(size), UNUSED, np.int64)
    number[np.sort(largest)] = np.arange(len(largest))
    return number[client]


def draw_last(owner: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """`owner` after `count` clients, drawn at random, became the last ones; the order of each kind stays."""
    clients = owner.max() + 1
    drawn = np.zeros(clients, bool)
    drawn[rng.choice(clients, count, replace=False)] = True
    number = np.argsort(np.argsort(drawn, kind="stable"))
    return np.where(owner >= 0, number[owner], owner)


def _shares(count: int, clients: int, alpha: float, rng: Generator) -> np.ndarray:
    """(count,) clients in ascending order, each as often as its share of a draw from Dirichlet(α)."""
    # Beyond these bounds NumPy's draws overflow; there the shares are equal, or one client's, to all digits anyway.
    ends = np.cumsum(rng.dirichlet(np.full(clients, np.clip(alpha, 1e-300, 1e300))))[:-1] * count
    return np.searchsorted(ends.astype(np.int64), np.arange(count), side="right")


def _top_up(owner: np.ndarray, clients: int, rng: Generator) -> np.ndarray:
    """`owner` after the largest clients, one random sample at a time, gave to those below the minimum.

    Drawing again until all are large enough, as is common, may never end and gives another distribution than asked for.
    """
    size = np.bincount(owner, minlength=clients)
    missing = np.maximum(min(MINIMUM, len(owner) // clients) - size, 0)
    shuffled = rng.permutation(len(owner))
    by_client = shuffled[np.argsort(owner[shuffled], kind="stable")]
    place = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
    given = by_client[np.argsort(-place, kind="stable")[: missing.sum()]]
    owner[given] = np.repeat(np.arange(clients), missing)
    return owner


class Partition(NamedTuple):
    """A parsed partition: `assign(labels, clients, parameter, rng)`, or None for `natural`."""

    spec: str
    assign: Callable[[np.ndarray, int, float | int | None, Generator], np.ndarray] | None
    parameter: float | int | None


_FORMS: dict[str, tuple[Callable | None, type[int] | type[float] | None]] = {
    "iid": (iid, None),
    "dirichlet": (dirichlet, float),
    "shards": (shards, int),
    "classes": (classes, int),
    "quantity": (quantity, float),
    "natural": (None, None),
}
FORMS = [name + {None: "", float: ":ALPHA", int: ":K"}[kind] for name, (_, kind) in _FORMS.items()]


def parse(spec: str) -> Partition:
    """The partition that `spec` names, its spec in canonical form ("dirichlet:.50" is "dirichlet:0.5").

    Raises DataError for an unknown name, a missing or unexpected parameter, α not in (0, ∞) or K not in 1, 2, ….
    """
    name, colon, text = spec.partition(":")
    if name not in _FORMS:
        raise DataError(f"partition {spec!r} is unknown; choose one of {', '.join(FORMS)}")
    assign, kind = _FORMS[name]
    if kind is None:
        if colon:
            raise DataError(f"partition {spec!r} has a parameter; write {name!r}")
        return Partition(name, assign, None)
    try:
        parameter = kind(text)
    except ValueError:
        parameter = 0
    if not (0 < parameter < math.inf):
        right = "ALPHA is a number above 0" if kind is float else "K is a whole number from 1"
        raise DataError(f"partition {spec!r} is malformed; in {name}:{'ALPHA' if kind is float else 'K'}, {right}")
    return Partition(f"{name}:{parameter}", assign, parameter)
