"""How evenly a figure is spread over the clients, and over groups of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

GROUPS = 10


def gini(values: Sequence[float]) -> float:
    """Returns Gini's coefficient of ``values`` (n,), none negative: Σ_i Σ_j |x_i − x_j| / (2 n² mean).

    0 where all are alike, 1 − 1/n where one has everything, NaN where one is NaN or all are 0.
    """
    x = np.sort(np.asarray(values, float))
    ranks = np.arange(1, len(x) + 1)
    total = x.sum()
    return float((2 * ranks - len(x) - 1) @ x / (len(x) * total)) if total else np.nan


def by_decile(values: Sequence[float], of: Sequence[float]) -> list[float]:
    """Returns the means of ``values`` (n,) over tenths of the clients, from the least of ``of`` (n,) to the greatest.

    Where they do not divide, the first tenths have one client more; below ten clients each is a group of its own.
    """
    order = np.argsort(np.asarray(of), kind="stable")
    groups = np.array_split(np.asarray(values, float)[order], min(GROUPS, len(order)))
    return [float(group.mean()) for group in groups]


def classes_held(counts: np.ndarray) -> np.ndarray:
    """Returns of ``counts`` (clients, classes) the effective number of each client's classes, (clients,): exp of the
    entropy of its labels, n where it holds n classes alike; 0 of no samples.
    """
    totals = counts.sum(axis=1, keepdims=True)
    p = counts / np.maximum(totals, 1)
    entropy = -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(axis=1)
    return np.where(totals[:, 0] > 0, np.exp(entropy), 0.0)


def spread(values: Sequence[float], speed: Sequence[float]) -> dict[str, Any]:
    """Returns Gini's coefficient and the deciles by ``speed`` of one figure per client."""
    return {"gini": gini(values), "by_speed": by_decile(values, speed)}
