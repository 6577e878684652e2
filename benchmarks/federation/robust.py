"""What stands for the clients in place of their mean, so that a few of them cannot move it at will.

    median      of each number the median; of an even count the mean of the two in the middle
    trimmed:F   of each number the mean without its F largest and F smallest
                (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, Definitions 1 and 2)
    krum:F      the update with the least sum of squared distances to its n − F − 2 nearest
                (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NIPS 2017)

Every update counts alike: a weight by samples would be the client's own word for how far it moves the result.
Written here: ByzFL's functions are no shorter to call, know no needs, and bring seaborn and networkx along.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

MEAN = "mean"


class Rule(NamedTuple):
    """``of`` takes the updates (n, size), float32, and returns (size,); n is at least ``needs``."""

    of: Callable[[np.ndarray], np.ndarray]
    needs: int


def middle(updates: np.ndarray, cut: int) -> np.ndarray:
    """Returns of each column the mean without the ``cut`` largest and smallest; NaN counts as largest."""
    return np.sort(updates, axis=0)[cut : len(updates) - cut].mean(axis=0)  # (size,)


def median(updates: np.ndarray) -> np.ndarray:
    return middle(updates, (len(updates) - 1) // 2)


def krum(updates: np.ndarray, wrong: int) -> np.ndarray:
    """Returns the row that is nearest to the others, of which ``wrong`` may be anything; of equal ones the first."""
    n = len(updates)
    distances = np.zeros((n, n))
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(n):
            for j in range(i):
                distances[i, j] = distances[j, i] = np.square(updates[i] - updates[j]).sum(dtype=float)
    np.nan_to_num(distances, copy=False, nan=np.inf, posinf=np.inf)
    nearest = np.sort(distances, axis=1)[:, 1 : n - wrong - 1]  # (n, n − F − 2); the first is its own, 0
    return updates[nearest.sum(axis=1).argmin()]


FORMS = {"median": "median", "trimmed": "trimmed:F", "krum": "krum:F"}


def parse(spec: str) -> tuple[str, Rule | None]:
    """Returns the canonical spelling of a rule, and the rule; None for ``MEAN``. F is 1 by default.

    Raises ValueError.
    """
    name, colon, text = spec.partition(":")
    if spec == MEAN:
        return spec, None
    if name not in FORMS:
        raise ValueError(f"--aggregate: no {spec!r:.40}; there are {MEAN}, {', '.join(FORMS.values())}")
    if name == "median":
        if colon:
            raise ValueError(f"--aggregate: {spec!r:.40} has a number, and median takes none")
        return name, Rule(median, 1)
    wrong = int(text) if text.isdecimal() else 0 if colon else 1
    if wrong < 1:
        raise ValueError(
            f"--aggregate: {spec!r:.40} is not right; what follows {name}: is how many clients may be wrong, from 1 on"
        )
    if name == "trimmed":
        return f"{name}:{wrong}", Rule(partial(middle, cut=wrong), 2 * wrong + 1)
    return f"{name}:{wrong}", Rule(partial(krum, wrong=wrong), 2 * wrong + 3)
