"""The communication manager under FedML's managers: MPI messages that never block and hardly cost while idle.

FedML's own manager pickles dictionaries, polls from two threads and busies a core. This one posts every send and
receive without blocking, sleeps between looks at MPI, and is woken by a doorbell: a byte on a local datagram socket
whose only meaning is "look now". Between hosts, and where another user took the name of the folder that holds these
sockets, there is none: such a rank looks every two milliseconds.
"""

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from fedml.core.distributed.communication.base_com_manager import BaseCommunicationManager
from fedml.core.distributed.communication.message import Message
from fedml.core.distributed.communication.observer import Observer
from mpi4py import MPI

from benchmarks.federation.ledger import Ledger
from benchmarks.runtime.launch import Group
from benchmarks.runtime.messages import decode, encode, enter, parse_header

HEADER, BODY = 1, 3  # MPI tags
SHORTEST_SLEEP, LONGEST_SLEEP, LONGEST_SLEEP_BY_DOORBELL = 5e-5, 2e-3, 5e-2  # seconds


class MpiTransport(BaseCommunicationManager):
    """Carries messages between nodes: node 0 is the server, nodes 1 … ``worker_count`` train.

    A node lives on the rank of its number; with a single rank, server and worker share it, and messages between them
    pass through the same encoding. Every message that carries tensors of a client is entered in ``ledger``.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.comm, self.ledger = group, group.comm, Ledger()
        self.worker_count = max(1, self.comm.size - 1)
        self.longest_sleep = LONGEST_SLEEP
        self.observers: dict[int, Observer] = {}
        self.sends: list[tuple[Any, np.ndarray]] = []
        self.receives: list[tuple[int, Any, np.ndarray, np.ndarray]] = []  # source, request, header, body
        self.arrived: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self.running = False
        self.on_silence: Callable[[float], None] = lambda seconds: None  # hears for how long nothing has arrived
        self.doorbell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.doorbell.setblocking(False)
        with contextlib.suppress(OSError):
            if group.folder:
                self.doorbell.bind(self._address(self.comm.rank))
                self.longest_sleep = LONGEST_SLEEP_BY_DOORBELL if group.one_host else LONGEST_SLEEP

    def close(self) -> None:
        self.doorbell.close()

    def _address(self, rank: int) -> str:
        return f"{self.group.folder}/{self.group.job}-{rank}"

    def add_observer(self, observer: Any) -> None:
        self.observers[observer.get_sender_id()] = observer

    def remove_observer(self, observer: Any) -> None:
        del self.observers[observer.get_sender_id()]

    def send_message(self, msg: Message) -> None:
        """Starts sending and returns at once. The message's tensors must stay as they are until they have been sent."""
        header, body = encode(msg)
        if entry := enter(msg, header, body):
            self.ledger.entries.append(entry)
        rank = msg.get_receiver_id() % self.comm.size
        if rank == self.comm.rank:
            self.arrived.append((header, body.copy()))
            return
        self.sends.append((self.comm.Isend(header, dest=rank, tag=HEADER), header))
        if len(body):
            self.sends.append((self.comm.Isend(body, dest=rank, tag=BODY), body))
        with contextlib.suppress(OSError):  # another host, or a bell that is ringing already
            self.doorbell.sendto(b"", self._address(rank))

    def handle_receive_message(self) -> None:
        """Hands each message that arrives to the manager it is addressed to, until ``stop_receive_message``."""
        self.running = True
        sleep, last = SHORTEST_SLEEP, time.monotonic()
        while self.running:
            self._look()
            self.on_silence(0 if self.arrived else time.monotonic() - last)
            if self.arrived:
                message = decode(*self.arrived.popleft())
                self.observers[message.get_receiver_id()].receive_message(message.get_type(), message)
                del message  # it may be as large as the model
                sleep, last = SHORTEST_SLEEP, time.monotonic()
                continue
            # A large message moves only while both ends look at MPI.
            longest = 20 * SHORTEST_SLEEP if self.sends or self.receives else self.longest_sleep
            sleep = min(2 * sleep, longest)
            if select.select([self.doorbell], [], [], sleep)[0]:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self.doorbell.recv(1)
                sleep = SHORTEST_SLEEP
        while self.sends:
            self._look()
            select.select([], [], [], SHORTEST_SLEEP)

    def _look(self) -> None:
        """Lets MPI make progress, without waiting for any."""
        self.sends = [send for send in self.sends if not send[0].Test()]
        status = MPI.Status()
        while (message := self.comm.Improbe(tag=HEADER, status=status)) is not None:
            source, header = status.Get_source(), np.empty(status.Get_count(MPI.BYTE), np.uint8)
            message.Recv(header)
            body = np.empty(parse_header(header)[1], np.uint8)
            request = self.comm.Irecv(body, source=source, tag=BODY) if len(body) else MPI.REQUEST_NULL
            self.receives.append((source, request, header, body))
        still, waited_for = [], set[int]()
        for source, request, header, body in self.receives:
            if source not in waited_for and request.Test():
                self.arrived.append((header, body))
            else:  # what the same rank sent later waits too
                waited_for.add(source)
                still.append((source, request, header, body))
        self.receives = still

    def stop_receive_message(self) -> None:
        self.running = False
