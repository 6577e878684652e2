"""Membership inference: was a sample among those that the client trained on?

    loss threshold     −log p of its label, after training: that of members is lower (Yeom et al., CSF 2018)
    likelihood ratio   log p after training − log p before it: members gain more. It needs no shadow models

p is what the shared tensors say, with private tensors at their start.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import auc as area
from sklearn.metrics import roc_curve

from pfedpara.streams import stream_seed

FALSE_POSITIVES = 0.01
RESAMPLES = 200


class Scores(NamedTuple):
    """Of a client: the higher, the more likely a member."""

    members: np.ndarray  # (m,)
    others: np.ndarray  # (n,)


class Found(NamedTuple):
    value: float
    low: float
    high: float  # the 95 % interval


def roc(clients: list[Scores]) -> tuple[float, float]:
    """Returns the area under the ROC curve, and the true-positive rate where at most 1 % of the others pass."""
    scores = np.concatenate([part for each in clients for part in each])
    member = np.concatenate([np.repeat([True, False], [len(each.members), len(each.others)]) for each in clients])
    false, true, _ = roc_curve(member, scores, drop_intermediate=False)
    return float(area(false, true)), float(true[false <= FALSE_POSITIVES].max())


def judge(clients: list[Scores], seed: int) -> tuple[Found, Found]:
    """Returns both figures of ``roc`` with intervals: the bootstrap over clients."""

    def statistic(drawn: np.ndarray) -> np.ndarray:
        return np.array(roc([clients[int(number)] for number in drawn]))

    generator = np.random.default_rng(stream_seed("membership", seed))
    options = {"n_resamples": RESAMPLES, "method": "percentile", "vectorized": False, "rng": generator}
    interval = bootstrap((np.arange(len(clients)),), statistic, **options).confidence_interval
    area_, rate = (Found(*each) for each in zip(roc(clients), interval.low, interval.high, strict=True))
    return area_, rate
