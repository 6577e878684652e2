"""Who trains which client, and when: a plan by the speed that each worker has shown, mended while the round lasts.

FedML's ``fedml.core.schedule`` plans by speed as well. It knows nothing of states that lie with a worker, and what it
has planned stays.
"""

import os
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

AHEAD = 2  # clients a worker has been sent and not yet answered: one trains, one waits
HELD = 32e6  # bytes of updates that may wait for their turn in the sum, where more clients than the workers' fit in
PATIENCE = 1.05  # a state moves where the round would else last so many times as long
MOVE = 3e-9  # seconds a byte of a state takes from one worker to another: four copies and a message
MEMORY = 0.9  # what a measured second counts after another client, in parts
GUESS = 1e-4  # seconds a sample before anything is measured; only ratios count then

Shares = dict[int, list[int]]
"""Clients by worker."""


def cores() -> dict[str, Any]:
    """Returns the host that this process is on, and which cores it may use."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {"host": socket.gethostname(), "cores": sorted(own)}


class Speeds:
    """How long each worker takes for a sample, and which of them train at the same time: one a core."""

    def __init__(self, workers: Iterable[int]) -> None:
        self.workers = list(workers)
        self.active = self.workers  # those that train
        self.hosts: dict[str, tuple[list[int], set[int]]] = {}  # the workers of each, and the cores that they may use
        self.measured = dict.fromkeys(self.workers, (0.0, 0.0))  # seconds and samples

    def join(self, worker: int, host: str, cores: Collection[int]) -> None:
        """Takes in where a worker is."""
        workers, usable = self.hosts.setdefault(host, ([], set()))
        if worker not in workers:
            workers.append(worker)
        usable.update(cores)

    def measure(self, worker: int, seconds: float, samples: int) -> None:
        """Takes in that ``worker`` took so long for a client of so many samples."""
        if not samples:
            return
        before, so_far = self.measured[worker]
        self.measured[worker] = MEMORY * before + seconds, MEMORY * so_far + samples

    def pace(self, worker: int) -> float:
        """Returns its seconds a sample; where it has not been measured, the mean of those that have."""
        seconds, samples = self.measured[worker]
        if not samples:
            seconds, samples = map(sum, zip(*self.measured.values(), strict=True))
        return seconds / samples if samples else GUESS

    @property
    def paces(self) -> dict[int, float]:
        """``pace`` of each worker that trains."""
        return {worker: self.pace(worker) for worker in self.active}

    def choose(self, threads: int) -> None:
        """Lets the quickest workers of each host train, as many as its cores carry; more would share a core.

        One takes another's place only if it is quicker by a quarter, since states would move.
        """
        before = set(self.active)

        def rank(worker: int) -> tuple[float, int]:
            return self.pace(worker) * (1 if worker in before else 1.25), worker

        chosen = [sorted(own, key=rank)[: max(1, len(usable) // threads)] for own, usable in self.hosts.values()]
        self.active = sorted(worker for own in chosen for worker in own) or self.workers


def place(
    sizes: Mapping[int, int], home: Mapping[int, int], paces: Mapping[int, float], limit: float
) -> tuple[Shares, float]:
    """Returns each worker's clients and the longest time: each client in turn to its home, or where it ends first.

    ``sizes``: samples of each client, in turn. ``paces``: seconds a sample of each worker. A client goes to its
    ``home`` unless that brings it above ``limit`` seconds.
    """
    clients: Shares = {worker: [] for worker in paces}
    load = dict.fromkeys(paces, 0.0)
    for client, size in sizes.items():
        worker = home.get(client, -1)
        if worker not in paces or load[worker] + size * paces[worker] > limit:
            worker = min(paces, key=lambda each: load[each] + size * paces[each])
        clients[worker].append(client)
        load[worker] += size * paces[worker]
    return clients, max(load.values())


def balance(
    sizes: Mapping[int, int], home: Mapping[int, int], paces: Mapping[int, float], patience: float = 1, move: float = 0
) -> Shares:
    """Returns each worker's clients. They stay at home where that makes nobody much later than if none had one.

    Much is ``patience`` times as late, or later by ``move`` seconds.
    """
    _, least = place(sizes, {}, paces, 0)
    return place(sizes, home, paces, max(patience * least, least + move))[0]


def largest_first(sizes: Mapping[int, int]) -> dict[int, int]:
    return dict(sorted(sizes.items(), key=lambda one: (-one[1], one[0])))


class Plan:
    """One round: what each worker has still to train, and what it has been sent.

    A worker that runs out takes over from the one that will be last, if it is done sooner.
    """

    def __init__(
        self,
        speeds: Speeds,
        sizes: Mapping[int, int],
        home: Mapping[int, int],
        with_state: Collection[int] = (),
        update_bytes: int = 0,
        state_bytes: int = 0,
    ) -> None:
        """``sizes``: samples of each participant, in the order of the sum; 0 of one that does not train.

        ``home``: where each was trained last. There lies its state, if it is one of those ``with_state``.
        """
        self.speeds, self.sizes, self.with_state = speeds, sizes, with_state
        self.move_seconds = MOVE * state_bytes
        self.order, self.turn = list(sizes), 0  # ``turn``: the first in it that has not answered
        self.position = {client: position for position, client in enumerate(self.order)}
        self.answered: set[int] = set()
        self.window = max(AHEAD * len(speeds.active), int(HELD // update_bytes) if update_bytes else len(sizes))
        in_turn = sizes if self.window < len(sizes) else largest_first(sizes)
        self.unsent: Shares = balance(in_turn, home, speeds.paces, PATIENCE, self.move_seconds)
        self.sent: Shares = {worker: [] for worker in speeds.active}
        self.begun = dict.fromkeys(speeds.active, 0.0)  # when a worker began with the first that it has been sent
        self.at = {client: worker for worker, own in self.unsent.items() for client in own}
        self.moving = {c: home[c] for c in with_state if home[c] != self.at[c]}  # to where they are now, from where

    def next(self, worker: int, now: float | None = None) -> int | None:
        """Returns the client that ``worker`` is to be sent now, None where it has enough or is to wait."""
        now = time.monotonic() if now is None else now
        if len(self.sent[worker]) >= AHEAD:
            return None
        client = next(filter(self.due, self.unsent[worker]), None)
        if client is None and (client := self.from_the_last(worker, now)) is None:
            return None
        self.unsent[self.at[client]].remove(client)
        if client in self.with_state and self.at[client] != worker:
            self.moving[client] = self.at[client]
        self.at[client] = worker
        if not self.sent[worker]:
            self.begun[worker] = now
        self.sent[worker].append(client)
        return client

    def due(self, client: int) -> bool:
        """Whether the update of ``client`` would not wait too long for its turn in the sum."""
        return self.position[client] < self.turn + self.window

    def from_the_last(self, worker: int, now: float) -> int | None:
        """Returns a client that ``worker`` had better take over from the worker that will be last, if any."""
        spare = {other: next(filter(self.due, reversed(own)), None) for other, own in self.unsent.items()}
        last = max((other for other in spare if spare[other] is not None), key=lambda w: self.end(w, now), default=None)
        if last is None or (client := spare[last]) is None:
            return None
        begin = self.end(worker, now)
        if client in self.with_state:  # it hands the state over when it is done with what it has been sent
            begin = max(begin, self.end(last, now, self.sent[last])) + self.move_seconds
        sooner = begin + self.pace(worker, now) * self.sizes[client] < self.end(last, now)
        return client if sooner else None

    def answer(self, client: int, now: float | None = None) -> None:
        """Takes note that ``client`` has answered."""
        now = time.monotonic() if now is None else now
        worker = self.at[client]
        if client not in self.moving:  # else it may have waited for its state
            self.speeds.measure(worker, now - self.begun[worker], self.sizes[client])
        self.begun[worker] = now
        self.sent[worker].remove(client)
        self.answered.add(client)
        while self.turn < len(self.order) and self.order[self.turn] in self.answered:
            self.turn += 1

    def pace(self, worker: int, now: float) -> float:
        """Returns the worker's seconds a sample, at least what its client in training shows."""
        known = self.speeds.pace(worker)
        if not self.sent[worker]:
            return known
        return max(known, (now - self.begun[worker]) / max(1, self.sizes[self.sent[worker][0]]))

    def end(self, worker: int, now: float, of: Iterable[int] | None = None) -> float:
        """Returns in how many seconds ``worker`` will be done with what it has been sent and is to be sent, or ``of``.

        One that is overdue is taken to need as long again as it is late.
        """
        clients = [*self.sent[worker], *self.unsent[worker]] if of is None else of
        seconds = self.pace(worker, now) * sum(self.sizes[client] for client in clients)
        if not self.sent[worker]:
            return seconds
        first = self.sizes[self.sent[worker][0]]
        left = abs(self.speeds.pace(worker) * first - (now - self.begun[worker]))
        return seconds - self.pace(worker, now) * first + left
