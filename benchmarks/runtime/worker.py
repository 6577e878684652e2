"""A worker: the rank that trains and judges its share of the clients, and keeps what is private to each.

It takes one client after another, in one experiment after another. A client's private state lies with the worker that
trained it last, in memory or in a file, and moves when another worker trains it next.
"""

from collections.abc import Callable, MutableMapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import torch
from fedml.core.distributed.communication.message import Message
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext, predict
from baselines.base import DivergedError, Params, Work
from benchmarks.federation import checkpoint, codec, metrics, poison, poisoners, privacy, work
from benchmarks.federation.experiment import Experiment
from benchmarks.federation.metrics import ClientFigures, NewcomerFigures
from benchmarks.federation.participation import able_clients
from benchmarks.federation.registry import build_trainer
from benchmarks.runtime.dispatch import cores
from benchmarks.runtime.messages import TENSORS, Kind, MessageError
from benchmarks.runtime.node import Node
from benchmarks.runtime.states import StateFile
from benchmarks.runtime.transport import MpiTransport
from data_partitions import Store, open_store

CACHED = 96  # clients' splits whose samples a worker keeps at hand; the store is mapped, so others are soon read


def load(store: Store, device: str, client: int, split: str) -> TensorDataset:
    x, y = store.samples(client, split)
    return TensorDataset(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))


class Share:
    def __init__(self, node: Node, experiment: Experiment, device: str, partition_sha256: str) -> None:
        """Opens the experiment's partition and builds the model. ``node`` sends the answers."""
        self.node, self.device, self.settings = node, device, experiment.settings
        store = open_store(experiment.store, partition_sha256, tried=True)  # by rank 0
        self.samples = lru_cache(CACHED)(partial(load, store, device))
        self.trainer = build_trainer(self.settings, store, device)
        self.metrics = metrics.find_metrics(self.settings.metric)
        able = able_clients(store.sizes("train").tolist()[: self.settings.clients])
        self.poisoners = poisoners.draw_poisoners(self.settings.poison, self.settings.seed, able)
        kind = poison.parse(self.settings.poison)[1]
        self.attack = poisoners.Attack(kind, store, self.settings.clients_per_round) if kind else None
        self.fresh_state = self.trainer.get_private_state()
        state_dir = self.settings.state_dir
        self.states: MutableMapping[int, Params] = StateFile(state_dir) if state_dir else {}
        self.early: dict[int, Message] = {}  # clients to train as soon as their state comes
        self.passing: dict[int, Message] = {}  # clients whose state goes on to another worker as soon as it comes
        self.trained: dict[int, tuple[int, ClientFigures]] = {}  # since the server last asked: round, figures
        self.trained_by: Work = {}  # since the server last asked
        self.adapted_by: Work = {}
        self.diverged: list[tuple[int, str]] = []  # clients whose model could not be judged, and why

    def restore(self, folder: str, states: list[tuple[int, str]]) -> None:
        """Takes clients' states from the checkpoint in ``folder``: each client, and its file's SHA-256."""
        for client, sha256 in states:
            self.node.busy = f"checkpoint {folder}"
            self.states[client] = checkpoint.load_client(Path(folder), client, sha256, self.fresh_state)
        self.node.busy = ""

    def answers(self) -> dict[Kind, Callable[[Message], None]]:
        """Returns what answers each kind of message that is for this share."""
        return {
            **{Kind.TRAIN: self.train, Kind.EVALUATE: self.evaluate, Kind.WELCOME: self.welcome},
            **{Kind.MOVE: self.move, Kind.STATE: self.on_state},
        }

    def take_up(self, client: int, received: Params) -> Params:
        """Makes the trainer that client's: its private tensors, then the shared ones that came. Returns both."""
        state = self.states.get(client, self.fresh_state)
        self.trainer.set_private_state(state)
        self.trainer.set_model_params(received)
        return state | received

    def receive(self, message: Message) -> Params:
        """Returns the shared tensors that a downlink brings: all, or to who took part before, those that changed."""
        changed, others = self.trainer.parts(message.get("round") - 1)
        form, tensors = self.settings.quantize_down, message.get(TENSORS)
        like = changed if message.get("part") else {**changed, **others}
        return codec.unflatten(codec.unpack(tensors, None, like, form), like)

    def pool(self) -> TensorDataset:
        """Returns the training samples of all clients, in their order."""
        parts = [self.samples(client, "train").tensors for client in range(self.settings.clients)]
        return TensorDataset(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def train(self, message: Message) -> None:
        client, number = message.get("client"), message.get("round")
        if not message.get("arrives"):  # it received the model, and keeps the state that it had
            self.node.send(Kind.ABSENT, 0, client=client, round=number)
            return
        self.node.busy = f"client {client}, round {number}"
        if message.get("moves") and client not in self.states:
            self.early[client] = message
            return
        trainer, context = self.trainer, RoundContext(self.settings.seed, client, number - 1)
        received = self.take_up(client, self.receive(message))
        data = self.training_data(client)
        try:
            trainer.fit(data, context)  # looks whether its numbers are finite
        except DivergedError as error:
            self.node.send(Kind.DIVERGED, 0, client=client, round=number, reason=str(error))
            self.node.busy = ""
            return
        finally:
            work.add(self.trained_by, trainer.take_work())
        sent = trainer.changing(number - 1)
        form, waiting = self.settings.uplink, trainer.feedback
        stream = partial(codec.random_stream, "up", self.settings.seed, client, number)
        known = codec.reference(received, sent, trainer.differences, form)
        trained = trainer.get_model_params()
        if self.attack and client in self.poisoners:
            trained = self.attack.message(trained, received, trainer)
        shared = codec.flatten(trained)
        if clip := self.settings.dp_clip:
            shared = privacy.clip(shared, codec.select(received, sent), clip)
        wanted = codec.add_waiting(shared, sent, waiting)
        packed = codec.pack(wanted, known, sent, form, stream(), waiting, trainer.marks)
        arrives = codec.unpack(packed["tensors"], known, sent, form, stream(), waiting, trainer.marks)
        if waiting:
            codec.keep_waiting(waiting, wanted - arrives, sent)
        trainer.settle(codec.unflatten(arrives.to(self.device), sent))
        self.keep_state(client)
        self.node.send(Kind.UPDATE, 0, client=client, round=number, samples=len(data), **packed)
        if message.get("judge"):
            self.judge_trained(context)
        self.node.busy = ""

    def training_data(self, client: int) -> TensorDataset:
        data = self.pool() if self.trainer.pools else self.samples(client, "train")
        return self.attack.data(data) if self.attack and client in self.poisoners else data

    def keep_state(self, client: int) -> None:
        """Keeps what is private to the client that has just been trained."""
        if state := self.trainer.get_private_state():
            self.states[client] = {name: tensor.cpu() for name, tensor in state.items()}

    def judge_trained(self, context: RoundContext) -> None:
        """Notes the figures of the client that has just been trained, where that is the model it would deploy."""
        if self.trainer.judged_on == "trained" and (figures := self.judge(context)):
            self.trained[context.client] = context.round + 1, figures

    def move(self, message: Message) -> None:
        """Hands a client's private state over to the worker that trains it next."""
        client, number = message.get("client"), message.get("round")
        if client not in self.states:  # it is on its way here
            self.passing[client] = message
            return
        state = self.states.pop(client)
        packed = torch.frombuffer(bytearray(save(state)), dtype=torch.uint8)
        count = sum(tensor.numel() for tensor in state.values())
        self.node.send(Kind.STATE, message.get("worker"), packed, client=client, round=number, parameters=count)

    def on_state(self, message: Message) -> None:
        client, packed = message.get("client"), message.get(TENSORS)
        try:
            content = b"" if packed is None else packed.numpy().tobytes()
            self.states[client] = checkpoint.read_state(content, self.fresh_state)
        except checkpoint.RefusedError as error:
            raise MessageError(message, f"for client {client}: {error}") from None
        if client in self.passing:
            self.move(self.passing.pop(client))
        elif client in self.early:
            self.train(self.early.pop(client))

    def judge(self, context: RoundContext) -> ClientFigures | None:
        """Returns the figures of the model that the client would deploy in that round, or None where it diverged."""
        train, *others = (self.samples(context.client, split) for split in ("train", "test", "validation"))
        try:
            with self.trainer.deployed(train, context) as model:
                test, validation = (predict(model, data) for data in others)
                return metrics.judge(test, validation, self.metrics) | self.trigger(model, others[0], test[1])
        except DivergedError as error:
            self.diverged.append((context.client, str(error)))
            return None
        finally:
            work.add(self.adapted_by, self.trainer.take_work())

    def trigger(self, model: nn.Module, data: TensorDataset, logits: Tensor) -> ClientFigures:
        """Returns the success of the trigger on ``data``, of which the ``model`` makes ``logits`` without it."""
        if not self.attack or not self.attack.poison.stamps:
            return {}
        x, y = data.tensors
        labels, stamped = predict(model, TensorDataset(self.attack.stamp(x), y))
        return {metrics.TRIGGER_SUCCESS.name: poisoners.success(labels, logits, stamped)}

    def evaluate(self, message: Message) -> None:
        """Judges every client on the new aggregate, and writes the clients' states where a checkpoint is asked for."""
        received: dict[int, float] = {}
        fresh: dict[int, ClientFigures] = {}
        untrained = set(message.get("untrained"))
        like, clients = self.trainer.travelling, message.get("clients")
        addressed = {name: like[name] for name in self.trainer.addressed}
        of_all, of_one = (sum(tensor.numel() for tensor in each.values()) for each in (like, addressed))
        tensors = torch.empty(0) if message.get(TENSORS) is None else message.get(TENSORS)
        for place, client in enumerate(clients):
            self.node.busy = f"client {client}, evaluation after round {message.get('round')}"
            apart = tensors[of_all + place * of_one :][:of_one]
            self.take_up(client, codec.unflatten(tensors[:of_all], like) | codec.unflatten(apart, addressed))
            received[client] = metrics.accuracy(*predict(self.trainer.model, self.samples(client, "test")))
            context = RoundContext(self.settings.seed, client, message.get("round") - 1)
            if client in untrained and (figures := self.judge(context)):
                fresh[client] = figures
        if folder := message.get("checkpoint"):
            for client, state in self.states.items():
                checkpoint.save_client(Path(folder), client, state)
        self.node.send(
            Kind.RESULTS,
            0,
            round=message.get("round"),
            trained=[(number, client, figures) for client, (number, figures) in self.trained.items()],
            received=received,
            fresh=fresh,
            diverged=self.diverged,
            ledger=self.node.com_manager.ledger.take(),
            trained_by=self.trained_by,
            adapted_by=self.adapted_by,
        )
        self.trained, self.diverged, self.trained_by, self.adapted_by = {}, [], {}, {}
        self.node.busy = ""

    def welcome(self, message: Message) -> None:
        """Judges clients that never took part, as they receive the shared tensors and after they adapted to them."""
        found: dict[int, NewcomerFigures] = {}
        adapted_by: Work = {}
        for client in message.get("clients"):
            self.node.busy = f"new client {client}, evaluation after round {message.get('round')}"
            train, test = (self.samples(client, split) for split in ("train", "test"))
            self.take_up(client, codec.unflatten(message.get(TENSORS), self.trainer.travelling))
            received, adapted = metrics.accuracy(*predict(self.trainer.model, test)), None
            with (
                suppress(DivergedError),
                self.trainer.joined(train, RoundContext(self.settings.seed, client, message.get("round"))) as model,
            ):
                adapted = metrics.accuracy(*predict(model, test))
            found[client] = {"received": received, "adapted": adapted}
            work.add(adapted_by, self.trainer.take_work())
        self.node.send(Kind.NEWCOMERS, 0, round=message.get("round"), figures=found, adapted_by=adapted_by)
        self.node.busy = ""


def pick_device(kind: str, local_rank: int, gpus: int) -> str:
    """Returns the device of a host's rank number ``local_rank``, for torch: the ranks take the ``gpus`` in turn."""
    return f"cuda:{local_rank % gpus}" if kind == "cuda" else kind


class Worker(Node):
    def __init__(self, transport: MpiTransport, node: int, experiments: list[Experiment], local_rank: int) -> None:
        """``local_rank``: this rank's number on its host."""
        super().__init__(transport, node)
        self.experiments, self.local_rank = experiments, local_rank

    def register_message_receive_handlers(self) -> None:
        self.register_message_receive_handler(Kind.SETUP, self.set_up)
        self.register_message_receive_handler(Kind.FINISH, lambda message: self.com_manager.stop_receive_message())
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
        """Takes up an experiment: its share of the clients answers what follows."""
        self.message_handler_dict.clear()  # lets go of the share in the experiment before
        self.register_message_receive_handlers()
        experiment = self.experiments[message.get("experiment")]
        torch.set_num_threads(experiment.settings.threads)
        device = pick_device(experiment.settings.device, self.local_rank, torch.cuda.device_count())
        share = Share(self, experiment, device, message.get("partition_sha256"))
        share.restore(message.get("checkpoint"), message.get("states"))
        self.take_up(share, message.get("round"))
        self.send(Kind.READY, 0, **cores())

    def take_up(self, share: Share, number: int) -> None:
        """Lets ``share`` answer what follows. ``number``: the rounds that it has taken."""
        for kind, answer in share.answers().items():
            self.register_message_receive_handler(kind, answer)
