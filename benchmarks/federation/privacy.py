"""Client-level differential privacy of what the server gives back: clipped updates, equal weights, Gaussian noise.

Round t, with m of N clients drawn without replacement:
    client k:  Δ_k = what it sends − what it received,   Δ_k ← Δ_k · min(1, C / ‖Δ_k‖₂)
    server:    mean ← (1/m) Σ_k (received + Δ_k) + (σ C / m) z,   z ~ N(0, I)
The server then does with the mean what its method says. DP-FedAvg with fixed-size rounds (McMahan, Ramage, Talwar,
Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018, Algorithm 1).

The server is trusted with the updates (central privacy). Two neighbouring federations have N clients each, and differ
in one client's samples, all of them at will (replace one). That moves Σ Δ_k by at most 2C, so that the noise is σ/2
times the sensitivity. ε is dp-accounting's: Rényi privacy of the Gaussian mechanism, sampled without replacement
(Wang, Balle, Kasiviswanathan, "Subsampled Rényi Differential Privacy", AISTATS 2019, Theorem 27).

Deviation: McMahan et al. draw each client on its own (Poisson); the rounds here have a fixed size, as all runs do.
"""

import json
import math
import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.base import Aggregator, Params, Trainer
from benchmarks.federation import files
from benchmarks.federation.participation import able_clients
from benchmarks.federation.settings import Settings
from pfedpara.sharing import learned
from pfedpara.streams import stream_seed

LARGEST = 100.0
"""ε above this promises nothing."""
NAME = "privacy.json"
"""In a run's folder: how many noisy means were made, those included that a stop has undone."""
SUMMED = 4
CHUNK = 1 << 18

Draw = Callable[[int], bytes]
"""Returns so many uniform random bytes."""


def clip(sent: Tensor, received: Tensor, largest: float) -> Tensor:
    """Returns ``sent`` (n,), moved towards ``received`` (n,) until they are at most ``largest`` apart, float32.

    That holds after rounding: the distance of what is returned is measured, exactly but for its sum in float64.
    """
    start = received.double()
    move, factor = sent.double() - start, 1.0
    while (norm := float((sent.double() - start).norm())) > largest:
        factor *= largest / norm * (1 - 1e-7)
        sent = (start + factor * move).float()
    return sent


def normal(count: int, draw: Draw) -> np.ndarray:
    """Returns ``count`` standard normal numbers, float64: Box and Muller's, of uniform numbers with 53 bits.

    Each is half the sum of four: what floating point makes of one normal number tells its neighbours apart, and the sum
    has too many origins for that (Holohan and Braghin, "Secure Random Sampling in Differential Privacy", 2021).
    """
    pairs = -(-SUMMED * count // 2)
    bits = np.frombuffer(draw(16 * pairs), "<u8").reshape(2, pairs) >> 11
    radius = np.sqrt(-2 * np.log((bits[0] + 1.0) * 2.0**-53))  # of uniform numbers in (0, 1]
    angle = 2 * np.pi * 2.0**-53 * bits[1]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[: SUMMED * count].reshape(SUMMED, count).sum(axis=0) / math.sqrt(SUMMED)


@torch.no_grad()
def add_noise(mean: Params, deviation: float, draw: Draw) -> None:
    """Adds noise of that standard ``deviation`` to each number of ``mean``, in place."""
    for tensor in mean.values():
        for part in tensor.view(-1).split(CHUNK):
            part.copy_(part.double() + deviation * torch.from_numpy(normal(part.numel(), draw)))


class Noise:
    """What the server adds to the mean updates of one run. It counts on the disk how often."""

    def __init__(self, settings: Settings, taken: int) -> None:
        """``taken``: the rounds that the run has taken already.

        Raises ValueError where the count of an earlier job is gone, or cannot be that of this run.
        """
        self.settings, self.path = settings, settings.directory / NAME
        self.seeded = settings.dp_seed is not None
        # Who takes part is drawn from this: the accountant's sampling is a secret, and --seed is none.
        self.secret = None if self.seeded else secrets.randbits(128)
        self.first = taken
        self.releases = taken if self.seeded else self.count()

    def count(self) -> int:
        """Returns how many noisy means earlier jobs have made."""
        known = files.read_json(self.path).get("releases") if self.path.exists() else 0
        if not isinstance(known, int) or known < self.first:
            raise ValueError(
                f"{self.path} says {known!r:.20} noisy means after {self.first} rounds, so that ε is not known; "
                "--overwrite runs anew"
            )
        return known

    def add(self, mean: Params, number: int, participants: int) -> None:
        """Adds the noise of round ``number`` to the ``mean`` of so many participants' tensors, in place."""
        s, self.releases = self.settings, self.releases + 1
        draw: Draw = secrets.token_bytes
        if s.dp_seed is not None:
            draw = np.random.default_rng(stream_seed("noise", s.dp_seed, s.seed, number)).bytes
        else:  # before anybody sees it: a job that is killed right after it has spent this as well
            files.write(self.path, json.dumps({"releases": self.releases}).encode())
        add_noise(mean, s.dp_noise * s.dp_clip / participants, draw)


@lru_cache
def epsilon(noise: float, clients: int, participants: int, releases: int, delta: float) -> float:
    """Returns ε after so many ``releases`` of a noisy mean, at ``delta``. Raises ValueError without dp-accounting.

    ``noise``: σ. The sampled bound is not always below that of the same rounds without sampling, which holds as well.
    """
    try:
        from dp_accounting import NeighboringRelation, dp_event, rdp
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"--dp-noise needs the package {missing.name}; pip install -r requirements-privacy.txt"
        ) from None
    gaussian = dp_event.GaussianDpEvent(noise / 2)
    events = [gaussian]
    if participants < clients:
        events.append(dp_event.SampledWithoutReplacementDpEvent(clients, participants, gaussian))
    accountants = [rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE) for _ in events]
    return min(
        float(accountant.compose(event, releases).get_epsilon(delta))
        for accountant, event in zip(accountants, events, strict=True)
    )


def terms(settings: Settings, sizes: Sequence[int]) -> dict[str, Any]:
    """Returns what ε depends on beside the number of releases. ``sizes``: samples that each client trains on."""
    able = len(able_clients(sizes))
    return {
        "noise": settings.dp_noise,
        "clients": able,
        "participants": min(settings.clients_per_round, able),
        "delta": max(able, 1) ** -1.1,
    }


def summarize(settings: Settings, sizes: Sequence[int], noise: Noise | None, diverged: bool) -> dict[str, Any]:
    """Returns what a run says of its privacy. ε is None where nothing is promised.

    That a client ``diverged``, and so ended the run, was told without noise.
    """
    found = terms(settings, sizes) | {"releases": noise.releases if noise else 0}
    private = noise is not None and not noise.seeded and not diverged
    return {
        "epsilon": epsilon(**found) if private else None,
        "private": private,
        **found,
        "clip": settings.dp_clip,
        "neighbours": "replace one client",
    }


def check(settings: Settings, trainer: Trainer, sizes: Sequence[int]) -> None:
    """Raises ValueError where clipping and noise would not cover all that clients send, or ε would say nothing.

    ``sizes``: samples that each client trains on.
    """
    if not settings.dp_clip:
        return
    if trainer.pools:
        raise ValueError("--dp-clip: one place has the samples of all clients, and no client an update; take fedavg")
    if not trainer.travelling:
        raise ValueError("--dp-clip: nothing travels, so that there is nothing to clip; leave it out")
    if trainer.marks:
        raise ValueError("--dp-clip: clients say which numbers they leave out, and that is not clipped; take fedavg")
    sent = trainer.travelling.keys() | trainer.changing(0).keys()  # down and up
    if others := sorted(sent - learned(trainer.shared).keys()):
        what = "running statistics" if others[0] in trainer.shared else "another message"
        raise ValueError(
            f"--dp-clip: {others[0]} travels, {what} beside the parameters, which clipping does not cover; take a "
            "method or model that sends parameters alone, such as fedavg on mlp"
        )
    if trainer.differences:
        raise ValueError("--dp-clip: the method sends factors of an update, not parameters; take fedavg")
    if type(trainer.make_aggregator(settings.clients)).aggregate is not Aggregator.aggregate:
        raise ValueError("--dp-clip: the method's server takes no mean of the updates; take one that does")
    if not settings.dp_noise:
        return
    if (known := terms(settings, sizes))["clients"] < 2:
        raise ValueError("--dp-noise hides one client among others, and a single one has samples; take more --clients")
    if (found := epsilon(**known, releases=settings.rounds)) > LARGEST:
        raise ValueError(
            f"--dp-noise {settings.dp_noise:g}: ε would be {found:.0f} after {settings.rounds} rounds, and above "
            f"{LARGEST:.0f} it promises nothing; take more noise, or fewer --rounds or --clients-per-round"
        )
