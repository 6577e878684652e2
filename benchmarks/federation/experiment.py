"""One experiment as the server sees it: what is shared, who takes part, what was sent, how each client does.

Knows nothing of messages; ``runtime/server.py`` moves it on.
"""

import hashlib
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.utils.parametrize import ParametrizationList

from baselines.base import Params, all_finite
from benchmarks.federation import checkpoint, lock
from benchmarks.federation.ledger import Entry, totals, traffic_to_model
from benchmarks.federation.recorder import ClientFigures, Recorder, Totals, check_tables, summarize_clients
from benchmarks.federation.registry import build_trainer
from benchmarks.federation.settings import Settings
from benchmarks.terminal import printable
from data_partitions import heat_map, open_store
from pfedpara.streams import stream_seed

MOVED = ("move",)


class Experiment(NamedTuple):
    """One run: what to run, and on which partition."""

    settings: Settings
    store: Path
    partition_sha256: str

    def record(self) -> dict[str, Any]:
        """Returns what tells this run from another, as plain values for ``config.yaml``."""
        return self.settings.record() | {"partition_sha256": self.partition_sha256}


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


def digest(params: Params) -> str:
    """Returns the SHA-256 of the names, shapes and bits of ``params``."""
    content = hashlib.sha256()
    for name, tensor in params.items():
        content.update(f"{name}{tuple(tensor.shape)}".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


class Run:
    """What the server knows of the experiment that is under way."""

    def __init__(self, experiment: Experiment, started: float) -> None:
        """``started``: when this job began with it, on the clock of ``time.monotonic``."""
        self.settings = settings = experiment.settings
        self.store = open_store(experiment.store, experiment.partition_sha256)
        trainer = build_trainer(settings, self.store)
        self.judged_on = trainer.judged_on
        self.aggregator = trainer.aggregator_class(trainer.model, trainer.args)
        self.travelling = trainer.get_model_params()  # names and shapes of what travels
        self.differences = trainer.differences
        self.fresh_state = trainer.get_private_state()
        self.stateful = bool(self.fresh_state)
        self.sizes = self.store.sizes("train").tolist()
        self.per_round = settings.clients_per_round
        self.round = 0
        self.participants: list[int] = []  # of this round
        self.arriving: list[int] = []  # the participants whose update will count
        self.updates: dict[int, tuple[float, Params]] = {}
        self.seen: set[int] = set()  # clients that have trained
        self.figures: dict[int, ClientFigures] = {}  # each client's, on the model it deploys now
        self.received: dict[int, float] = {}
        self.entries: list[Entry] = []
        self.sent, self.moved = totals([]), totals([], MOVED)
        self.uplink = totals([], ("up",))  # of the newest round
        self.to_model = {"parameters": 0, "bytes": 0}  # sent until the models that were judged last are on the clients
        self.absent = {"dropped": 0, "late": 0}
        self.started = started
        self.seconds = {"startup": 0.0, "training": 0.0, "evaluation": 0.0, "total": 0.0}  # total: of earlier jobs
        self.diverged: dict[str, Any] | None = None
        self.trained: list[tuple[int, int, ClientFigures]] = []  # (round, client, figures) not yet in ``figures``
        self.saved = time.monotonic()  # when the last checkpoint was written
        self.restored: checkpoint.Checkpoint | None = None
        self.resume()
        if not self.restored:
            checkpoint.clear(settings.directory)
        kept = self.restored.record.tables if self.restored else None
        self.recorder = Recorder(settings.directory, experiment.record(), lambda: heat_map(self.store), kept)

    def resume(self) -> None:
        """Goes on from the newest checkpoint that can be used, if any, and says which cannot."""
        found, refused = checkpoint.newest(self.settings.directory, self.fresh_state, self.check)
        for sentence in refused:
            instead = f"going on from round {found.record.round}" if found else "starting from the beginning"
            print(printable(f"{sentence}; {instead}"), file=sys.stderr, flush=True)
        if found:
            record = found.record
            self.aggregator.set_model_params(found.shared)
            self.aggregator.set_server_state(found.server)
            self.round, self.sent, self.moved, self.absent = record.round, record.sent, record.moved, record.absent
            self.to_model = record.to_model
            self.seen, self.figures, self.received = set(record.seen), record.figures, record.received
            self.seconds |= record.seconds
            self.restored = found._replace(shared={}, server={})  # the aggregator has them

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps of the run's sums."""
        total = self.seconds["total"] + time.monotonic() - self.started
        return {
            **{"sent": self.sent, "to_model": self.to_model, "moved": self.moved, "absent": self.absent},
            "seconds": self.seconds | {"total": total},
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
        if strangers := {*record.seen, *record.figures, *record.received, *record.states} - {
            *range(self.store.clients)
        }:
            raise checkpoint.RefusedError(f"there is no client {min(strangers)}")
        if record.states.keys() != (set(record.seen) if self.stateful else set()):
            raise checkpoint.RefusedError(
                "it has not the private tensors of every client that has trained, and only those"
            )
        for tensors, like in ((found.shared, self.travelling), (found.server, self.aggregator.get_server_state())):
            if not checkpoint.alike(tensors, like):
                raise checkpoint.RefusedError("its tensors are not those of this method and model")
        try:
            check_tables(self.settings.directory, record.tables)
        except ValueError as error:
            raise checkpoint.RefusedError(str(error)) from None

    def begin_round(self) -> None:
        """Draws who takes part in the next round, and whose update will count."""
        self.round += 1
        self.participants = sample_clients(self.settings.seed, self.round, self.store.clients, self.per_round)
        self.arriving = self.participants
        if self.faulty:
            samples = {client: self.sizes[client] for client in self.participants}
            dropped, late = draw_faults(self.settings, self.round, samples)
            self.arriving = [client for client in self.participants if client not in {*dropped, *late}]
            self.absent["dropped"] += len(dropped)
            self.absent["late"] += len(late)

    @property
    def faulty(self) -> bool:
        return bool(self.settings.dropout or self.settings.deadline)

    def due(self, every: int) -> bool:
        """Whether what happens each ``every`` rounds (0: never) and after the last happens after this one."""
        return self.round == self.settings.rounds or (every > 0 and self.round % every == 0)

    def judged(self) -> bool:
        """Whether clients are judged after this round."""
        return self.due(self.settings.eval_every)

    def judged_in_training(self) -> bool:
        """Whether clients are judged when they train: where not all do so in each round, their model is gone later."""
        return self.judged() or self.faulty or self.per_round < self.store.clients

    def kept(self) -> bool:
        """Whether a checkpoint is written after this round."""
        minutes = self.settings.checkpoint_minutes
        return self.due(self.settings.checkpoint_every) or 0 < 60 * minutes <= time.monotonic() - self.saved

    def aggregate(self, received: Params) -> None:
        """Makes the new global model of the updates that arrived; without any it stays as it is.

        ``received``: what the participants were sent, as they have it.
        """
        if self.arriving:
            self.aggregator.start_from(received)
            new = self.aggregator.aggregate([self.updates[client] for client in self.arriving])
            if not all(map(all_finite, new.values())):
                self.give_up(None, "the new global model is not finite")
                return
            self.aggregator.set_model_params(new)
        self.updates = {}
        self.seen.update(self.arriving)

    def give_up(self, client: int | None, reason: str) -> None:
        """Notes that ``client``, or None for the server, left the finite numbers in this round, which ends the run."""
        known = self.diverged
        if known is None or (client is not None and known["client"] is not None and client < known["client"]):
            lr = self.settings.hyper["lr"] * self.settings.hyper["lr_decay"] ** (self.round - 1)
            self.diverged = {"client": client, "round": self.round, "lr": lr, "reason": reason}

    def judge(self, received: dict[int, float], fresh: dict[int, ClientFigures]) -> None:
        """Takes accuracies of the new aggregate as it came, and figures of what clients would deploy on receiving it.

        A client that never trained deploys what it would receive now, and each does under a method judged so.
        """
        self.received |= received
        self.figures |= fresh

    def untrained(self) -> list[int]:
        """Returns the clients whose deployed model follows from what they receive, not from what they trained."""
        return [c for c in range(self.store.clients) if self.judged_on == "received" or c not in self.seen]

    def book(self) -> None:
        """Enters what was sent and found out since the last call into totals, ledger and figures."""
        for sums, ways in ((self.sent, ("up", "down")), (self.moved, MOVED)):
            for key, value in totals(self.entries, ways).items():
                sums[key] += value
        self.uplink = totals((entry for entry in self.entries if entry.round == self.round), ("up",))
        self.recorder.ledger(sorted(self.entries))
        self.entries = []
        # A client that went from one worker to another has figures on both; those of its last round hold.
        self.figures |= {client: figures for _, client, figures in sorted(self.trained, key=lambda each: each[0])}
        self.trained = []

    def record(self, downlinks: list[Entry]) -> None:
        """Adds this round to what the run writes.

        ``downlinks``: the message that would bring the new aggregate to each client that is judged on it.
        """
        self.to_model = traffic_to_model(self.sent, self.uplink, downlinks)
        to_model = {f"{unit}_to_model": count for unit, count in self.to_model.items()}
        figures, received = dict(sorted(self.figures.items())), dict(sorted(self.received.items()))
        seconds = self.seconds["training"] + self.seconds["evaluation"]
        self.recorder.round(self.round, figures, received, Totals(**self.sent, **to_model, **self.absent), seconds)
        if self.settings.histograms:
            self.recorder.weights(self.round, self.weights())

    def weights(self) -> dict[str, Tensor]:
        """Returns the global model's matrices and kernels, composed where they are factored."""
        found: dict[str, Tensor] = {}
        for path, layer in self.aggregator.model.named_modules():
            names = list(getattr(layer, "parametrizations", {}))
            if not isinstance(layer, ParametrizationList):
                names += [name for name, p in layer.named_parameters(recurse=False) if p.dim() > 1]
            found |= {f"{path}.{name}": getattr(layer, name).detach() for name in names}
        return found

    def keep(self, folder: Path) -> None:
        """Completes the checkpoint in ``folder`` with the server's part."""
        record = {
            "round": self.round,
            "partition_sha256": self.store.sha256,
            **self.counts,
            "seen": sorted(self.seen),
            "figures": self.figures,
            "received": self.received,
            "tables": self.recorder.sync(),
        }
        checkpoint.commit(folder, self.aggregator.get_model_params(), self.aggregator.get_server_state(), record)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Writes the run's summary, and lets other jobs into its directory."""
        s, downloads = self.settings, self.round * self.per_round
        messages = {"up": max(downloads - sum(self.absent.values()), 1), "down": max(downloads, 1)}
        results: dict[str, Any] = {"accuracy": None, "validation_accuracy": None, "accuracy_received_mean": None}
        if self.diverged:
            results["diverged"] = self.diverged
        else:
            results["accuracy"] = summarize_clients({c: f.accuracy for c, f in self.figures.items()})
            results["validation_accuracy"] = summarize_clients(
                {c: f.validation_accuracy for c, f in self.figures.items()}
            )
            results["accuracy_received_mean"] = summarize_clients(self.received)["mean"]
        self.recorder.finish(
            {
                "algo": s.algo,
                "label": s.label,
                "parameterization": s.parameterization,
                "tuned": s.tuned,
                "dataset": s.dataset,
                "partition": s.partition,
                "model": s.model,
                "seed": s.seed,
                "rounds": s.rounds,
                "clients": self.store.clients,
                **results,
                "parameters_per_client_round": {
                    way: self.sent[f"parameters_{way}"] // count for way, count in messages.items()
                },
                "transmitted": self.sent,
                "traffic_to_model": None if self.diverged else self.to_model,
                "moved": {unit: self.moved[f"{unit}_move"] for unit in ("parameters", "bytes")},
                "absent": self.absent,
                "seconds": self.counts["seconds"],
                "shared_sha256": digest(self.aggregator.get_model_params()),
                "partition_sha256": self.store.sha256,
                "samples_sha256": self.store.recipe["samples_sha256"],
                "versions": {"python": platform.python_version()}
                | {package: version(package) for package in ("torch", "fedml", "numpy", "mpi4py")},
            }
        )
        self.recorder.close()
        lock.release(s.directory)
