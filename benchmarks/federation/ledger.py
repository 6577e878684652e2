"""What federated learning put on the wire: parameters and bytes, per direction, client and round.

A transport writes an entry where it hands a message that carries tensors to MPI. Messages without tensors are the
harness talking to itself (start a round, report figures) and do not count; neither does the copy of the new aggregate
that is sent for evaluation only, which no deployment would send. A client's private state that goes from one rank to
another, because that rank simulates the client next, is kept apart as "move": it depends on the number of ranks.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

HEADER_MULTIPLE = 256  # bytes; the header of a message that carries tensors fits into one


class Entry(NamedTuple):
    round: int
    client: int
    direction: str  # "up" or "down"; "move" between ranks of the simulation
    parameters: int
    bytes: int  # header included


class Ledger:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def take(self) -> list[Entry]:
        """Returns the entries so far and starts anew."""
        taken, self.entries = self.entries, []
        return taken


def totals(entries: Iterable[Entry], ways: tuple[str, ...] = ("up", "down")) -> dict[str, int]:
    """Returns the sums ``parameters_…`` and ``bytes_…`` of the entries in each of these directions."""
    sums = {f"{unit}_{way}": 0 for unit in ("parameters", "bytes") for way in ways}
    for entry in entries:
        if entry.direction in ways:
            sums[f"parameters_{entry.direction}"] += entry.parameters
            sums[f"bytes_{entry.direction}"] += entry.bytes
    return sums


MOVED = ("move",)


@dataclass
class Traffic:
    sent: dict[str, int] = field(default_factory=lambda: totals([]))
    moved: dict[str, int] = field(default_factory=lambda: totals([], MOVED))
    to_model: dict[str, int] = field(default_factory=lambda: {"parameters": 0, "bytes": 0})
    """To be sent until the models that were judged last are on the clients."""
    uplink: dict[str, int] = field(default_factory=lambda: totals([], ("up",)))  # of the newest round

    def add(self, entries: Collection[Entry], newest: int) -> None:
        """Adds up what was sent since the last call; ``newest`` is the round just taken."""
        for sums, ways in ((self.sent, ("up", "down")), (self.moved, MOVED)):
            for key, value in totals(entries, ways).items():
                sums[key] += value
        self.uplink = totals((entry for entry in entries if entry.round == newest), ("up",))


def traffic_to_model(sent: Mapping[str, int], uplink: Mapping[str, int], downlinks: Iterable[Entry]) -> dict[str, int]:
    """Returns the ``parameters`` and ``bytes`` to be sent until the models judged after a round are on the clients.

    ``sent``: totals through that round. ``uplink``: totals of its updates. ``downlinks``: the message that would bring
    the new aggregate to each client that is judged on what it receives. These messages count as if they had been sent.
    Without any, every client is judged on what it has trained, and does not need the round's updates.
    """
    more = totals(downlinks, ("down",))
    return {
        unit: sent[f"{unit}_up"] + sent[f"{unit}_down"] + (more[f"{unit}_down"] or -uplink[f"{unit}_up"])
        for unit in ("parameters", "bytes")
    }
