"""What messages cost, in this runtime and in stock FedML: rank 0 sends n parameters to each other rank and gets n back.

    mpirun -np 11 python -m benchmarks.perf.messages [--stock] 200000 1600000 15000000

Prints JSON: the seconds of one exchange for each n, and what the waiting ranks take of one core, all together.
``benchmarks.perf.runtime`` runs both.
"""

import json
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.runtime.launch import defer_packages, launch

EXCHANGES = 5  # each n; the median counts
IDLE = 5.0  # seconds


def load() -> None:
    import benchmarks.runtime.transport  # noqa: F401


def exchange(comm: Any, manager: Any, payload: Any, sizes: list[int], finish: Any) -> None:
    """Runs one rank. ``payload(n)`` is what a message carries; ``finish`` ends the job."""
    import psutil
    from fedml.core.distributed.communication.message import Message

    from benchmarks.runtime.messages import TENSORS, Kind

    pids = comm.gather(os.getpid())
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    due = [n for n in sizes for _ in range(EXCHANGES)]

    class Node:
        waiting, begin = 0, 0.0

        def get_sender_id(self) -> int:
            return int(comm.rank)

        def receive_message(self, kind: Any, message: Any) -> None:
            if message.get(TENSORS) is None:  # the managers' own greeting
                return
            if comm.rank:
                self.send(Kind.UPDATE, 0, message.get(TENSORS))
                return
            self.waiting -= 1
            if not self.waiting:
                seconds[due.pop(0)].append(time.perf_counter() - self.begin)
                self.next()

        def send(self, kind: Kind, receiver: int, tensors: Any) -> None:
            message = Message(int(kind), comm.rank, receiver)
            message.add_params(TENSORS, tensors)
            message.add_params("client", receiver)
            message.add_params("round", 1)
            manager.send_message(message)

        def next(self) -> None:
            if not due:
                idle = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids[1:])
                time.sleep(IDLE)
                idle = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids[1:]) - idle
                medians = {n: statistics.median(each) for n, each in seconds.items()}
                os.write(1, (json.dumps({"seconds": medians, "idle": idle / IDLE}) + "\n").encode())
                time.sleep(0.3)  # mpirun drops what it has not yet read when a rank aborts
                finish()
                return
            self.waiting, self.begin = comm.size - 1, time.perf_counter()
            tensors = payload(due[0])
            for rank in range(1, comm.size):
                self.send(Kind.TRAIN, rank, tensors)

    node = Node()
    manager.add_observer(node)
    if comm.rank == 0:
        node.next()
    manager.handle_receive_message()


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:] if word.isdigit()]
    if "--stock" in sys.argv:
        defer_packages()
        import logging

        import torch
        from fedml.core.distributed.communication.mpi.com_manager import MpiCommunicationManager
        from mpi4py import MPI

        MPI.Init_thread()
        comm = MPI.COMM_WORLD
        logging.disable()
        manager = MpiCommunicationManager(comm, comm.rank, comm.size)
        exchange(comm, manager, lambda n: {"w": torch.zeros(n)}, sizes, lambda: comm.Abort(0))
        return
    group = launch(load)
    import torch

    from benchmarks.runtime.transport import MpiTransport

    exchange(group.comm, MpiTransport(group), torch.zeros, sizes, lambda: group.comm.Abort(0))


if __name__ == "__main__":
    main()
