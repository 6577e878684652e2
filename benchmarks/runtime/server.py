"""The server: on rank 0, takes one experiment after another through its rounds."""

import time
from typing import Any

import numpy as np
from fedml.core.distributed.communication.message import Message
from torch import Tensor

from benchmarks import checkpoint, codec
from benchmarks.experiment import Experiment, Run, sample_clients
from benchmarks.ledger import Entry
from benchmarks.record import ClientFigures, Totals
from benchmarks.runtime.client import Node
from benchmarks.runtime.messages import TENSORS, Kind, flatten, unflatten
from benchmarks.runtime.transport import MpiTransport
from benchmarks.screen import Screen


def assign(sizes: np.ndarray, workers: int) -> list[list[int]]:
    """Returns each worker's clients, sorted: the largest client first, to the worker with the fewest samples so far."""
    clients: list[list[int]] = [[] for _ in range(workers)]
    load = np.zeros(workers, np.int64)
    for client in np.argsort(-sizes, kind="stable"):
        worker = int(load.argmin())
        clients[worker].append(int(client))
        load[worker] += sizes[client]
    return [sorted(own) for own in clients]


class Server(Node):
    """Each handler ends by sending what comes next, so that the order of events reads from top to bottom."""

    current: Run

    def __init__(self, transport: MpiTransport, experiments: list[Experiment], screen: Screen, launched: float) -> None:
        """``launched``: when the job was started, in seconds since the epoch."""
        super().__init__(transport, 0)
        self.workers = range(1, transport.workers + 1)
        self.experiments, self.screen, self.started = experiments, screen, launched
        self.index = -1
        self.waiting: set[int] = set()  # the workers or clients whose answer is due
        self.busy = "server, start"  # what to name if this rank fails

    def register_message_receive_handlers(self) -> None:
        self.register_message_receive_handler(Kind.READY, self.on_ready)
        self.register_message_receive_handler(Kind.UPDATE, self.on_update)
        self.register_message_receive_handler(Kind.DIVERGED, self.on_diverged)
        self.register_message_receive_handler(Kind.RESULTS, self.on_results)

    def run(self) -> None:
        self.next_experiment()
        super().run()

    def all_answered(self, who: int) -> bool:
        self.waiting.discard(who)
        return not self.waiting

    def next_experiment(self) -> None:
        """Sets every worker to the next experiment; after the last, sends all home."""
        self.index += 1
        if self.index == len(self.experiments):
            for worker in self.workers:
                self.send(Kind.FINISH, worker)
            self.com_manager.stop_receive_message()
            return
        run = self.current = Run(self.experiments[self.index])
        shares = assign(run.store.sizes("train"), len(self.workers))
        self.worker_of = {client: worker for worker, own in zip(self.workers, shares, strict=True) for client in own}
        self.waiting = set(self.workers)
        for worker, own in zip(self.workers, shares, strict=True):
            self.send(
                Kind.SETUP,
                worker,
                experiment=self.index,
                partition_sha256=run.store.sha256,
                clients=own,
                checkpoint=str(run.restored) if run.restored else None,
            )

    def on_ready(self, message: Message) -> None:
        if self.all_answered(message.get_sender_id()):
            self.current.seconds["startup"] = time.time() - self.started
            self.screen.begin(self.current.settings, self.current.round)
            self.next_round()

    def downlink(self, number: int) -> tuple[dict[str, Any], Tensor]:
        """Returns what a message of round ``number`` says of the shared tensors, and what a client has then, (n,)."""
        run, form = self.current, self.current.settings.quantize_down
        shared = flatten(run.aggregator.get_model_params())
        packed = codec.pack(shared, None, run.travelling, form, codec.random_stream(2, run.settings.seed, number))
        return packed, codec.unpack(packed["tensors"], None, run.travelling, form)

    def next_round(self) -> None:
        """Sends the shared tensors to the round's participants: the downlink."""
        run = self.current
        if run.round == run.settings.rounds:
            self.finish_experiment()
            return
        run.round += 1
        self.busy = f"server, {run.settings.label}, round {run.round}"
        self.clock = time.perf_counter()
        run.participants = sample_clients(run.settings.seed, run.round, run.store.clients, run.per_round)
        self.waiting = set(run.participants)
        packed, self.received = self.downlink(run.round)
        # Unless all take part in every round, a client is judged whenever it trains: its model of today is gone later.
        judge = run.judged() or run.per_round < run.store.clients
        for client in run.participants:
            self.send(Kind.TRAIN, self.worker_of[client], client=client, round=run.round, judge=judge, **packed)

    def on_update(self, message: Message) -> None:
        """Takes one client's shared tensors: the uplink."""
        client, run = message.get("client"), self.current
        shared = codec.unpack(message.get(TENSORS), self.received, run.travelling, run.settings.quantize)
        run.updates[client] = (message.get("samples"), unflatten(shared, run.travelling))
        if self.all_answered(client):
            self.close_round()

    def on_diverged(self, message: Message) -> None:
        client = message.get("client")
        self.current.give_up(client, message.get("reason"))
        if self.all_answered(client):
            self.close_round()

    def close_round(self) -> None:
        """Aggregates, and asks the workers for what is due after this round."""
        run = self.current
        judge, keep = run.judged(), run.due(run.settings.checkpoint_every)
        if run.diverged:
            judge = keep = False
        else:
            run.aggregate()
        run.seconds["training"] += time.perf_counter() - self.clock
        if not (judge or keep or run.diverged):
            self.screen.advance(run.round, {}, {})
            self.next_round()
            return
        self.clock = time.perf_counter()
        self.folder = checkpoint.begin(run.settings.directory, run.round) if keep else None
        self.waiting = set(self.workers)
        shared = self.downlink(run.round + 1)[1] if judge else None
        folder = str(self.folder) if self.folder else None
        for worker in self.workers:
            self.send(Kind.EVALUATE, worker, shared, round=run.round, judge=judge, checkpoint=folder)

    def on_results(self, message: Message) -> None:
        run = self.current
        trained = {int(client): ClientFigures(**figures) for client, figures in message.get("trained").items()}
        fresh = {int(client): ClientFigures(**figures) for client, figures in message.get("fresh").items()}
        received = {int(client): accuracy for client, accuracy in message.get("received").items()}
        run.entries += [Entry(*entry) for entry in message.get("ledger")]
        run.judge(received, fresh, trained)
        for client, reason in message.get("diverged"):
            run.give_up(client, reason)
        if self.all_answered(message.get_sender_id()):
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
            run.recorder.round(run.round, figures, dict(sorted(run.received.items())), Totals(**run.sent), seconds)
            if run.settings.histograms:
                run.recorder.weights(run.round, run.weights())
        if self.folder:
            run.keep(self.folder)
        self.screen.advance(run.round, run.figures, run.sent)
        self.next_round()

    def finish_experiment(self) -> None:
        now = time.time()
        self.current.finish(now - self.started)
        self.screen.end(self.current)
        self.started = now
        self.next_experiment()
