"""The run that is attacked: what its clients hold, and what they send. The attack sees what travels alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext, predict
from baselines.base import Params, Trainer
from baselines.fedavg import FedAvgTrainer
from baselines.fedper import FedPerTrainer
from baselines.lg_fedavg import LGFedAvgTrainer
from benchmarks.federation import checkpoint, files
from benchmarks.federation.planning import find_store
from benchmarks.federation.registry import build_trainer
from benchmarks.federation.settings import Settings, complete, sentence
from benchmarks.federation.suites import UsageError
from benchmarks.privacy.inversion import Target
from benchmarks.privacy.membership import Scores
from data_partitions import Store, open_store
from pfedpara.sharing import layers
from pfedpara.streams import stream_seed

ATTACKED = FedAvgTrainer, FedPerTrainer, LGFedAvgTrainer
"""Their clients take plain SGD's steps and send the new shared tensors. FedAvg on factors is FedPara or pFedPara."""
PLAIN = {"optimizer": "sgd", "weight_decay": 0.0, "augment": False}
SMALLEST = 7  # pixels, the side of SSIM's window


class Batch(NamedTuple):
    client: int
    x: Tensor  # (B, …), as stored
    y: Tensor  # (B,)

    @property
    def pictures(self) -> Tensor:
        """(B, …) in [0, 1] where they are stored as bytes."""
        return self.x / 255 if self.x.dtype == torch.uint8 else self.x


class Subject:
    """A finished run, from its folder. Raises UsageError where it cannot be attacked, and DataError."""

    def __init__(self, directory: Path, data_dir: Path) -> None:
        try:
            config = complete(files.read_yaml(directory / "config.yaml"))
            sha256 = config.pop("partition_sha256", None)
            self.settings = Settings(**config, out=directory.resolve().parents[2], data_dir=data_dir)
        except ValidationError as error:
            raise UsageError(f"{directory}: {sentence(error)}") from None
        except (ValueError, IndexError) as error:
            raise UsageError(f"{error}; name the folder of a run") from None
        self.name = self.settings.label
        folder = next(iter(checkpoint.folders(directory)), None)
        if folder is None or not (directory / "summary.json").exists():
            raise UsageError(f"{directory} has no checkpoint of a finished run; run it, and keep its folder whole")
        self.store: Store = open_store(find_store(self.settings), sha256)
        try:
            self.trainer = build_trainer(self.settings, self.store)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from None
        check(self.settings, self.trainer, self.store)
        self.private_start, self.shared_start = self.trainer.get_private_state(), self.trainer.get_model_params()
        try:
            found = checkpoint.restore(folder, self.private_start)
            self.kept = {
                client: checkpoint.load_client(folder, client, digest, self.private_start)
                for client, digest in found.record.states.items()
            }
        except checkpoint.RefusedError as error:
            raise UsageError(f"{folder}: {error}") from None
        if not checkpoint.alike(found.shared, self.shared_start):
            raise UsageError(f"{folder}: its shared tensors are not those of {self.name} on {self.settings.model}")
        self.shared, self.round = found.shared, found.record.round
        self.hyper = self.trainer.hyper

    def draw(self, count: int, size: int, seed: int) -> list[Batch]:
        """Returns so many batches of ``size`` training samples, from one client after another.

        Raises UsageError where no client has as many, or none of its steps takes as many.
        """
        if size > self.hyper.batch_size:
            raise UsageError(f"--batch: a step of {self.name} takes {self.hyper.batch_size} samples, not {size}")
        able = np.flatnonzero(self.store.sizes("train")[: self.settings.clients] >= size)
        if not len(able):
            raise UsageError(f"--batch: no client has {size} samples; take fewer")
        generator, found = np.random.default_rng(stream_seed("attack, batches", seed)), []
        for number in range(count):
            client = int(able[number % len(able)])
            x, y = self.store.samples(client, "train")
            chosen = generator.choice(len(y), size, replace=False)
            found.append(Batch(client, torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen])))
        return found

    def send(self, client: int, data: TensorDataset, epochs: int, first: bool = False) -> Params:
        """Returns the shared tensors that the client would send after training ``epochs`` on ``data``.

        In the round after the checkpoint, or in the ``first``, when nobody has trained.
        """
        trainer = self.trainer
        trainer.set_private_state(self.private_start if first else self.kept.get(client, self.private_start))
        trainer.set_model_params(self.shared_start if first else self.shared)
        trainer.hyper = self.hyper.model_copy(update={"epochs": epochs})
        trainer.fit(data, RoundContext(self.settings.seed, client, 0 if first else self.round))
        return trainer.get_model_params()

    def target(self, batches: Sequence[Batch], epochs: int, first: bool = False) -> Target:
        """Returns what the server knows, where each client's training data are its batch alone."""
        before = self.shared_start if first else self.shared
        sent = [self.send(each.client, TensorDataset(each.x, each.y), epochs, first) for each in batches]
        last = layers(self.trainer.model)[-1][0]
        head = next(f"{name}.bias" for name, module in self.trainer.model.named_modules() if module is last)
        return Target(
            model=self.trainer.model,
            before=before,
            updates={name: torch.stack([after[name] - tensor for after in sent]) for name, tensor in before.items()},
            private=self.private_start,
            shape=tuple(batches[0].pictures.shape),
            classes=len(self.store.classes),
            rate=epochs * self.trainer.learning_rate(RoundContext(0, 0, 0 if first else self.round)),
            clip_norm=self.hyper.clip_norm,
            head=head if head in before else None,
        )

    def losses(self, shared: Params, data: TensorDataset) -> np.ndarray:
        """Returns −log p of each label (n,), by ``shared`` with the private tensors' start."""
        self.trainer.set_private_state(self.private_start)
        self.trainer.set_model_params(shared)
        labels, logits = predict(self.trainer.model, data)
        return F.cross_entropy(logits.double(), labels, reduction="none").numpy()  # float32 rounds many to 0

    def membership(self) -> dict[str, list[Scores]]:
        """Returns each client's scores, by the attack, for a round on all its training samples.

        The others are its validation and test samples, which have the same class mix.
        """
        found: dict[str, list[Scores]] = {"loss threshold": [], "likelihood ratio": []}
        for client in range(self.settings.clients):
            train, *others = (
                TensorDataset(*map(torch.from_numpy, self.store.samples(client, split)))
                for split in ("train", "validation", "test")
            )
            unseen = TensorDataset(*(torch.cat(each) for each in zip(*(o.tensors for o in others), strict=True)))
            if not len(train) or not len(unseen):
                continue
            sent = self.send(client, train, self.hyper.epochs)
            before, after = ([self.losses(shared, data) for data in (train, unseen)] for shared in (self.shared, sent))
            found["loss threshold"].append(Scores(*(-loss for loss in after)))
            found["likelihood ratio"].append(Scores(*(b - a for b, a in zip(before, after, strict=True))))
        return found


def check(settings: Settings, trainer: Trainer, store: Store) -> None:
    """Raises UsageError where there is no attack on such a run."""
    name = settings.label
    if type(trainer) not in ATTACKED:
        raise UsageError(
            f"{name}: there is no attack on {settings.algo}; take a run of fedavg, fedper, lg-fedavg, fedpara or "
            "pfedpara, with both factors at a time"
        )
    if store.task != "image" or min(store.input_shape[:2]) < SMALLEST:
        what = "pictures" if store.task == "image" else store.task
        raise UsageError(
            f"{name}: {settings.dataset} holds {what} of shape {store.input_shape}; the attack takes pictures of at "
            f"least {SMALLEST} × {SMALLEST}"
        )
    if any(isinstance(module, _NormBase) for module in trainer.model.modules()):
        raise UsageError(
            f"{name}: {settings.model} has BatchNorm, whose running statistics travel too; there is no attack on them, "
            "take a model without"
        )
    changed = {n: getattr(settings, n) for n in ("quantize", "quantize_down", "codec", "dp_clip")}
    plain = {n: Settings.model_fields[n].default for n in changed} | PLAIN
    changed |= {n: getattr(trainer.hyper, n) for n in PLAIN}
    for option, value in changed.items():
        if value != plain[option]:
            raise UsageError(
                f"{name}: the attack reads plain SGD's steps, sent as they are; take a run with "
                f"--{option.replace('_', '-')} {plain[option]}, not {value}"
            )
