"""How long each client takes for a round, and so who is in time.

By the cost model of ``benchmarks/perf/cost.py``, of one client k, with rates in bytes a second:

    T_k = c · SLOWDOWN · E · samples / SAMPLES  +  b_down / down_k  +  b_up / up_k

c is one client's training for one local epoch on the core that ``benchmarks/perf/cost.yaml`` was measured on, and b
are the bytes of the two messages as the wire counts them, headers included. The server's own link and work are no part
of it. No clock is read.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from baselines.base import Trainer
from benchmarks.federation import codec
from benchmarks.federation.ledger import HEADER_MULTIPLE
from benchmarks.federation.links import Links, draw_links
from benchmarks.federation.names import WEIGHTS
from benchmarks.federation.settings import Settings
from pfedpara.streams import stream_seed

MEASURED = Path(__file__).resolve().parents[1] / "perf" / "cost.yaml"
MODEL, SAMPLES = "mlp", 500  # of what was measured there
SLOWDOWN = 10  # a client's device takes so many times as long as that core
MEGABIT = 1e6 / 8  # bytes


def links_of(settings: Settings) -> Links:
    """Returns the clients' links, the same ones for every method of a seed. Raises ValueError."""
    return draw_links(settings.links, settings.clients, np.random.default_rng(stream_seed("links", settings.seed)))


@cache
def measured() -> dict[str, float]:
    """Returns c by method, in seconds."""
    methods = yaml.safe_load(MEASURED.read_text())["methods"]
    return {name: one["train"] for name, one in methods.items()}


def training_seconds(settings: Settings) -> float:
    """Returns a client's seconds for one sample in all E local epochs. Raises ValueError where c was not measured.

    A method on other weights takes as many times as long as FedAvg does on these.
    """
    c, algo, weights = measured(), settings.algo, settings.parameterization
    own = weights in ("dense", WEIGHTS.get(algo, algo))
    if settings.model != MODEL or algo not in c or weights not in {"dense", *c}:
        raise ValueError(
            f"--deadline-seconds needs the training time of {settings.variant} on {settings.model}, and "
            f"benchmarks/perf/cost.yaml has that of {MODEL} alone, for {', '.join(c)}; take those, or --deadline"
        )
    seconds = c[algo] * (1 if own else c[weights] / c["fedavg"])
    return seconds * SLOWDOWN * settings.hyper["epochs"] / SAMPLES


class Pace:
    """How long each client takes for a round."""

    def __init__(self, settings: Settings, trainer: Trainer, sizes: Sequence[int]) -> None:
        """``sizes``: samples that each client trains on. Raises ValueError as what it calls."""
        if trainer.marks:
            raise ValueError(
                f"--deadline-seconds needs the bytes of an update beforehand, and {settings.variant} chooses what it "
                "sends when it has trained; take another method, or --deadline"
            )
        self.settings, self.trainer = settings, trainer
        self.links = links_of(settings)
        self.compute = training_seconds(settings) * np.array(sizes[: settings.clients])  # (clients,)
        self.known: dict[tuple[str, ...], int] = {}

    def nbytes(self, like: Mapping[str, Tensor], form: str, way: str) -> int:
        """Returns the bytes of the tensors ``like`` on the wire, without a header: packing zeros tells."""
        key = (form, way, *like)
        if like and key not in self.known:
            zeros = torch.zeros(sum(tensor.numel() for tensor in like.values()))
            waiting = self.trainer.feedback if way == "up" else ()
            packed = codec.pack(zeros, zeros, like, form, np.random.default_rng(0), waiting)
            self.known[key] = packed["tensors"].numpy().nbytes
        return self.known[key] if like else 0

    def messages(self, number: int) -> tuple[int, int, int]:
        """Returns the bytes down to who took part in the round before ``number``, to any other, and up; none of none.

        The trainer holds the shared tensors that the round begins with.
        """
        down, up = self.settings.quantize_down, self.settings.uplink
        changed, others = self.trainer.parts(number - 1)
        part, rest = self.nbytes(changed, down, "down"), self.nbytes(others, down, "down")
        bodies = part, part + rest, self.nbytes(self.trainer.changing(number - 1), up, "up")
        return tuple(body and HEADER_MULTIPLE + body for body in bodies)  # type: ignore[return-value]

    def seconds(self, number: int, holders: Collection[int]) -> np.ndarray:
        """Returns the seconds of each client in round ``number``, (clients,).

        ``holders``: those whose update arrived in the round before.
        """
        part, whole, up = self.messages(number)
        down = np.where(np.isin(np.arange(len(self.compute)), list(holders)), part, whole)
        return self.compute + down / (MEGABIT * self.links.down) + up / (MEGABIT * self.links.up)

    def check(self) -> None:
        """Raises ValueError where nobody is in time for the first round."""
        seconds = self.seconds(1, ())[self.compute > 0]
        if len(seconds) and seconds.min() > self.settings.deadline_seconds:
            raise ValueError(
                f"--deadline-seconds {self.settings.deadline_seconds:g}: nobody makes it; the fastest client takes "
                f"{seconds.min():.3g} s for the first round, the median one {np.median(seconds):.3g} s"
            )
