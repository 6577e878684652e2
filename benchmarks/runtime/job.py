"""The part of a process in a job: a worker, the server, or both where it is alone."""

from typing import Any

from benchmarks.federation.experiment import Experiment
from benchmarks.runtime.launch import Group
from benchmarks.runtime.screen import Screen
from benchmarks.runtime.server import Server
from benchmarks.runtime.transport import MpiTransport
from benchmarks.runtime.worker import Worker


def work(group: Group, experiments: list[Experiment], launched: float, nodes: list[Any]) -> None:
    """Runs ``experiments`` with the other ranks of ``group``, to their end.

    ``launched``: when the user started this, on the clock of ``time.monotonic``. ``nodes`` comes to hold what this
    process is, so that others can ask what it is busy with.
    """
    kinds: tuple[Any, Any, Any] = MpiTransport, Worker, Server
    if experiments[0].settings.runtime == "fedml":
        from benchmarks.runtime import stock

        kinds = stock.StockTransport, stock.StockWorker, stock.StockServer
    transport = kinds[0](group)
    if group.comm.rank or group.comm.size == 1:
        nodes.append(kinds[1](transport, group.comm.rank or 1, experiments, group.local_rank))
    if group.comm.rank == 0:
        nodes.append(kinds[2](transport, experiments, Screen(len(experiments)), launched))
    for node in nodes[:-1]:  # the last one's run() does that itself
        node.register_message_receive_handlers()
    try:
        nodes[-1].run()
    finally:
        transport.close()
