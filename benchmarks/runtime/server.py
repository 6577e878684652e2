"""The server: on rank 0, takes one experiment after another through its rounds."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedml.core.distributed.communication.message import Message
from pydantic import ValidationError
from torch import Tensor

from baselines.base import Params
from benchmarks.federation import codec
from benchmarks.federation.experiment import Experiment, Run
from benchmarks.federation.ledger import Entry
from benchmarks.federation.metrics import NewcomerFigures
from benchmarks.federation.participation import Participants
from benchmarks.federation.rounds import (
    Downlink,
    Newcomers,
    Results,
    Steps,
    Updates,
    judge_newcomers,
    judged_in_training,
    take_rounds,
)
from benchmarks.federation.summary import finish
from benchmarks.runtime.messages import TENSORS, Kind, MessageError, encode, enter
from benchmarks.runtime.node import Node
from benchmarks.runtime.screen import Screen
from benchmarks.runtime.transport import MpiTransport

AHEAD = 2  # clients a worker has been sent and not yet answered: one trains, one waits

OF_CLIENT = (Kind.UPDATE, Kind.DIVERGED, Kind.ABSENT)
"""The answers that are a client's; the others are a worker's."""


def place(
    sizes: Mapping[int, int], home: Mapping[int, int], workers: Sequence[int], limit: float
) -> tuple[dict[int, list[int]], int]:
    """Returns each worker's clients and the largest load: the largest client first, to its home or the idlest worker.

    ``sizes``: samples of each client. A client goes to its ``home`` unless that brings it above ``limit`` samples.
    """
    clients: dict[int, list[int]] = {worker: [] for worker in workers}
    load = dict.fromkeys(workers, 0)
    for client in sorted(sizes, key=lambda client: (-sizes[client], client)):
        worker = home.get(client)
        if worker is None or load[worker] + sizes[client] > limit:
            worker = min(workers, key=lambda each: load[each])
        clients[worker].append(client)
        load[worker] += sizes[client]
    return clients, max(load.values())


def balance(sizes: Mapping[int, int], home: Mapping[int, int], workers: Sequence[int]) -> dict[int, list[int]]:
    """Returns each worker's clients. They stay at home where that costs nobody more than if none of them had one."""
    _, limit = place(sizes, {}, workers, 0)
    return place(sizes, home, workers, limit)[0]


class Server(Node):
    """``work`` is the whole job from top to bottom. It stops where an answer is due, and goes on when one comes.

    The rounds are federation/rounds.py's; the server is the ``Clients`` that it asks for.
    """

    def __init__(self, transport: MpiTransport, experiments: list[Experiment], screen: Screen, launched: float) -> None:
        """``launched``: when the job was started, on the clock of ``time.monotonic``."""
        super().__init__(transport, 0)
        self.workers = range(1, transport.worker_count + 1)
        self.experiments, self.screen, self.started = experiments, screen, launched
        self.home: dict[int, int] = {}  # the worker that trained a client last and has its private state
        self.waiting: set[tuple[Kind, int]] = set()  # the answers that are due, and from which client or worker
        self.patience = 0.0  # seconds of silence that are borne while answers are due; 0: any
        self.busy = "server, start"
        self.seen = time.monotonic()  # when the workers last heard from here without being asked for anything
        self.turns = self.work()

    def register_message_receive_handlers(self) -> None:
        for kind in (Kind.READY, Kind.RESULTS, Kind.NEWCOMERS, *OF_CLIENT):
            self.register_message_receive_handler(kind, self.go_on)

    def run(self) -> None:
        self.com_manager.on_silence = self.on_silence
        next(self.turns)
        super().run()

    def go_on(self, message: Message) -> None:
        """Hands an answer to ``work``, which goes on to where it needs the next one, or to its end."""
        try:
            self.turns.send(message)
        except StopIteration:
            self.com_manager.stop_receive_message()

    def on_silence(self, seconds: float) -> None:
        """Raises TimeoutError where an answer is due and nobody has said anything for ``--comm-timeout`` seconds.

        Lets the workers know meanwhile that the server is there: a worker may wait long for what others have to do.
        """
        if self.patience and self.com_manager.comm.size > 1 and time.monotonic() - self.seen > self.patience / 4:
            self.seen = time.monotonic()
            for worker in self.workers:
                self.send(Kind.WAIT, worker)
        if self.waiting and 0 < self.patience < seconds:
            kind, who = min(self.waiting)
            rank, client = (self.home[who], f", client {who}") if kind in OF_CLIENT else (who, "")
            raise TimeoutError(f"nothing from rank {rank}{client} for {seconds:.1f} seconds (--comm-timeout)")

    def work(self) -> Steps[None]:
        """Takes one experiment after another through its rounds, then sends the workers home."""
        for index, experiment in enumerate(self.experiments):
            run = Run(experiment, self.started)
            yield from self.set_up(run, index)
            run.progress.seconds["startup"] += time.monotonic() - self.started
            self.screen.begin(run.settings, run.progress.round)
            yield from take_rounds(run, self, self.screen.advance)
            yield from judge_newcomers(run, self)
            finish(run, len(self.workers))
            self.started = time.monotonic()
            self.screen.end(run)
        self.screen.leave(run.settings.out)
        for worker in self.workers:
            self.send(Kind.FINISH, worker)

    def set_up(self, run: Run, index: int) -> Steps[None]:
        """Sets every worker to the experiment of this ``index``."""
        shares, _ = place(dict(enumerate(run.sizes)), {}, self.workers, 0)
        self.home = {client: worker for worker, own in shares.items() for client in own}
        self.patience = run.settings.comm_timeout
        states = run.restored.record.states if run.restored else {}
        for worker, own in shares.items():
            self.send(
                Kind.SETUP,
                worker,
                experiment=index,
                partition_sha256=run.store.sha256,
                checkpoint=str(run.restored.folder) if run.restored else None,
                states=[(client, states[client]) for client in own if client in states],
            )
        self.waiting = {(Kind.READY, worker) for worker in self.workers}
        while self.waiting:
            self.tick_off((yield), run)

    def train(self, run: Run, participants: Participants, downlink: Downlink) -> Steps[Updates]:
        """As ``Clients.train``, where each client trains on the worker that is its home then."""
        self.busy = f"server, {run.settings.label}, round {run.progress.round}"
        arriving = set(participants.arriving)
        updates: Updates = {}
        sent = run.trainer.changing(run.progress.round - 1)
        received = codec.unflatten(downlink.received, run.trainer.travelling)
        known = codec.known(codec.select(received, sent), sent, run.trainer.differences)
        # Not all at once: the shared tensors would pile up in a worker's memory.
        queues = self.spread(run, participants, downlink)
        for queue in queues.values():
            for _ in range(min(AHEAD, len(queue))):
                self.send_message(queue.popleft())
        self.waiting = {(Kind.UPDATE if c in arriving else Kind.ABSENT, c) for c in participants.drawn}
        while self.waiting:
            client = self.tick_off(message := (yield), run)
            if message.get_type() == Kind.UPDATE:
                updates[client] = self.update(message, run, known, sent)
            elif message.get_type() == Kind.DIVERGED:
                run.give_up(client, message.get("reason"))
            done = len(participants.drawn) - len(self.waiting)
            self.screen.within(run.progress.round, "client", done, len(participants.drawn))
            if queue := queues[self.home[client]]:
                self.send_message(queue.popleft())
        return updates

    def tick_off(self, message: Message, run: Run) -> int:
        """Returns whose answer this is, a client's or a worker's, and no longer waits for it.

        Raises MessageError unless it is due, from this sender, in this round.
        """
        kind, sender = Kind(message.get_type()), message.get_sender_id()
        of_client = kind in OF_CLIENT
        who = message.get("client") if of_client else sender
        answer = (Kind.UPDATE if kind == Kind.DIVERGED else kind, who)
        if answer not in self.waiting or sender != (self.home[who] if of_client else who):
            raise MessageError(message, f"none was due from it for {'client' if of_client else 'worker'} {who}")
        if kind != Kind.READY and message.get("round") != run.progress.round:
            raise MessageError(message, f"for round {message.get('round')} in round {run.progress.round}")
        self.waiting.remove(answer)
        return who

    def spread(self, run: Run, participants: Participants, downlink: Downlink) -> dict[int, deque[Message]]:
        """Spreads the round's participants over the workers. Returns each worker's messages: the downlinks."""
        arriving, number = participants.arriving, run.progress.round
        shares = balance({client: run.sizes[client] for client in arriving}, self.home, self.workers)
        with_state = run.progress.seen if run.trainer.kept else set()
        moving = {c for worker, own in shares.items() for c in own if c in with_state and self.home[c] != worker}
        for worker, own in shares.items():
            for client in own:
                if client in moving:
                    self.send(Kind.MOVE, self.home[client], client=client, round=number, worker=worker)
                self.home[client] = worker
        for client in participants.drawn:
            if client not in arriving:
                shares[self.home[client]].append(client)
        judge = judged_in_training(run)
        return {
            worker: deque(
                self.downlink_to(c, downlink, round=number, arrives=c in arriving, moves=c in moving, judge=judge)
                for c in own
            )
            for worker, own in shares.items()
        }

    def downlink_to(self, client: int, downlink: Downlink, **params: Any) -> Message:
        """Returns the message that brings a client the shared tensors."""
        return self.message(Kind.TRAIN, self.home[client], client=client, **params, **downlink.to(client))

    def update(self, message: Message, run: Run, known: Tensor, sent: Mapping[str, Tensor]) -> tuple[float, Params]:
        """Returns what an uplink brings: the client's samples and the tensors ``sent``. Raises MessageError."""
        client, samples, settings = message.get("client"), message.get("samples"), run.settings
        if samples != run.sizes[client]:
            raise MessageError(message, f"client {client} has {run.sizes[client]} samples, not {samples}")
        stream = codec.random_stream("up", settings.seed, client, run.progress.round)
        try:
            tensors, form = message.get(TENSORS), settings.uplink
            arrived = codec.unpack(tensors, known, sent, form, stream, run.trainer.feedback)
            return samples, codec.unflatten(arrived, sent)
        except ValueError as error:
            raise MessageError(message, f"for client {client}: {error}") from None

    def report(self, run: Run, downlink: Downlink | None, folder: Path | None) -> Steps[list[Results]]:
        """As ``Clients.report``, from the workers and the server's own part of the ledger."""
        clients: dict[int, list[int]] = {worker: [] for worker in self.workers}
        untrained: dict[int, list[int]] = {worker: [] for worker in self.workers}
        if downlink:
            for client, worker in self.home.items():
                clients[worker].append(client)
            for client in run.untrained():
                untrained[self.home[client]].append(client)
        shared = downlink.received if downlink else None
        for worker, own in clients.items():
            due = {"clients": own, "untrained": untrained[worker], "checkpoint": str(folder) if folder else None}
            self.send(Kind.EVALUATE, worker, shared, round=run.progress.round, **due)
        self.waiting = {(Kind.RESULTS, worker) for worker in self.workers}
        results, judged = [], 0
        while self.waiting:
            judged += len(clients[self.tick_off(message := (yield), run)])
            self.screen.within(run.progress.round, "judging client", judged, len(self.home))
            try:
                results.append(Results.model_validate({name: message.get(name) for name in Results.model_fields}))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise MessageError(message, f"its {where} is {first['input']!r:.40}: {first['msg']}") from None
        own_ledger = self.com_manager.ledger.take()
        return [*results, Results(trained=[], received={}, fresh={}, diverged=[], ledger=own_ledger)]

    def welcome(self, run: Run, downlink: Downlink) -> Steps[dict[int, NewcomerFigures]]:
        """As ``Clients.welcome``."""
        sizes = run.store.sizes("train").tolist()
        shares, _ = place(
            {client: sizes[client] for client in range(run.settings.clients, len(sizes))}, {}, self.workers, 0
        )
        for worker, own in shares.items():
            self.send(Kind.WELCOME, worker, downlink.received, round=run.progress.round, clients=own)
        self.waiting = {(Kind.NEWCOMERS, worker) for worker in self.workers}
        found: dict[int, NewcomerFigures] = {}
        while self.waiting:
            self.tick_off(message := (yield), run)
            try:
                found |= Newcomers.model_validate({"figures": message.get("figures")}).figures
            except ValidationError as error:
                raise MessageError(message, f"its figures are none: {error.errors()[0]['msg']}") from None
        return found

    def cost(self, run: Run, participants: Participants, downlink: Downlink) -> list[Entry]:
        """As ``Clients.cost``."""
        arriving, judge = participants.arriving, judged_in_training(run)
        messages = [
            self.downlink_to(c, downlink, round=run.progress.round + 1, arrives=c in arriving, moves=False, judge=judge)
            for c in run.untrained()
        ]
        return [entry for message in messages if (entry := enter(message, *encode(message)))]
