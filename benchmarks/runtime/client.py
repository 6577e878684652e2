"""A worker: the rank that trains its share of the clients, one after another, and keeps what is private to each."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fedml.core import FedMLCommManager
from fedml.core.distributed.communication.message import Message
from torch.utils.data import TensorDataset

from baselines.fedavg import DivergedError, FedAvgTrainer, Params, evaluate
from benchmarks import checkpoint, codec
from benchmarks.experiment import Experiment
from benchmarks.methods import build_trainer
from benchmarks.record import ClientFigures
from benchmarks.runtime.messages import TENSORS, Kind, flatten, unflatten
from benchmarks.runtime.transport import MpiTransport
from data_partitions import Store, open_store


class Node(FedMLCommManager):
    """One of FedML's managers on our transport."""

    def __init__(self, transport: MpiTransport, node: int) -> None:
        super().__init__(SimpleNamespace(), transport, node, transport.workers + 1)

    def _init_manager(self) -> None:
        self.com_manager = self.comm
        self.com_manager.add_observer(self)

    def receive_message(self, msg_type: int, msg_params: Message) -> None:
        """Calls the handler as it is: FedML's way turns a KeyError in it into a complaint about the message's type."""
        self.message_handler_dict[msg_type](msg_params)

    def send(self, kind: Kind, receiver: int, tensors: torch.Tensor | None = None, **params: Any) -> None:
        message = Message(int(kind), self.rank, receiver)
        for key, value in params.items():
            message.add_params(key, value)
        if tensors is not None and len(tensors):
            message.add_params(TENSORS, tensors)
        self.send_message(message)


class Worker(Node):
    """Trains and judges the clients that the server assigned to it."""

    trainer: FedAvgTrainer
    store: Store

    def __init__(self, transport: MpiTransport, node: int, experiments: list[Experiment]) -> None:
        super().__init__(transport, node)
        self.experiments = experiments
        self.busy = ""  # what to name if this rank fails

    def register_message_receive_handlers(self) -> None:
        self.register_message_receive_handler(Kind.SETUP, self.set_up)
        self.register_message_receive_handler(Kind.TRAIN, self.train)
        self.register_message_receive_handler(Kind.EVALUATE, self.evaluate)
        self.register_message_receive_handler(Kind.FINISH, lambda message: self.com_manager.stop_receive_message())

    def set_up(self, message: Message) -> None:
        """Opens the experiment's partition, builds the model, and takes the clients' states from a checkpoint."""
        experiment = self.experiments[message.get("experiment")]
        self.store = open_store(experiment.store, message.get("partition_sha256"))
        self.clients: list[int] = message.get("clients")
        self.settings = experiment.settings
        self.trainer = build_trainer(self.settings, self.store)
        self.travelling = self.trainer.get_model_params()  # names and shapes of what travels
        self.fresh_state = self.trainer.get_private_state()
        self.states: dict[int, Params] = {}
        if folder := message.get("checkpoint"):
            for client in self.clients:
                if (state := checkpoint.load_client(Path(folder), client)) is not None:
                    self.states[client] = state
        self.data: dict[tuple[int, str], TensorDataset] = {}
        self.trained: dict[int, ClientFigures] = {}  # figures of models trained since the server last asked
        self.diverged: list[tuple[int, str]] = []  # clients whose model could not be judged, and why
        self.send(Kind.READY, 0)

    def samples(self, client: int, split: str) -> TensorDataset:
        if (client, split) not in self.data:
            x, y = self.store.samples(client, split)
            self.data[client, split] = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        return self.data[client, split]

    def take_up(self, client: int, tensors: torch.Tensor | None) -> None:
        """Makes the trainer that client's: its data and private tensors, then the shared ones that came."""
        trainer, data = self.trainer, self.samples(client, "train")
        trainer.set_id(client)
        trainer.update_dataset(data, self.samples(client, "test"), len(data))
        trainer.set_private_state(self.states.get(client, self.fresh_state))
        trainer.set_model_params(unflatten(tensors, self.travelling))

    def train(self, message: Message) -> None:
        client, number = message.get("client"), message.get("round")
        self.busy = f"client {client}, round {number}"
        trainer, args = self.trainer, self.trainer.args
        args.round_idx = number - 1
        received = codec.unpack(message.get(TENSORS), None, self.travelling, self.settings.quantize_down)
        self.take_up(client, received)
        data = trainer.local_train_dataset
        try:
            trainer.train(data, torch.device("cpu"), args)
        except DivergedError as error:
            self.send(Kind.DIVERGED, 0, client=client, round=number, reason=str(error))
            self.busy = ""
            return
        self.states[client] = trainer.get_private_state()
        shared = flatten(trainer.get_model_params())
        stream = codec.random_stream(1, self.settings.seed, client, number)
        packed = codec.pack(shared, received, self.travelling, self.settings.quantize, stream)
        self.send(Kind.UPDATE, 0, client=client, round=number, samples=len(data), **packed)
        if trainer.personalized and message.get("judge"):
            self.judge(client, self.trained)
        self.busy = ""

    def judge(self, client: int, figures: dict[int, ClientFigures]) -> None:
        """Enters into ``figures`` those of the model that the client would deploy now."""
        try:
            with self.trainer.deployed() as model:
                test, validation = (evaluate(model, self.samples(client, split)) for split in ("test", "validation"))
        except DivergedError as error:
            self.diverged.append((client, str(error)))
            return
        figures[client] = ClientFigures(
            accuracy=test["test_correct"] / test["test_total"],
            loss=test["test_loss"] / test["test_total"],
            samples=int(test["test_total"]),
            validation_accuracy=validation["test_correct"] / max(validation["test_total"], 1),
        )

    def evaluate(self, message: Message) -> None:
        """Judges every client on the new aggregate, and writes the clients' states where a checkpoint is asked for."""
        received: dict[int, float] = {}
        fresh: dict[int, ClientFigures] = {}
        self.trainer.args.round_idx = message.get("round")
        for client in self.clients if message.get("judge") else ():
            self.busy = f"client {client}, evaluation after round {message.get('round')}"
            self.take_up(client, message.get(TENSORS))
            plain = evaluate(self.trainer.model, self.samples(client, "test"))
            received[client] = plain["test_correct"] / plain["test_total"]
            self.judge(client, fresh)
        if folder := message.get("checkpoint"):
            for client, state in self.states.items():
                if state:
                    checkpoint.save_client(Path(folder), client, state)
        self.send(
            Kind.RESULTS,
            0,
            trained={client: vars(figures) for client, figures in self.trained.items()},
            received=received,
            fresh={client: vars(figures) for client, figures in fresh.items()},
            diverged=self.diverged,
            ledger=self.com_manager.ledger.take(),
        )
        self.trained, self.diverged = {}, []
        self.busy = ""
