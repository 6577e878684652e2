"""One experiment as the server sees it: what it runs, how far it has come, and what it knows of each client."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from baselines.base import Work
from benchmarks.federation import board, checkpoint, poisoners, privacy
from benchmarks.federation.ledger import Entry, Traffic
from benchmarks.federation.links import digest
from benchmarks.federation.metrics import ClientFigures, NewcomerFigures, metrics_of
from benchmarks.federation.pace import Pace
from benchmarks.federation.participation import Participants, able_clients, draw_participants
from benchmarks.federation.provenance import command
from benchmarks.federation.recorder import Recorder
from benchmarks.federation.registry import build_trainer
from benchmarks.federation.run_tables import check_tables
from benchmarks.federation.settings import Settings
from benchmarks.federation.trackers import Trackers
from benchmarks.terminal import printable
from data_partitions import heat_map, open_store


class Experiment(NamedTuple):
    """One run: what to run, and on which partition."""

    settings: Settings
    store: Path
    partition_sha256: str

    def record(self) -> dict[str, Any]:
        """Returns what tells this run from another, as plain values for ``config.yaml``."""
        return self.settings.record() | digest(self.settings.links) | {"partition_sha256": self.partition_sha256}


@dataclass
class Progress:
    """How far a run has come. Clocks are ``time.monotonic``'s."""

    started: float  # when this job began with it
    saved: float  # when the last checkpoint was written
    round: int = 0
    seen: set[int] = field(default_factory=set)  # clients that have trained
    arrived: list[int] = field(default_factory=list)  # those whose update arrived in the newest round
    absent: dict[str, int] = field(default_factory=lambda: {"dropped": 0, "late": 0})
    seconds: dict[str, float] = field(  # total: of earlier jobs
        default_factory=lambda: dict.fromkeys(("startup", "training", "evaluation", "total"), 0.0)
    )
    diverged: dict[str, Any] | None = None
    trained: Work | None = field(default_factory=dict)  # None: of a run that began without counting
    adapted: Work = field(default_factory=dict)  # where clients were judged last


@dataclass
class Figures:
    """What is known of each client."""

    deployed: dict[int, ClientFigures] = field(default_factory=dict)  # on the model that it deploys now
    received: dict[int, float] = field(default_factory=dict)  # accuracy of the newest aggregate as it came


class Newcomers(BaseModel):
    """What was found out of clients that never took part, or of those of one worker."""

    figures: dict[int, NewcomerFigures] = {}
    adapted_by: Work = {}
    downlinks: list[Entry] = []  # the messages that would bring them the shared tensors


class Run:
    def __init__(self, experiment: Experiment, started: float) -> None:
        """Goes on from the newest checkpoint that can be used, if any, and says which cannot.

        ``started``: when this job began with it, on the clock of ``time.monotonic``.
        """
        self.settings = settings = experiment.settings
        self.store = open_store(experiment.store, experiment.partition_sha256, tried=True)  # in planning
        self.sizes = self.store.sizes("train").tolist()[: settings.clients]
        self.trainer = build_trainer(settings, self.store)  # trains nobody, but knows the method
        if self.trainer.pools:
            self.sizes = [sum(self.sizes), *[0] * (settings.clients - 1)]
        self.poisoners = poisoners.draw_poisoners(settings.poison, settings.seed, able_clients(self.sizes))
        self.aggregator = self.trainer.make_aggregator(settings.clients)
        self.progress = Progress(started, saved=time.monotonic())
        self.figures, self.newcomers = Figures(), Newcomers()
        self.pace = Pace(settings, self.trainer, self.sizes) if settings.deadline_seconds else None
        self.outsiders = Newcomers()  # clients that were asked and never heard
        self.traffic = Traffic()
        self.restored = self.resume()
        self.noise = privacy.Noise(settings, self.progress.round) if settings.dp_noise else None
        if not self.restored:
            checkpoint.clear(settings.directory)
        kept = self.restored.record.tables if self.restored else None
        self.recorder = Recorder(
            settings.directory, experiment.record(), kept, command(), Trackers(settings, kept is not None)
        )
        seed = f"seed{settings.seed}-{self.store.sha256[:8]}"
        board.show_partition(settings.directory.parents[1] / "partition" / seed, lambda: heat_map(self.store))

    def resume(self) -> checkpoint.Checkpoint | None:
        """Takes up the newest checkpoint that can be used, and returns it without the tensors that are taken up."""
        fresh = self.trainer.get_private_state()
        found, refused = checkpoint.newest(self.settings.directory, fresh, self.check)
        for sentence in refused:
            instead = f"going on from round {found.record.round}" if found else "starting from the beginning"
            print(printable(f"{sentence}; {instead}"), file=sys.stderr, flush=True)
        if not found:
            return None
        self.aggregator.set_model_params(found.shared)
        self.aggregator.set_server_state(found.server)
        record, progress = found.record, self.progress
        progress.round, progress.seen, progress.absent = record.round, set(record.seen), record.absent
        progress.arrived = record.arrived
        progress.seconds |= record.seconds
        progress.trained = record.work
        self.figures = Figures(record.figures, record.received)
        self.traffic = Traffic(record.sent, record.moved, record.to_model)
        return found._replace(shared={}, server={})

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps of the run's sums."""
        seconds = self.progress.seconds
        return {
            **{"sent": self.traffic.sent, "to_model": self.traffic.to_model, "moved": self.traffic.moved},
            "absent": self.progress.absent,
            "seconds": seconds | {"total": seconds["total"] + time.monotonic() - self.progress.started},
        }

    def check(self, found: checkpoint.Checkpoint) -> None:
        """Raises checkpoint.RefusedError unless this run can go on from what was ``found``."""
        record = found.record
        if record.partition_sha256 != self.store.sha256:
            raise checkpoint.RefusedError("it was made on another partition")
        if record.round > self.settings.rounds:
            raise checkpoint.RefusedError(f"the run has {self.settings.rounds} rounds")
        for name, sums in self.counts.items():
            if getattr(record, name).keys() != sums.keys():
                raise checkpoint.RefusedError(f"its {name} are not {', '.join(sums)}")
        named = {*record.seen, *record.figures, *record.received, *record.states}
        if strangers := named - {*range(self.settings.clients)}:
            raise checkpoint.RefusedError(f"there is no client {min(strangers)}")
        if record.states.keys() != (set(record.seen) if self.trainer.kept else set()):
            raise checkpoint.RefusedError(
                "it has not the private tensors of every client that has trained, and only those"
            )
        server = self.aggregator.get_server_state()
        for tensors, like in ((found.shared, self.trainer.travelling), (found.server, server)):
            if not checkpoint.alike(tensors, like):
                raise checkpoint.RefusedError("its tensors are not those of this method and model")
        try:
            check_tables(self.settings.directory, record.tables, metrics_of(self.settings.metric, self.settings.poison))
        except ValueError as error:
            raise checkpoint.RefusedError(str(error)) from None

    def participants(self, number: int) -> Participants:
        """Returns who takes part in round ``number``, counted from 1; with ``pace``, in this round alone."""
        secret = self.noise.secret if self.noise else None
        seconds = self.pace.seconds(number, self.progress.arrived) if self.pace else None
        return draw_participants(self.settings, number, self.sizes, secret, seconds)

    def holders(self, number: int) -> frozenset[int]:
        """Returns the clients that have what round ``number`` did not change, as far as that is known."""
        if self.noise and self.noise.secret is not None and number <= self.noise.first:
            return frozenset()  # an earlier job's secret drew them
        if self.pace:
            return frozenset(self.progress.arrived)
        return frozenset(self.participants(number).arriving)

    @property
    def new_clients(self) -> range:
        """The clients that hold data and take no part."""
        return range(self.settings.clients, self.settings.clients + self.settings.new_clients)

    @property
    def unheard(self) -> list[int]:
        """The clients with links, and samples to train on, whose update never arrived."""
        return [c for c in able_clients(self.sizes) if c not in self.progress.seen] if self.settings.links else []

    def untrained(self) -> list[int]:
        """Returns the clients whose deployed model follows from what they receive, not from what they trained."""
        clients = range(self.settings.clients)
        return [c for c in clients if self.trainer.judged_on == "received" or c not in self.progress.seen]

    def give_up(self, client: int | None, reason: str) -> None:
        """Notes that ``client``, or None for the server, left the finite numbers in this round, which ends the run."""
        known, number = self.progress.diverged, self.progress.round
        if known is None or (client is not None and known["client"] is not None and client < known["client"]):
            lr = self.settings.hyper["lr"] * self.settings.hyper["lr_decay"] ** (number - 1)
            self.progress.diverged = {"client": client, "round": number, "lr": lr, "reason": reason}
