"""The round loop: draw participants, send, collect, aggregate, judge, record.

``Clients`` is whoever reaches the clients; runtime/server.py does so by messages. The steps are generators: they yield
where an answer is due, and are sent it.
"""

import time
from collections.abc import Callable, Collection, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from baselines.base import Work
from benchmarks.federation import checkpoint, codec, robust, work
from benchmarks.federation.experiment import Newcomers, Run
from benchmarks.federation.ledger import Entry, traffic_to_model
from benchmarks.federation.metrics import ClientFigures
from benchmarks.federation.participation import Participants, faulty
from benchmarks.federation.recorder import Totals
from benchmarks.federation.settings import Settings
from benchmarks.federation.updates import Updates, finite

Returned = TypeVar("Returned")
Steps = Generator[None, Any, Returned]
Show = Callable[[int, Mapping[int, ClientFigures], dict[str, int]], None]
"""Hears of a round's end: its number, what clients deploy then where that is known, and what has been sent so far."""


class Downlink(NamedTuple):
    """The shared tensors on their way to the clients."""

    packed: dict[str, Any]  # what a message says of them
    received: Tensor  # what a client then has, (n,)
    part: dict[str, Any]  # what a message says to one of the ``holders``, who have the rest
    holders: frozenset[int]
    own: Callable[[int], "Downlink"] | None = None  # the one of a client, where each is sent something of its own

    def of(self, client: int) -> "Downlink":
        """Returns what that client is sent."""
        return self.own(client) if self.own else self

    def to(self, client: int) -> dict[str, Any]:
        return self.part if client in self.holders else self.packed


class Results(BaseModel):
    """What was found out since the last results, where some of the clients are."""

    trained: list[tuple[int, int, ClientFigures]]  # round, client; on the model it trained
    received: dict[int, float]  # accuracy of the new aggregate as it came
    fresh: dict[int, ClientFigures]  # on the model it deploys on receiving the new aggregate
    diverged: list[tuple[int, str]]  # client, reason
    ledger: list[Entry]
    trained_by: Work = {}
    adapted_by: Work = {}


class Clients(Protocol):
    def train(self, run: Run, participants: Participants, downlink: Downlink, updates: Updates) -> Steps[None]:
        """Sends the participants the shared tensors and collects what arrives. Gives the run up where one diverges."""

    def report(self, run: Run, downlink: Downlink | None, folder: Path | None) -> Steps[list[Results]]:
        """Collects what was found out.

        All clients are judged on the new shared tensors, where given, and their states written into ``folder``, where
        given.
        """

    def welcome(self, run: Run, downlink: Downlink, who: Collection[int]) -> Steps[Newcomers]:
        """Collects what these clients, which never took part, make of the shared tensors."""

    def cost(self, run: Run, participants: Participants, downlink: Downlink) -> list[Entry]:
        """Returns what the ledger would say if all clients were sent this that are judged on what they receive."""


def judge_newcomers(run: Run, clients: Clients) -> Steps[None]:
    """Judges the clients that took no part on the last aggregate. What they do is seen by nobody else.

    Where clients have links, those that were asked and never heard are judged so too.
    """
    new, unheard = run.new_clients, run.unheard
    if run.progress.diverged or not (new or unheard):
        return
    begun = time.perf_counter()
    downlink = pack_downlink(run, run.progress.round + 1)
    if new:
        run.newcomers = yield from clients.welcome(run, downlink, new)
    if unheard:
        run.outsiders = yield from clients.welcome(run, downlink, unheard)
    run.progress.seconds["evaluation"] += time.perf_counter() - begun


def take_rounds(run: Run, clients: Clients, show: Show) -> Steps[None]:
    """Takes the run from where it is to its last round, or to the one in which it diverges."""
    while run.progress.round < run.settings.rounds and not run.progress.diverged:
        known = yield from take_round(run, clients)
        if not run.progress.diverged:
            show(run.progress.round, run.figures.deployed if known else {}, run.traffic.sent)


def take_round(run: Run, clients: Clients) -> Steps[bool]:
    """Takes one round. Returns whether it has found out how the clients do."""
    begun = time.perf_counter()
    progress, settings = run.progress, run.settings
    progress.round += 1
    participants = run.participants(progress.round)
    progress.absent["dropped"] += len(participants.dropped)
    progress.absent["late"] += len(participants.late)

    downlink = pack_downlink(run, progress.round)
    progress.arrived = participants.arriving
    alike = settings.dp_clip > 0  # a client's weight would tell its size, and move the mean by more than the clip
    sizes = {client: 1 if alike else run.sizes[client] for client in participants.arriving}
    updates = Updates(run.aggregator, sizes, robust.parse(settings.aggregate)[1])
    yield from clients.train(run, participants, downlink, updates)
    if not progress.diverged:
        aggregate(run, updates, downlink)
    del downlink, updates  # each as large as the model

    finite = not progress.diverged
    judges, writes = finite and judged(settings, progress.round), finite and checkpoint_due(run)
    aggregated = time.perf_counter()
    progress.seconds["training"] += aggregated - begun
    if not (judges or writes or progress.diverged):
        return False

    folder = checkpoint.begin(settings.directory, progress.round) if writes else None
    new = pack_downlink(run, progress.round + 1) if judges else None
    results = yield from clients.report(run, new, folder)
    book(run, results)
    progress.seconds["evaluation"] += time.perf_counter() - aggregated
    if not progress.diverged:
        if new:
            record(run, clients.cost(run, participants, new))
        if folder:
            write_checkpoint(run, folder)
    return True


def pack_downlink(run: Run, number: int, client: int | None = None) -> Downlink:
    """Returns the shared tensors as the participants of round ``number`` get them, or that ``client`` of them.

    It holds while the server's tensors stay as they are.
    """
    form, shared = run.settings.quantize_down, run.aggregator.travelling
    if client is not None:
        shared = {**shared, **run.aggregator.for_client(client)}
    changed, others = run.trainer.parts(number - 1)
    stream = codec.random_stream("down", run.settings.seed, number)
    packed = codec.pack(codec.select(shared, changed), None, changed, form, stream)
    received = codec.unpack(packed["tensors"], None, changed, form)
    if not others:
        own = partial(pack_downlink, run, number) if run.trainer.addressed and client is None else None
        return Downlink(packed, received, {}, frozenset(), own)
    rest = codec.pack(codec.select(shared, others), None, others, form, None)  # what the holders have, bit for bit
    there = codec.unflatten(received, changed)
    there |= codec.unflatten(codec.unpack(rest["tensors"], None, others, form), others)
    holders = run.holders(number - 1)
    both = {"tensors": torch.cat([packed["tensors"], rest["tensors"]])}
    if "parameters" in packed:
        both["parameters"] = packed["parameters"] + rest["parameters"]
    return Downlink(both, codec.select(there, run.trainer.travelling), packed | {"part": True}, holders)


def aggregate(run: Run, updates: Updates, downlink: Downlink) -> None:
    """Makes the new global model of the updates that arrived; without any it stays as it is."""
    if updates.sizes:
        run.aggregator.set_received(codec.unflatten(downlink.received, run.trainer.travelling))
        if run.noise:
            run.noise.add(updates.mean.sums, run.progress.round, len(updates.sizes))
        new = updates.aggregate()
        if not finite(new):
            what = "the new global model" if updates.wild is None else "a parameter that it sent"
            run.give_up(updates.wild, f"{what} is not finite")
            return
        run.aggregator.set_model_params(new)
    run.progress.seen.update(updates.sizes)


def due(settings: Settings, number: int, every: int) -> bool:
    """Whether what happens each ``every`` rounds (0: never) and after the last happens after round ``number``."""
    return number == settings.rounds or (every > 0 and number % every == 0)


def judged(settings: Settings, number: int) -> bool:
    """Whether clients are judged after round ``number``."""
    return due(settings, number, settings.eval_every)


def judged_in_training(settings: Settings, number: int) -> bool:
    """Whether clients are judged when they train: where not all do so in each round, their model is gone later."""
    return judged(settings, number) or faulty(settings) or settings.clients_per_round < settings.clients


def checkpoint_due(run: Run) -> bool:
    """Whether a checkpoint is written after this round."""
    settings, minutes = run.settings, run.settings.checkpoint_minutes
    late = 0 < 60 * minutes <= time.monotonic() - run.progress.saved
    return due(settings, run.progress.round, settings.checkpoint_every) or late


def book(run: Run, results: list[Results]) -> None:
    """Enters what was sent and found out into traffic, ledger and figures."""
    entries = sorted(entry for each in results for entry in each.ledger)
    run.traffic.add(entries, run.progress.round)
    run.recorder.ledger(entries)
    run.progress.adapted = {}
    for each in results:
        if run.progress.trained is not None:
            work.add(run.progress.trained, each.trained_by)
        work.add(run.progress.adapted, each.adapted_by)
        run.figures.received |= each.received
        run.figures.deployed |= each.fresh
        for client, reason in each.diverged:
            run.give_up(client, reason)
    # A client that went from one worker to another has figures on both; those of its last round hold.
    trained = sorted((figures for each in results for figures in each.trained), key=lambda figures: figures[0])
    run.figures.deployed |= {client: figures for _, client, figures in trained}
    for client in run.poisoners:
        run.figures.received.pop(client, None)
        run.figures.deployed.pop(client, None)


def record(run: Run, downlinks: list[Entry]) -> None:
    """Adds this round to what the run writes.

    ``downlinks``: the message that would bring the new aggregate to each client that is judged on it.
    """
    progress, traffic = run.progress, run.traffic
    traffic.to_model = traffic_to_model(traffic.sent, traffic.uplink, downlinks)
    to_model = {f"{unit}_to_model": count for unit, count in traffic.to_model.items()}
    deployed, received = dict(sorted(run.figures.deployed.items())), dict(sorted(run.figures.received.items()))
    seconds = progress.seconds["training"] + progress.seconds["evaluation"]
    gradients = None
    if progress.trained is not None:
        gradients = work.gradients(progress.trained) + work.gradients(progress.adapted)
    totals = Totals(**traffic.sent, **to_model, **progress.absent, gradients=gradients)
    run.recorder.round(progress.round, deployed, received, totals, seconds)
    if run.settings.histograms:
        run.recorder.weights(progress.round, weights(run.aggregator.model))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns the matrices and kernels of ``model``, composed where they are factored."""
    found: dict[str, Tensor] = {}
    for path, layer in model.named_modules():
        names = list(getattr(layer, "parametrizations", {}))
        if not isinstance(layer, ParametrizationList):
            names += [name for name, p in layer.named_parameters(recurse=False) if p.dim() > 1]
        found |= {f"{path}.{name}": getattr(layer, name).detach() for name in names}
    return found


def write_checkpoint(run: Run, folder: Path) -> None:
    """Completes the checkpoint in ``folder`` with the server's part."""
    known = {
        "round": run.progress.round,
        "partition_sha256": run.store.sha256,
        **run.counts,
        "seen": sorted(run.progress.seen),
        "arrived": run.progress.arrived if run.pace else [],
        "figures": run.figures.deployed,
        "received": run.figures.received,
        "tables": run.recorder.sync(),
        "work": run.progress.trained,
    }
    checkpoint.commit(folder, run.aggregator.get_model_params(), run.aggregator.get_server_state(), known)
    run.progress.saved = time.monotonic()
