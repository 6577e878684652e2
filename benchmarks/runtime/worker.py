"""A worker: the rank that trains its share of the clients, one after another, and keeps what is private to each.

A client's private state lies with the worker that trained it last, in memory or in a file, and moves when another
worker trains it next.
"""

from collections.abc import Iterator, MutableMapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any

import torch
from fedml.core import FedMLCommManager
from fedml.core.distributed.communication.message import Message
from safetensors.torch import load, save
from torch.utils.data import TensorDataset

from baselines.base import DivergedError, Params, Trainer, all_finite, evaluate
from benchmarks.federation import checkpoint, codec, files
from benchmarks.federation.experiment import Experiment
from benchmarks.federation.recorder import ClientFigures
from benchmarks.federation.registry import build_trainer
from benchmarks.runtime.messages import TENSORS, Kind, MessageError, check, flatten, unflatten
from benchmarks.runtime.transport import MpiTransport
from data_partitions import Store, open_store

CACHED = 96  # clients' splits whose samples a worker keeps at hand; the store is mapped, so others are soon read


def pick_device(kind: str, local_rank: int, gpus: int) -> str:
    """Returns the device of a host's rank number ``local_rank``, for torch: the ranks take the ``gpus`` in turn."""
    return f"cuda:{local_rank % gpus}" if kind == "cuda" else kind


class Node(FedMLCommManager):
    """One of FedML's managers on our transport."""

    def __init__(self, transport: MpiTransport, node: int) -> None:
        super().__init__(SimpleNamespace(), transport, node, transport.workers + 1)

    def _init_manager(self) -> None:
        self.com_manager = self.comm
        self.com_manager.add_observer(self)

    def receive_message(self, msg_type: int, msg_params: Message) -> None:
        """Calls the handler as it is: FedML's way turns a KeyError in it into a complaint about the message's type."""
        check(msg_params, self.size - 1)
        if msg_type not in self.message_handler_dict:
            raise MessageError(msg_params, "it is not for this node")
        self.message_handler_dict[msg_type](msg_params)

    def message(self, kind: Kind, receiver: int, tensors: torch.Tensor | None = None, **params: Any) -> Message:
        message = Message(int(kind), self.rank, receiver)
        for key, value in params.items():
            message.add_params(key, value)
        if tensors is not None and len(tensors):
            message.add_params(TENSORS, tensors)
        return message

    def send(self, kind: Kind, receiver: int, tensors: torch.Tensor | None = None, **params: Any) -> None:
        self.send_message(self.message(kind, receiver, tensors, **params))


class StateFile(MutableMapping[int, Params]):
    """Private states by client, in a file, so that memory holds only the one in use.

    The file has no name: no other job finds it, and nothing of it stays, however this process ends. All states have
    the same tensors and so the same size: each takes a slot.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError where ``folder`` cannot hold a file."""
        with files.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = TemporaryFile(dir=folder)  # noqa: SIM115
        self.folder, self.size = folder, 0
        self.slots: dict[int, int] = {}  # by client
        self.free: list[int] = []  # slots of clients that moved away

    def __setitem__(self, client: int, state: Params) -> None:
        content = save(state)
        self.size = self.size or len(content)
        if len(content) != self.size:
            raise ValueError(f"the private state of client {client} has {len(content)} bytes, others {self.size}")
        if client not in self.slots:
            self.slots[client] = self.free.pop() if self.free else len(self.slots)
        with files.naming(self.folder):
            self.file.seek(self.slots[client] * self.size)
            self.file.write(content)
            self.file.flush()

    def __getitem__(self, client: int) -> Params:
        self.file.seek(self.slots[client] * self.size)
        return load(self.file.read(self.size))

    def __delitem__(self, client: int) -> None:
        self.free.append(self.slots.pop(client))

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)


class Worker(Node):
    """Trains and judges the clients that the server assigned to it."""

    trainer: Trainer
    store: Store

    def __init__(self, transport: MpiTransport, node: int, experiments: list[Experiment], local_rank: int) -> None:
        """``local_rank``: this rank's number on its host."""
        super().__init__(transport, node)
        self.experiments, self.local_rank = experiments, local_rank
        self.states: MutableMapping[int, Params] = {}
        self.busy = ""  # what to name if this rank fails

    def register_message_receive_handlers(self) -> None:
        self.register_message_receive_handler(Kind.SETUP, self.set_up)
        self.register_message_receive_handler(Kind.TRAIN, self.train)
        self.register_message_receive_handler(Kind.EVALUATE, self.evaluate)
        self.register_message_receive_handler(Kind.MOVE, self.move)
        self.register_message_receive_handler(Kind.STATE, self.on_state)
        self.register_message_receive_handler(Kind.FINISH, self.finish_all)
        self.register_message_receive_handler(Kind.WAIT, lambda message: None)

    def run(self) -> None:
        self.com_manager.on_silence = self.on_silence
        super().run()

    def on_silence(self, seconds: float) -> None:
        """Raises TimeoutError where the server has said nothing for ``--comm-timeout`` seconds.

        One worker after another, a second apart: the first ends the others, and they need not say it too.
        """
        if 0 < (limit := self.experiments[0].settings.comm_timeout) < seconds - (self.rank - 1):
            raise TimeoutError(f"nothing from rank 0, the server, for {seconds:.1f} seconds (--comm-timeout {limit:g})")

    def set_up(self, message: Message) -> None:
        """Opens the experiment's partition, builds the model, and takes the clients' states from a checkpoint."""
        self.states = {}  # lets go of those of the experiment before
        experiment = self.experiments[message.get("experiment")]
        self.store = open_store(experiment.store, message.get("partition_sha256"))
        self.settings = experiment.settings
        torch.set_num_threads(self.settings.threads)
        self.device = pick_device(self.settings.device, self.local_rank, torch.cuda.device_count())
        self.trainer = build_trainer(self.settings, self.store, self.device)
        self.travelling = self.trainer.get_model_params()  # names and shapes of what travels
        self.fresh_state = self.trainer.get_private_state()
        self.states = StateFile(self.settings.state_dir) if self.settings.state_dir else {}
        for client, sha256 in message.get("states"):
            self.busy = f"checkpoint {message.get('checkpoint')}"
            folder = Path(message.get("checkpoint"))
            self.states[client] = checkpoint.load_client(folder, client, sha256, self.fresh_state)
        self.busy = ""
        self.samples = lru_cache(CACHED)(self.load)
        self.early: dict[int, Message] = {}  # clients to train as soon as their state comes
        self.trained: dict[int, tuple[int, ClientFigures]] = {}  # since the server last asked: round, figures
        self.diverged: list[tuple[int, str]] = []  # clients whose model could not be judged, and why
        self.send(Kind.READY, 0)

    def finish_all(self, message: Message) -> None:
        self.com_manager.stop_receive_message()

    def load(self, client: int, split: str) -> TensorDataset:
        x, y = self.store.samples(client, split)
        return TensorDataset(torch.from_numpy(x).to(self.device), torch.from_numpy(y).to(self.device))

    def take_up(self, client: int, tensors: torch.Tensor | None) -> None:
        """Makes the trainer that client's: its data and private tensors, then the shared ones that came."""
        trainer, data = self.trainer, self.samples(client, "train")
        trainer.set_id(client)
        trainer.update_dataset(data, self.samples(client, "test"), len(data))
        trainer.set_private_state(self.states.get(client, self.fresh_state))
        trainer.set_model_params(unflatten(tensors, self.travelling))

    def train(self, message: Message) -> None:
        client, number = message.get("client"), message.get("round")
        if not message.get("arrives"):  # it received the model, and keeps the state that it had
            self.send(Kind.ABSENT, 0, client=client, round=number)
            return
        self.busy = f"client {client}, round {number}"
        if message.get("moves") and client not in self.states:
            self.early[client] = message
            return
        trainer, args = self.trainer, self.trainer.args
        args.round_idx = number - 1
        received = codec.unpack(message.get(TENSORS), None, self.travelling, self.settings.quantize_down)
        self.take_up(client, received)
        data = trainer.local_train_dataset
        try:
            trainer.train(data, torch.device(self.device), args)
            shared = flatten(trainer.get_model_params())
            if not all_finite(shared):
                raise DivergedError("a parameter that it would send is not finite")
        except DivergedError as error:
            self.send(Kind.DIVERGED, 0, client=client, round=number, reason=str(error))
            self.busy = ""
            return
        stream = codec.random_stream("up", self.settings.seed, client, number)
        known = codec.known(received, self.travelling, trainer.differences)
        packed = codec.pack(shared, known, self.travelling, self.settings.quantize, stream)
        arrives = codec.unpack(packed["tensors"], known, self.travelling, self.settings.quantize)
        trainer.settle(unflatten(arrives.to(self.device), self.travelling))
        if state := trainer.get_private_state():
            self.states[client] = {name: tensor.cpu() for name, tensor in state.items()}
        self.send(Kind.UPDATE, 0, client=client, round=number, samples=len(data), **packed)
        if trainer.judged_on == "trained" and message.get("judge") and (figures := self.judge(client)):
            self.trained[client] = number, figures
        self.busy = ""

    def move(self, message: Message) -> None:
        """Hands a client's private state over to the worker that trains it next."""
        client, number = message.get("client"), message.get("round")
        state = self.states.pop(client)
        packed = torch.frombuffer(bytearray(save(state)), dtype=torch.uint8)
        count = sum(tensor.numel() for tensor in state.values())
        self.send(Kind.STATE, message.get("worker"), packed, client=client, round=number, parameters=count)

    def on_state(self, message: Message) -> None:
        client, packed = message.get("client"), message.get(TENSORS)
        try:
            content = b"" if packed is None else packed.numpy().tobytes()
            self.states[client] = checkpoint.read_state(content, self.fresh_state)
        except checkpoint.RefusedError as error:
            raise MessageError(message, f"for client {client}: {error}") from None
        if client in self.early:
            self.train(self.early.pop(client))

    def judge(self, client: int) -> ClientFigures | None:
        """Returns the figures of the model that the client would deploy now, or None where it diverged."""
        try:
            with self.trainer.deployed() as model:
                test, validation = (evaluate(model, self.samples(client, split)) for split in ("test", "validation"))
        except DivergedError as error:
            self.diverged.append((client, str(error)))
            return None
        return ClientFigures(
            accuracy=test["test_correct"] / test["test_total"],
            loss=test["test_loss"] / test["test_total"],
            samples=int(test["test_total"]),
            validation_accuracy=validation["test_correct"] / max(validation["test_total"], 1),
        )

    def evaluate(self, message: Message) -> None:
        """Judges every client on the new aggregate, and writes the clients' states where a checkpoint is asked for."""
        received: dict[int, float] = {}
        fresh: dict[int, ClientFigures] = {}
        self.trainer.args.round_idx = message.get("round") - 1  # at the rate and with the shuffles of this round
        untrained = set(message.get("untrained"))
        for client in message.get("clients"):
            self.busy = f"client {client}, evaluation after round {message.get('round')}"
            self.take_up(client, message.get(TENSORS))
            plain = evaluate(self.trainer.model, self.samples(client, "test"))
            received[client] = plain["test_correct"] / plain["test_total"]
            if client in untrained and (figures := self.judge(client)):
                fresh[client] = figures
        if folder := message.get("checkpoint"):
            for client, state in self.states.items():
                checkpoint.save_client(Path(folder), client, state)
        self.send(
            Kind.RESULTS,
            0,
            round=message.get("round"),
            trained=[(number, client, vars(figures)) for client, (number, figures) in self.trained.items()],
            received=received,
            fresh={client: vars(figures) for client, figures in fresh.items()},
            diverged=self.diverged,
            ledger=self.com_manager.ledger.take(),
        )
        self.trained, self.diverged = {}, []
        self.busy = ""
