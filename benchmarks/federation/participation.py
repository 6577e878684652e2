"""Who takes part in a round: sampling, and simulated faults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.federation.settings import Settings
from pfedpara.streams import stream_seed


@dataclass(frozen=True)
class Participants:
    """The clients of one round, sorted."""

    drawn: list[int]
    dropped: list[int]  # those that fail in it
    late: list[int]  # those that its deadline shuts out

    @property
    def arriving(self) -> list[int]:
        """Those whose update will count."""
        return [client for client in self.drawn if client not in {*self.dropped, *self.late}]


def draw_participants(
    settings: Settings,
    number: int,
    sizes: Sequence[int],
    secret: int | None = None,
    seconds: np.ndarray | None = None,
) -> Participants:
    """Returns who takes part in round ``number``, counted from 1.

    ``sizes``: samples that each client trains on; who has none takes no part. ``secret``: what is drawn from in place
    of the seed, which anybody may know. ``seconds``, (clients,): what the round takes each, where it closes after
    ``deadline_seconds``.
    """
    able = able_clients(sizes)
    places = sample_clients(
        settings.seed if secret is None else secret, number, len(able), min(settings.clients_per_round, len(able))
    )
    drawn = [able[place] for place in places]
    dropped, late = draw_faults(settings, number, {client: sizes[client] for client in drawn})
    if seconds is not None:
        late = [c for c in drawn if seconds[c] > settings.deadline_seconds and c not in dropped]
    return Participants(drawn, dropped, late)


def able_clients(sizes: Sequence[int]) -> list[int]:
    """Returns the clients that have samples to train on."""
    return [client for client, samples in enumerate(sizes) if samples]


def faulty(settings: Settings) -> bool:
    """Whether a participant can be absent."""
    return bool(settings.dropout or settings.deadline or settings.deadline_seconds)


def sample_clients(seed: int, number: int, clients: int, per_round: int) -> list[int]:
    """Returns the participants of round ``number``, drawn without replacement, sorted."""
    stream = np.random.default_rng(stream_seed("participants", seed, number))
    return sorted(stream.choice(clients, per_round, replace=False).tolist())


def draw_faults(settings: Settings, number: int, samples: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Returns the participants of round ``number`` that fail in it, and those that are later than its deadline.

    ``samples``: of each participant. Each draws from its own stream, keyed by (seed, client, round). It fails with
    probability ``dropout``. Its simulated time is samples × epochs × slowdown, where the slowdown is uniform in [1, 10]
    with probability ``stragglers`` and 1 otherwise; late is who takes more than ``deadline`` times the median over all
    participants (epochs, the same for all, cancel). No clock of a machine is read.
    """
    dropped, times = [], {}
    for client, n in samples.items():
        seed = stream_seed("faults", settings.seed, client, number)
        fails, slow, slowdown = np.random.default_rng(seed).random(3)
        if fails < settings.dropout:
            dropped.append(client)
        times[client] = n * (1 + 9 * slowdown if slow < settings.stragglers else 1)
    limit = settings.deadline * np.median(list(times.values())) if settings.deadline else np.inf
    return dropped, [client for client, taken in times.items() if taken > limit and client not in dropped]
