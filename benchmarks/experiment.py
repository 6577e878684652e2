"""One experiment as the server sees it: what is shared, who takes part, what was sent, how each client does.

Knows nothing of messages; ``runtime/server.py`` moves it on.
"""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.utils.parametrize import ParametrizationList

from baselines.fedavg import Params
from benchmarks import checkpoint
from benchmarks.config import Settings
from benchmarks.ledger import Entry, totals
from benchmarks.methods import build_trainer
from benchmarks.record import ClientFigures, Recorder, Totals, summarize_clients
from data_partitions import heat_map, open_store


class Experiment(NamedTuple):
    """One run that is due: what to run, on which partition, and whether it goes on from its checkpoint."""

    settings: Settings
    store: Path
    resume: bool


def sample_clients(seed: int, number: int, clients: int, per_round: int) -> list[int]:
    """Returns the participants of round ``number``, drawn without replacement, sorted."""
    stream = np.random.default_rng(np.random.SeedSequence((seed, number)))
    return sorted(stream.choice(clients, per_round, replace=False).tolist())


def digest(params: Params) -> str:
    """Returns the SHA-256 of the names, shapes and bits of ``params``."""
    content = hashlib.sha256()
    for name, tensor in params.items():
        content.update(f"{name}{tuple(tensor.shape)}".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


class Run:
    """What the server knows of the experiment that is under way."""

    def __init__(self, experiment: Experiment) -> None:
        self.settings = settings = experiment.settings
        self.store = open_store(experiment.store)
        trainer = build_trainer(settings, self.store)
        self.personalized = trainer.personalized
        self.aggregator = trainer.Aggregator(trainer.model, trainer.args)
        self.travelling = trainer.get_model_params()  # names and shapes of what travels
        self.per_round = settings.clients_per_round
        self.round = 0
        self.participants: list[int] = []
        self.updates: dict[int, tuple[float, Params]] = {}
        self.seen: set[int] = set()  # clients that have trained
        self.figures: dict[int, ClientFigures] = {}  # each client's, on the model it deploys now
        self.received: dict[int, float] = {}
        self.entries: list[Entry] = []
        self.sent = dict.fromkeys(Totals.__annotations__, 0)
        self.seconds = {"startup": 0.0, "training": 0.0, "evaluation": 0.0}
        self.diverged: dict[str, Any] | None = None
        self.restored: Path | None = None
        if experiment.resume and (found := checkpoint.newest(settings.directory)):
            self.restored, shared, state, server = found
            self.aggregator.set_model_params(shared)
            self.aggregator.set_server_state(state)
            self.round, self.sent, self.seen = server["round"], server["sent"], set(server["seen"])
            self.figures = {int(client): ClientFigures(**figures) for client, figures in server["figures"].items()}
            self.received = {int(client): accuracy for client, accuracy in server["received"].items()}
            self.seconds |= server["seconds"]
        self.recorder = Recorder(
            settings.directory, settings.record(), lambda: heat_map(self.store), resume_round=self.round
        )

    def due(self, every: int) -> bool:
        """Whether what happens each ``every`` rounds (0: never) and after the last happens after this one."""
        return self.round == self.settings.rounds or (every > 0 and self.round % every == 0)

    def judged(self) -> bool:
        """Whether clients are judged after this round."""
        return self.due(self.settings.eval_every)

    def aggregate(self) -> None:
        updates = [self.updates[client] for client in self.participants]
        self.aggregator.set_model_params(self.aggregator.aggregate(updates))
        self.updates = {}
        self.seen.update(self.participants)

    def give_up(self, client: int, reason: str) -> None:
        """Notes that ``client`` left the finite numbers in this round, which ends the run."""
        if self.diverged is None or client < self.diverged["client"]:  # the same one whoever comes first
            lr = self.settings.hyper["lr"] * self.settings.hyper["lr_decay"] ** (self.round - 1)
            self.diverged = {"client": client, "round": self.round, "lr": lr, "reason": reason}

    def judge(
        self, received: dict[int, float], fresh: dict[int, ClientFigures], trained: dict[int, ClientFigures]
    ) -> None:
        """Takes accuracies of the new aggregate as it came, figures of what clients would deploy on receiving it, and
        of what they have just trained.

        A client deploys what it trained last; what it received where it never trained or the method is not personal.
        """
        self.received |= received
        self.figures |= {c: figures for c, figures in fresh.items() if not self.personalized or c not in self.seen}
        self.figures |= trained

    def book(self) -> None:
        """Enters what was sent since the last call into the totals and the run's ledger."""
        for key, value in totals(self.entries).items():
            self.sent[key] += value
        self.recorder.ledger(sorted(self.entries))
        self.entries = []

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
        server = {
            "round": self.round,
            "sent": self.sent,
            "seen": sorted(self.seen),
            "figures": {client: vars(figures) for client, figures in self.figures.items()},
            "received": self.received,
            "seconds": {key: value for key, value in self.seconds.items() if key != "startup"},
        }
        checkpoint.commit(folder, self.aggregator.get_model_params(), self.aggregator.get_server_state(), server)

    def finish(self, total_seconds: float) -> None:
        """Writes the run's summary."""
        s, uploads = self.settings, max(self.round * self.per_round, 1)
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
                "dataset": s.dataset,
                "partition": s.partition,
                "model": s.model,
                "seed": s.seed,
                "rounds": s.rounds,
                "clients": self.store.clients,
                **results,
                "parameters_per_client_round": {
                    way: self.sent[f"parameters_{way}"] // uploads for way in ("up", "down")
                },
                "transmitted": self.sent,
                "seconds": self.seconds | {"total": total_seconds},
                "shared_sha256": digest(self.aggregator.get_model_params()),
                "partition_sha256": self.store.sha256,
                "versions": {"python": platform.python_version()}
                | {package: version(package) for package in ("torch", "fedml", "numpy", "mpi4py")},
            }
        )
        self.recorder.close()
