"""What a round costs, as a sum: compute + serialise + transfer + wait.

For K participants, each of which sends and receives b bytes, on W workers that share C cores:

    T = c · K / min(W, C)   compute: c seconds of one client's training on one core
      + 2 K · s · b         serialise: what the server does for each byte it sends or receives
      + 2 K · b / B         transfer: the server's link carries B bytes a second
      + w                   wait: what a round takes without any work

``python -m benchmarks.perf.runtime --record`` fits s and w to its measurements. They are in ``cost.yaml``, with each
method's c.
Within a host there is no link: 1/B = 0. Elsewhere the same s and w are assumed, and nothing overlaps, so a figure is an
upper bound of what the model knows; it knows nothing of stragglers and lost packets.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy  # which imports its parts when they are needed: a report fits nothing
import yaml

RECORDED = Path(__file__).with_name("cost.yaml")
GIGABIT, MEGABIT = 1e9 / 8, 1e6 / 8  # bytes a second
MODEL, SAMPLES, BATCH = "mlp", 500, 32  # what a client of perf.py trains, for one local epoch on 28 × 28 pixels


class Cost(NamedTuple):
    """The seconds of a round by what takes them."""

    compute: float
    serialise: float
    transfer: float
    wait: float

    @property
    def total(self) -> float:
        return sum(self)


class Constants(NamedTuple):
    """What perf.py measured."""

    serialise: float  # s, seconds a byte
    wait: float  # w, seconds a round


def recorded() -> tuple[Constants, dict[str, float]] | None:
    """Returns the constants of the recorded run of perf.py and c by method, None where no run is recorded."""
    if not RECORDED.exists():
        return None
    return _parse(RECORDED.read_text())


@cache
def _parse(text: str) -> tuple[Constants, dict[str, float]]:
    found = yaml.safe_load(text)
    return Constants(**found["constants"]), {name: one["train"] for name, one in found["methods"].items()}


def fit(
    rounds: dict[int, float], exchanges: dict[int, float], clients: int, bytes_each_way: int, cores: int
) -> tuple[Constants, float]:
    """Returns the constants and c, the seconds of one client's training, by least squares; none is negative.

    ``rounds``: seconds of a round of so many ``clients`` by the number of workers; ``exchanges``: seconds to send n
    parameters to ``clients`` ranks and to receive them back, by n.
    """
    sent = np.array([2 * clients * 4 * n for n in exchanges], float)  # bytes
    weights = 1 / np.array([*exchanges.values()])  # relative errors count, so that the largest does not decide alone
    design = np.stack([sent, np.ones_like(sent)], 1) * weights[:, None]
    serialise = float(np.linalg.lstsq(design, np.ones_like(sent), rcond=None)[0][0])
    turns = np.array([clients / min(workers, cores) for workers in rounds])
    rest = np.array([*rounds.values()]) - 2 * clients * bytes_each_way * serialise
    (compute, wait), _ = scipy.optimize.nnls(np.stack([turns, np.ones_like(turns)], 1), rest)
    return Constants(serialise, float(wait)), float(compute)


def local_round(constants: Constants, train: float, participants: int, sent: float, parallel: int) -> Cost:
    """A round on one host: ``train`` seconds a client, ``sent`` bytes each way, so many clients at the same time.

    Where a client sends and receives different amounts, ``sent`` is their mean, here and below: only the sum counts.
    """
    compute = train * participants / min(parallel, participants)
    return Cost(compute, 2 * participants * sent * constants.serialise, 0.0, constants.wait)


def cluster_round(
    constants: Constants, train: float, sent: float, ranks: int = 100, link: float = 10 * GIGABIT
) -> Cost:
    """A round of one client on each of ``ranks`` ranks with a core of their own; the server's ``link`` carries all."""
    local = local_round(constants, train, ranks, sent, ranks)
    return local._replace(transfer=2 * ranks * sent / link)


def phones_round(
    constants: Constants, train: float, sent: float, phones: int = 10_000, up: float = 10 * MEGABIT
) -> Cost:
    """A round of ``phones``, each as fast as the core measured on; down as slow as ``up``, the server at 10 Gb/s."""
    cluster = cluster_round(constants, train, sent, phones)
    return cluster._replace(transfer=cluster.transfer + 2 * sent / up)
