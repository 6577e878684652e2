"""The server: on rank 0, takes one experiment after another through its rounds."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fedml.core.distributed.communication.message import Message
from pydantic import BaseModel, ValidationError
from torch import Tensor

from baselines.fedavg import all_finite
from benchmarks import checkpoint, codec
from benchmarks.config import sentence
from benchmarks.experiment import Experiment, Run
from benchmarks.ledger import Entry
from benchmarks.record import ClientFigures, Totals
from benchmarks.runtime.client import Node
from benchmarks.runtime.messages import TENSORS, Kind, MessageError, flatten, unflatten
from benchmarks.runtime.transport import MpiTransport
from benchmarks.screen import Screen

AHEAD = 2  # clients a worker has been sent and not yet answered: one trains, one waits


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
    """Each handler ends by sending what comes next, so that the order of events reads from top to bottom."""

    current: Run

    def __init__(self, transport: MpiTransport, experiments: list[Experiment], screen: Screen, launched: float) -> None:
        """``launched``: when the job was started, on the clock of ``time.monotonic``."""
        super().__init__(transport, 0)
        self.workers = range(1, transport.workers + 1)
        self.experiments, self.screen, self.started = experiments, screen, launched
        self.index = -1
        # Whose answer is due: READY and RESULTS of workers, UPDATE of clients.
        self.waiting: set[tuple[Kind, int]] = set()
        self.busy = "server, start"  # what to name if this rank fails

    def register_message_receive_handlers(self) -> None:
        self.register_message_receive_handler(Kind.READY, self.on_ready)
        self.register_message_receive_handler(Kind.UPDATE, self.on_update)
        self.register_message_receive_handler(Kind.DIVERGED, self.on_diverged)
        self.register_message_receive_handler(Kind.RESULTS, self.on_results)

    def run(self) -> None:
        self.com_manager.on_silence = self.on_silence
        self.next_experiment()
        super().run()

    def on_silence(self, seconds: float) -> None:
        """Raises TimeoutError where an answer is due and nobody has said anything for ``--comm-timeout`` seconds."""
        if self.waiting and 0 < self.current.settings.comm_timeout < seconds:
            kind, who = min(self.waiting)
            rank, client = (self.home[who], f", client {who}") if kind == Kind.UPDATE else (who, "")
            raise TimeoutError(f"nothing from rank {rank}{client} for {seconds:.1f} seconds (--comm-timeout)")

    def all_answered(self, kind: Kind, who: int) -> bool:
        self.waiting.discard((kind, who))
        return not self.waiting

    def expect(self, message: Message, kind: Kind, who: int) -> None:
        """Raises MessageError unless this answer is due, from this sender, in this round."""
        sender, run = message.get_sender_id(), self.current
        if (kind, who) not in self.waiting or sender != (self.home[who] if kind == Kind.UPDATE else who):
            raise MessageError(
                message, f"none was due from it for {'client' if kind == Kind.UPDATE else 'worker'} {who}"
            )
        if kind != Kind.READY and message.get("round") != run.round:
            raise MessageError(message, f"for round {message.get('round')} in round {run.round}")

    def next_experiment(self) -> None:
        """Sets every worker to the next experiment; after the last, sends all home."""
        self.index += 1
        if self.index == len(self.experiments):
            for worker in self.workers:
                self.send(Kind.FINISH, worker)
            self.com_manager.stop_receive_message()
            return
        run = self.current = Run(self.experiments[self.index])
        shares, _ = place(dict(enumerate(run.sizes)), {}, self.workers, 0)
        self.home = {client: worker for worker, own in shares.items() for client in own}
        self.waiting = {(Kind.READY, worker) for worker in self.workers}
        for worker, own in shares.items():
            self.send(
                Kind.SETUP,
                worker,
                experiment=self.index,
                partition_sha256=run.store.sha256,
                clients=own,
                checkpoint=str(run.restored) if run.restored else None,
            )

    def on_ready(self, message: Message) -> None:
        self.expect(message, Kind.READY, worker := message.get_sender_id())
        if self.all_answered(Kind.READY, worker):
            self.current.seconds["startup"] = time.monotonic() - self.started
            self.screen.begin(self.current.settings, self.current.round)
            self.next_round()

    def downlink(self, number: int) -> tuple[dict[str, Any], Tensor]:
        """Returns what a message of round ``number`` says of the shared tensors, and what a client has then, (n,)."""
        run, form = self.current, self.current.settings.quantize_down
        shared = flatten(run.aggregator.get_model_params())
        packed = codec.pack(shared, None, run.travelling, form, codec.random_stream("down", run.settings.seed, number))
        return packed, codec.unpack(packed["tensors"], None, run.travelling, form)

    def next_round(self) -> None:
        """Spreads the round's participants over the workers, and sends each of these its first ones."""
        run = self.current
        if run.round == run.settings.rounds:
            self.finish_experiment()
            return
        run.begin_round()
        self.busy = f"server, {run.settings.label}, round {run.round}"
        self.clock = time.perf_counter()
        self.waiting = {(Kind.UPDATE, client) for client in run.arriving}
        self.packed, self.received = self.downlink(run.round)
        shares = balance({client: run.sizes[client] for client in run.arriving}, self.home, self.workers)
        self.moving = {c for worker, own in shares.items() for c in own if run.stateful and self.home[c] != worker}
        self.moving &= run.seen
        for worker, own in shares.items():
            for client in own:
                if client in self.moving:
                    self.send(Kind.MOVE, self.home[client], client=client, round=run.round, worker=worker)
                self.home[client] = worker
        for client in run.participants:
            if client not in run.arriving:
                self.send_shared(client)
        self.queue = {worker: deque(own) for worker, own in shares.items()}
        for worker in self.workers:
            for _ in range(AHEAD):
                self.feed(worker)
        if not self.waiting:
            self.close_round()

    def feed(self, worker: int) -> None:
        """Sends the worker its next client. Not all at once: the shared tensors would pile up in its memory."""
        if self.queue[worker]:
            self.send_shared(self.queue[worker].popleft())

    def send_shared(self, client: int) -> None:
        """Sends the shared tensors to one of the round's participants: the downlink."""
        run = self.current
        self.send(
            Kind.TRAIN,
            self.home[client],
            client=client,
            round=run.round,
            arrives=client in run.arriving,
            moves=client in self.moving,
            judge=run.judged_in_training(),
            **self.packed,
        )

    def on_update(self, message: Message) -> None:
        """Takes one client's shared tensors: the uplink."""
        client, run = message.get("client"), self.current
        self.expect(message, Kind.UPDATE, client)
        if (samples := message.get("samples")) != run.sizes[client]:
            raise MessageError(message, f"client {client} has {run.sizes[client]} samples, not {samples}")
        try:
            shared = codec.unpack(message.get(TENSORS), self.received, run.travelling, run.settings.quantize)
            run.updates[client] = (samples, unflatten(shared, run.travelling))
        except ValueError as error:
            raise MessageError(message, f"for client {client}: {error}") from None
        if not all_finite(shared):
            raise MessageError(message, f"a parameter of client {client} is not finite")
        self.go_on(client)

    def on_diverged(self, message: Message) -> None:
        client = message.get("client")
        self.expect(message, Kind.UPDATE, client)
        self.current.give_up(client, message.get("reason"))
        self.go_on(client)

    def go_on(self, client: int) -> None:
        """After a client's answer: the worker's next client, or the end of the round."""
        self.feed(self.home[client])
        if self.all_answered(Kind.UPDATE, client):
            self.close_round()

    def close_round(self) -> None:
        """Aggregates, and asks the workers for what is due after this round."""
        run = self.current
        if not run.diverged:
            run.aggregate()
        judge, keep = (False, False) if run.diverged else (run.judged(), run.kept())
        run.seconds["training"] += time.perf_counter() - self.clock
        if not (judge or keep or run.diverged):
            self.screen.advance(run.round, {}, {})
            self.next_round()
            return
        self.clock = time.perf_counter()
        self.folder = checkpoint.begin(run.settings.directory, run.round) if keep else None
        self.waiting = {(Kind.RESULTS, worker) for worker in self.workers}
        shared = self.downlink(run.round + 1)[1] if judge else None
        folder = str(self.folder) if self.folder else None
        clients: dict[int, list[int]] = {worker: [] for worker in self.workers}
        untrained: dict[int, list[int]] = {worker: [] for worker in self.workers}
        if judge:
            for client, worker in self.home.items():
                clients[worker].append(client)
            for client in run.untrained():
                untrained[self.home[client]].append(client)
        for worker, own in clients.items():
            due = {"clients": own, "untrained": untrained[worker]}
            self.send(Kind.EVALUATE, worker, shared, round=run.round, **due, checkpoint=folder)

    def on_results(self, message: Message) -> None:
        worker, run = message.get_sender_id(), self.current
        self.expect(message, Kind.RESULTS, worker)
        try:
            results = Results.model_validate({name: message.get(name) for name in Results.model_fields})
        except ValidationError as error:
            raise MessageError(message, sentence(error)) from None
        run.entries += [Entry(*entry) for entry in results.ledger]
        run.trained += results.trained
        run.judge(results.received, results.fresh)
        for client, reason in results.diverged:
            run.give_up(client, reason)
        if self.all_answered(Kind.RESULTS, worker):
            self.record_round()

    def record_round(self) -> None:
        run = self.current
        run.entries += self.com_manager.ledger.take()
        run.book()
        run.seconds["evaluation"] += time.perf_counter() - self.clock
        if run.diverged:
            self.finish_experiment()
            return
        if run.judged():
            figures = dict(sorted(run.figures.items()))
            seconds = run.seconds["training"] + run.seconds["evaluation"]
            run.recorder.round(
                run.round, figures, dict(sorted(run.received.items())), Totals(**run.sent, **run.absent), seconds
            )
            if run.settings.histograms:
                run.recorder.weights(run.round, run.weights())
        if self.folder:
            run.keep(self.folder)
        self.screen.advance(run.round, run.figures, run.sent)
        self.next_round()

    def finish_experiment(self) -> None:
        now = time.monotonic()
        self.current.finish(now - self.started)
        self.screen.end(self.current)
        self.started = now
        self.next_experiment()
