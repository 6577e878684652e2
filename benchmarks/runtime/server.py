"""The server: on rank 0, takes one experiment after another through its rounds."""

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedml.core.distributed.communication.message import Message
from pydantic import BaseModel, ValidationError
from torch import Tensor

from baselines.base import Params, all_finite
from benchmarks.federation import checkpoint, codec
from benchmarks.federation.experiment import Experiment, Run
from benchmarks.federation.ledger import Entry
from benchmarks.federation.recorder import ClientFigures
from benchmarks.federation.settings import sentence
from benchmarks.runtime.messages import TENSORS, Kind, MessageError, encode, enter, flatten, unflatten
from benchmarks.runtime.screen import Screen
from benchmarks.runtime.transport import MpiTransport
from benchmarks.runtime.worker import Node

AHEAD = 2  # clients a worker has been sent and not yet answered: one trains, one waits

OF_CLIENT = (Kind.UPDATE, Kind.DIVERGED, Kind.ABSENT)
"""The answers that are a client's; the others are a worker's."""

Turns = Generator[None, Message, None]
"""What yields where it needs an answer, and is sent each one that comes."""


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


class Results(BaseModel):
    """What a worker reports after a round, or after several."""

    trained: list[tuple[int, int, ClientFigures]]  # round, client
    received: dict[int, float]
    fresh: dict[int, ClientFigures]
    diverged: list[tuple[int, str]]
    ledger: list[tuple[int, int, str, int, int]]


class Server(Node):
    """``work`` is the whole job from top to bottom. It stops where an answer is due, and goes on when one comes."""

    def __init__(self, transport: MpiTransport, experiments: list[Experiment], screen: Screen, launched: float) -> None:
        """``launched``: when the job was started, on the clock of ``time.monotonic``."""
        super().__init__(transport, 0)
        self.workers = range(1, transport.workers + 1)
        self.experiments, self.screen, self.started = experiments, screen, launched
        self.home: dict[int, int] = {}  # the worker that trained a client last and has its private state
        self.waiting: set[tuple[Kind, int]] = set()  # the answers that are due, and from which client or worker
        self.patience = 0.0  # seconds of silence that are borne while answers are due; 0: any
        self.busy = "server, start"  # what to name if this rank fails
        self.seen = time.monotonic()  # when the workers last heard from here without being asked for anything
        self.turns = self.work()

    def register_message_receive_handlers(self) -> None:
        for kind in (Kind.READY, Kind.RESULTS, *OF_CLIENT):
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

    def work(self) -> Turns:
        """Takes one experiment after another through its rounds, then sends the workers home."""
        for index, experiment in enumerate(self.experiments):
            run = Run(experiment, self.started)
            yield from self.set_up(run, index)
            run.seconds["startup"] += time.monotonic() - self.started
            self.screen.begin(run.settings, run.round)
            while run.round < run.settings.rounds and not run.diverged:
                yield from self.round(run)
            run.finish()
            self.started = time.monotonic()
            self.screen.end(run)
        for worker in self.workers:
            self.send(Kind.FINISH, worker)

    def set_up(self, run: Run, index: int) -> Turns:
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

    def round(self, run: Run) -> Turns:
        """One round: draw participants, send, collect, aggregate, judge, record."""
        begun = time.perf_counter()
        run.begin_round()
        self.busy = f"server, {run.settings.label}, round {run.round}"
        packed, received = self.downlink(run, run.round)
        known = codec.known(received, run.travelling, run.differences)

        # Not all at once: the shared tensors would pile up in a worker's memory.
        queues = self.spread(run, packed)
        for queue in queues.values():
            for _ in range(min(AHEAD, len(queue))):
                self.send_message(queue.popleft())
        self.waiting = {(Kind.UPDATE if c in run.arriving else Kind.ABSENT, c) for c in run.participants}
        while self.waiting:
            client = self.tick_off(message := (yield), run)
            if message.get_type() == Kind.UPDATE:
                run.updates[client] = self.update(message, run, known)
            elif message.get_type() == Kind.DIVERGED:
                run.give_up(client, message.get("reason"))
            if queue := queues[self.home[client]]:
                self.send_message(queue.popleft())

        if not run.diverged:
            run.aggregate(unflatten(received, run.travelling))
        judge, keep = (False, False) if run.diverged else (run.judged(), run.kept())
        now = time.perf_counter()
        run.seconds["training"] += now - begun
        if not (judge or keep or run.diverged):
            self.screen.advance(run.round, {}, {})
            return

        folder = checkpoint.begin(run.settings.directory, run.round) if keep else None
        new = self.downlink(run, run.round + 1) if judge else None
        self.ask_for_results(run, new[1] if new else None, folder)
        while self.waiting:
            self.tick_off(message := (yield), run)
            self.take_results(message, run)
        run.entries += self.com_manager.ledger.take()
        run.book()
        run.seconds["evaluation"] += time.perf_counter() - now
        if run.diverged:
            return
        if new:
            run.record(self.due_downlinks(run, new[0]))
        if folder:
            run.keep(folder)
        self.screen.advance(run.round, run.figures, run.sent)

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
        if kind != Kind.READY and message.get("round") != run.round:
            raise MessageError(message, f"for round {message.get('round')} in round {run.round}")
        self.waiting.remove(answer)
        return who

    def downlink(self, run: Run, number: int) -> tuple[dict[str, Any], Tensor]:
        """Returns what a message of round ``number`` says of the shared tensors, and what a client has then, (n,)."""
        form = run.settings.quantize_down
        shared = flatten(run.aggregator.get_model_params())
        packed = codec.pack(shared, None, run.travelling, form, codec.random_stream("down", run.settings.seed, number))
        return packed, codec.unpack(packed["tensors"], None, run.travelling, form)

    def spread(self, run: Run, packed: dict[str, Any]) -> dict[int, deque[Message]]:
        """Spreads the round's participants over the workers. Returns each worker's messages: the downlinks."""
        shares = balance({client: run.sizes[client] for client in run.arriving}, self.home, self.workers)
        moving = {c for worker, own in shares.items() for c in own if run.stateful and self.home[c] != worker}
        moving &= run.seen
        for worker, own in shares.items():
            for client in own:
                if client in moving:
                    self.send(Kind.MOVE, self.home[client], client=client, round=run.round, worker=worker)
                self.home[client] = worker
        for client in run.participants:
            if client not in run.arriving:
                shares[self.home[client]].append(client)
        return {
            worker: deque(self.downlink_to(client, run, run.round, packed, moves=client in moving) for client in own)
            for worker, own in shares.items()
        }

    def downlink_to(self, client: int, run: Run, number: int, packed: dict[str, Any], moves: bool = False) -> Message:
        """Returns the message that brings one of the participants of round ``number`` the shared tensors."""
        return self.message(
            Kind.TRAIN,
            self.home[client],
            client=client,
            round=number,
            arrives=client in run.arriving,
            moves=moves,
            judge=run.judged_in_training(),
            **packed,
        )

    def update(self, message: Message, run: Run, known: Tensor) -> tuple[float, Params]:
        """Returns what an uplink brings: the client's samples and shared tensors. Raises MessageError."""
        client, samples = message.get("client"), message.get("samples")
        if samples != run.sizes[client]:
            raise MessageError(message, f"client {client} has {run.sizes[client]} samples, not {samples}")
        try:
            shared = codec.unpack(message.get(TENSORS), known, run.travelling, run.settings.quantize)
            params = unflatten(shared, run.travelling)
        except ValueError as error:
            raise MessageError(message, f"for client {client}: {error}") from None
        if not all_finite(shared):
            raise MessageError(message, f"a parameter of client {client} is not finite")
        return samples, params

    def ask_for_results(self, run: Run, shared: Tensor | None, folder: Path | None) -> None:
        """Asks the workers for what they found out.

        They judge their clients on the new ``shared`` tensors (n,), where given, and write these clients' states into
        ``folder``, where given.
        """
        clients: dict[int, list[int]] = {worker: [] for worker in self.workers}
        untrained: dict[int, list[int]] = {worker: [] for worker in self.workers}
        if shared is not None:
            for client, worker in self.home.items():
                clients[worker].append(client)
            for client in run.untrained():
                untrained[self.home[client]].append(client)
        for worker, own in clients.items():
            due = {"clients": own, "untrained": untrained[worker], "checkpoint": str(folder) if folder else None}
            self.send(Kind.EVALUATE, worker, shared, round=run.round, **due)
        self.waiting = {(Kind.RESULTS, worker) for worker in self.workers}

    def due_downlinks(self, run: Run, packed: dict[str, Any]) -> list[Entry]:
        """Returns what the ledger would say of the messages to all clients that are judged on what they receive."""
        messages = [self.downlink_to(client, run, run.round + 1, packed) for client in run.untrained()]
        return [entry for message in messages if (entry := enter(message, *encode(message)))]

    def take_results(self, message: Message, run: Run) -> None:
        try:
            results = Results.model_validate({name: message.get(name) for name in Results.model_fields})
        except ValidationError as error:
            raise MessageError(message, sentence(error)) from None
        run.entries += [Entry(*entry) for entry in results.ledger]
        run.trained += results.trained
        run.judge(results.received, results.fresh)
        for client, reason in results.diverged:
            run.give_up(client, reason)
