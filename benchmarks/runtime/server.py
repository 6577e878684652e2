"""The server: on rank 0, takes one experiment after another through its rounds."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fedml.core.distributed.communication.message import Message
from pydantic import ValidationError
from torch import Tensor

from baselines.base import Params
from benchmarks.federation import codec, work
from benchmarks.federation.experiment import Experiment, Newcomers, Run
from benchmarks.federation.ledger import Entry
from benchmarks.federation.participation import Participants
from benchmarks.federation.rounds import (
    Downlink,
    Results,
    Steps,
    judge_newcomers,
    judged_in_training,
    take_rounds,
)
from benchmarks.federation.summary import finish
from benchmarks.federation.updates import Updates
from benchmarks.runtime.dispatch import Plan, Shares, Speeds, largest_first, place
from benchmarks.runtime.messages import TENSORS, Kind, MessageError, encode, enter
from benchmarks.runtime.node import Node
from benchmarks.runtime.screen import Screen
from benchmarks.runtime.transport import MpiTransport

OF_CLIENT = (Kind.UPDATE, Kind.DIVERGED, Kind.ABSENT)
"""The answers that are a client's; the others are a worker's."""


def known_of(run: Run, downlink: Downlink, sent: Mapping[str, Tensor]) -> Tensor | None:
    """Returns what the server knows beforehand of the update of who was sent this; None where it needs nothing."""
    received = codec.unflatten(downlink.received, run.trainer.travelling)
    return codec.reference(received, sent, run.trainer.differences, run.settings.uplink)


def nothing() -> None:
    """Hands out no client: there is no round."""


class Server(Node):
    """``work`` is the whole job from top to bottom. It stops where an answer is due, and goes on when one comes.

    The rounds are federation/rounds.py's; the server is the ``Clients`` that it asks for.
    """

    def __init__(self, transport: MpiTransport, experiments: list[Experiment], screen: Screen, launched: float) -> None:
        """``launched``: when the job was started, on the clock of ``time.monotonic``."""
        super().__init__(transport, 0)
        self.workers = range(1, transport.worker_count + 1)
        self.experiments, self.screen, self.started = experiments, screen, launched
        self.speeds = Speeds(self.workers)
        self.home: dict[int, int] = {}  # the worker that trained a client last and has its private state
        self.at: dict[int, int] = {}  # the worker that each client of this round was sent to
        self.hand_out: Callable[[], None] = nothing
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
        self.hand_out()  # who is late now may lose clients to others
        if self.waiting and 0 < self.patience < seconds:
            kind, who = min(due for due in self.waiting if due[0] not in OF_CLIENT or due[1] in self.at)
            rank, client = (self.at[who], f", client {who}") if kind in OF_CLIENT else (who, "")
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
        shares = self.first_shares(run)
        self.home = {client: worker for worker, own in shares.items() for client in own}
        self.patience = run.settings.comm_timeout
        states = run.restored.record.states if run.restored else {}
        for worker, own in shares.items():
            self.send(
                Kind.SETUP,
                worker,
                experiment=index,
                round=run.progress.round,
                partition_sha256=run.store.sha256,
                checkpoint=str(run.restored.folder) if run.restored else None,
                states=[(client, states[client]) for client in own if client in states],
            )
        self.waiting = {(Kind.READY, worker) for worker in self.workers}
        while self.waiting:
            worker = self.tick_off(message := (yield), run)
            self.speeds.join(worker, message.get("host"), message.get("cores"))

    def first_shares(self, run: Run) -> Shares:
        """Returns where the clients' states are before any worker has been measured."""
        return place(largest_first(dict(enumerate(run.sizes))), {}, dict.fromkeys(self.workers, 1.0), 0)[0]

    def train(self, run: Run, participants: Participants, downlink: Downlink, updates: Updates) -> Steps[None]:
        """As ``Clients.train``, where each client trains on the worker that is free for it."""
        self.busy = f"server, {run.settings.label}, round {run.progress.round}"
        arriving = set(participants.arriving)
        sent = run.trainer.changing(run.progress.round - 1)
        known = known_of(run, downlink, sent)
        self.speeds.choose(run.settings.threads)
        plan = Plan(
            self.speeds,
            {client: run.sizes[client] if client in arriving else 0 for client in participants.drawn},
            self.home,
            arriving & run.progress.seen if run.trainer.kept else (),
            sum(tensor.nbytes for tensor in sent.values()),
            sum(tensor.nbytes for tensor in run.trainer.kept.values()),
        )
        self.at = {}
        self.waiting = {(Kind.UPDATE if c in arriving else Kind.ABSENT, c) for c in participants.drawn}
        self.hand_out = partial(self.send_due, run, plan, arriving, downlink)
        self.hand_out()
        while self.waiting:
            plan.answer(client := self.tick_off(message := (yield), run))
            self.hand_out()
            if message.get_type() == Kind.UPDATE:
                mine = known_of(run, downlink.own(client), sent) if downlink.own else known
                updates.take(client, self.update(message, run, mine, sent))
            elif message.get_type() == Kind.DIVERGED:
                run.give_up(client, message.get("reason"))
            del message  # as large as the model
            done = len(participants.drawn) - len(self.waiting)
            self.screen.within(run.progress.round, "client", done, len(participants.drawn))
        self.hand_out = nothing

    def send_due(self, run: Run, plan: Plan, arriving: Collection[int], downlink: Downlink) -> None:
        """Sends each worker the clients that it is to train now, and has states moved that will be needed elsewhere.

        Not all at once: the shared tensors would pile up in a worker's memory.
        """
        judge = judged_in_training(run.settings, run.progress.round)
        self.move_states(plan, run.progress.round)
        for worker in self.speeds.active:
            while (client := plan.next(worker)) is not None:
                self.move_states(plan, run.progress.round)
                about = {"arrives": client in arriving, "moves": client in plan.moving, "judge": judge}
                self.send_message(self.downlink_to(client, worker, downlink, round=run.progress.round, **about))
                self.at[client] = worker
                if client in arriving:
                    self.home[client] = worker

    def move_states(self, plan: Plan, number: int) -> None:
        """Has each state that lies elsewhere sent to the worker that ``plan`` has chosen."""
        for client, origin in plan.moving.items():
            if self.home[client] == origin:
                self.home[client] = plan.at[client]
                self.send(Kind.MOVE, origin, client=client, round=number, worker=plan.at[client])

    def tick_off(self, message: Message, run: Run) -> int:
        """Returns whose answer this is, a client's or a worker's, and no longer waits for it.

        Raises MessageError unless it is due, from this sender, in this round.
        """
        kind, sender = Kind(message.get_type()), message.get_sender_id()
        of_client = kind in OF_CLIENT
        who = message.get("client") if of_client else sender
        answer = (Kind.UPDATE if kind == Kind.DIVERGED else kind, who)
        if answer not in self.waiting or sender != (self.at.get(who) if of_client else who):
            raise MessageError(message, f"none was due from it for {'client' if of_client else 'worker'} {who}")
        if kind != Kind.READY and message.get("round") != run.progress.round:
            raise MessageError(message, f"for round {message.get('round')} in round {run.progress.round}")
        self.waiting.remove(answer)
        return who

    def downlink_to(self, client: int, worker: int, downlink: Downlink, **params: Any) -> Message:
        """Returns the message that brings a client the shared tensors."""
        return self.message(Kind.TRAIN, worker, client=client, **params, **downlink.of(client).to(client))

    def update(self, message: Message, run: Run, known: Tensor | None, sent: Mapping[str, Tensor]) -> Params:
        """Returns what an uplink brings: the tensors ``sent``. Raises MessageError."""
        client, samples, settings = message.get("client"), message.get("samples"), run.settings
        if samples != run.sizes[client]:
            raise MessageError(message, f"client {client} has {run.sizes[client]} samples, not {samples}")
        stream = codec.random_stream("up", settings.seed, client, run.progress.round)
        try:
            tensors, form, trainer = message.get(TENSORS), settings.uplink, run.trainer
            arrived = codec.unpack(tensors, known, sent, form, stream, trainer.feedback, trainer.marks)
            return codec.unflatten(arrived, sent)
        except ValueError as error:
            raise MessageError(message, f"for client {client}: {error}") from None

    def report(self, run: Run, downlink: Downlink | None, folder: Path | None) -> Steps[list[Results]]:
        """As ``Clients.report``, from the workers and the server's own part of the ledger."""
        clients: dict[int, list[int]] = {worker: [] for worker in self.workers}
        untrained: dict[int, list[int]] = {worker: [] for worker in self.workers}
        if downlink:
            judges = self.where_judged(run)
            for client, worker in judges.items():
                clients[worker].append(client)
            for client in run.untrained():
                untrained[judges[client]].append(client)
        for worker, own in clients.items():
            shared = self.with_addressed(run, downlink, own) if downlink else None
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

    def with_addressed(self, run: Run, downlink: Downlink, clients: Sequence[int]) -> Tensor:
        """Returns what all receive (n,), and after it what each of ``clients`` is sent of its own."""
        if not run.trainer.addressed:
            return downlink.received
        received = (codec.unflatten(downlink.of(client).received, run.trainer.travelling) for client in clients)
        own = (codec.flatten({name: each[name] for name in run.trainer.addressed}) for each in received)
        return torch.cat([downlink.received, *own])

    def where_judged(self, run: Run) -> dict[int, int]:
        """Returns the worker that judges each client: where its state lies, if it has one, else who is done first."""
        stays = run.progress.seen if run.trainer.kept else set()
        found = {client: self.home[client] for client in stays}
        shares, _ = place(largest_first(dict(enumerate(run.sizes))), found, self.speeds.paces, math.inf)
        return {client: worker for worker, own in shares.items() for client in own} | found

    def welcome(self, run: Run, downlink: Downlink, who: Collection[int]) -> Steps[Newcomers]:
        """As ``Clients.welcome``."""
        sizes = run.store.sizes("train").tolist()
        shares, _ = place(largest_first({client: sizes[client] for client in who}), {}, self.speeds.paces, 0)
        found, number = Newcomers(), run.progress.round
        for worker in self.workers:
            own = shares.get(worker, [])
            self.send(Kind.WELCOME, worker, downlink.received, round=number, clients=own)
            found.downlinks += self.price(run, downlink, dict.fromkeys(own, worker), own, judge=True)
        self.waiting = {(Kind.NEWCOMERS, worker) for worker in self.workers}
        while self.waiting:
            self.tick_off(message := (yield), run)
            try:
                said = Newcomers.model_validate({name: message.get(name) for name in ("figures", "adapted_by")})
                found.figures |= said.figures
                work.add(found.adapted_by, said.adapted_by)
            except ValidationError as error:
                raise MessageError(message, f"its figures are none: {error.errors()[0]['msg']}") from None
        return found

    def cost(self, run: Run, participants: Participants, downlink: Downlink) -> list[Entry]:
        """As ``Clients.cost``."""
        judge = judged_in_training(run.settings, run.progress.round)
        return self.price(run, downlink, {c: self.home[c] for c in run.untrained()}, participants.arriving, judge)

    def price(
        self, run: Run, downlink: Downlink, to: Mapping[int, int], arriving: Collection[int], judge: bool
    ) -> list[Entry]:
        """Returns what the ledger would say if these clients, each on its worker, were sent this in the next round."""
        number = run.progress.round + 1
        messages = [
            self.downlink_to(c, worker, downlink, round=number, arrives=c in arriving, moves=False, judge=judge)
            for c, worker in to.items()
        ]
        return [entry for message in messages if (entry := enter(message, *encode(message)))]
