"""Lets the ranks of a host import once: the first of them imports, then forks a child to be each of them.

To MPICH's launcher (Hydra) a rank is whoever speaks on the socket that it left in ``PMI_FD``. So the processes that it
started hand that socket, their output and their environment to the first of them on their host, and wait:

    mpirun ─ proxy ─┬─ first process: imports, forks, watches ─┬─ rank 0
                    ├─ second process: waits                   ├─ rank 1
                    └─ third process: waits                    └─ rank 2

What makes it sound:
- The fork happens before MPI is initialised and with a single thread. Where an import left another thread behind
  (``OMP_NUM_THREADS`` above 1, say) nobody forks, and every process goes on by itself.
- A child has all that makes a process a rank: PMI socket, standard output and error, environment, command line.
- One end is everybody's. The kernel kills the children when the first process dies, and the processes that Hydra
  started when its proxy dies; the first process notices the end of any child and of any waiting process, says which one
  it was, and has Hydra end the job on all hosts. A rank that leaves in order lets its waiting process leave in order.
- The meeting point is named after the proxy, which no other job shares, and admits only processes of this user.
"""

import ctypes
import gc
import json
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from benchmarks.runtime.launch import process

PATIENCE = 120  # seconds until the other processes of the host must have met
GO_ON_ALONE = b"\xff"  # what a waiting process is told instead of its rank's exit status where nobody forks
PR_SET_PDEATHSIG = 1


class Guest(NamedTuple):
    """What a waiting process handed over."""

    link: socket.socket  # breaks when either end dies
    environment: dict[str, str]
    pmi: int
    out: int
    err: int


def share_imports(load: Callable[[], None]) -> None:
    """Calls ``load`` in one process a host and returns in processes that have it loaded, one for each rank.

    Returns at once, without loading, where the launcher is not Hydra.
    """
    if not {"PMI_FD", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"} <= os.environ.keys():
        return
    die_with_parent()
    if select.select([int(os.environ["PMI_FD"])], [], [], 0)[0]:  # the proxy says nothing first: it has died already
        os._exit(1)
    address = f"\0pfedpara-{Path('/proc/self/ns/pid').stat().st_ino}-{os.getppid()}"
    meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.environ["MPI_LOCALRANKID"] != "0":
        # Hydra passes a signal on to all that it started, and kills the rest as soon as one has died of it: the first
        # process answers for all, and has to come to say so.
        process.answer_signals(signal.SIG_IGN)
        wait_for_rank(meeting, address)
        return
    process.fail_on_signal()
    meeting.bind(address)
    meeting.listen(1024)
    load()
    guests = [receive(meeting) for _ in range(int(os.environ["MPI_LOCALNRANKS"]) - 1)]
    guests.sort(key=lambda guest: int(guest.environment["PMI_RANK"]))
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        for guest in guests:
            guest.link.send(GO_ON_ALONE)
            os.close(guest.pmi)
        process.answer_signals(signal.SIG_DFL)
        return
    gc.collect()
    gc.freeze()  # else the children's collections would write to the pages they share
    sys.stdout.flush()
    sys.stderr.flush()
    first = os.getpid()
    ranks: dict[int, Guest | None] = {}  # by process id; None for the first process's own rank
    everyone: list[Guest | None] = [None, *guests]
    for rank in everyone:
        child = os.fork()
        if not child:
            meeting.close()
            process.answer_signals(signal.SIG_DFL)
            die_with_parent()
            if os.getppid() != first:
                os._exit(1)
            become(rank, guests)
            return
        ranks[child] = rank
    watch(ranks)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def check_peer(link: socket.socket) -> None:
    """Raises PermissionError where the other end is another user's."""
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != os.geteuid():
        raise PermissionError(f"user {uid} took part in this job's start")


def wait_for_rank(link: socket.socket, address: str) -> None:
    """Hands this process over and leaves with its rank's exit status; returns where it has to be the rank itself."""
    end = time.monotonic() + PATIENCE
    while link.connect_ex(address):
        if time.monotonic() > end:
            process.fail("the first process on this host did not start", 1)
        time.sleep(0.005)
    check_peer(link)
    socket.send_fds(link, [json.dumps(dict(os.environ)).encode()], [int(os.environ["PMI_FD"]), 1, 2])
    try:
        status = link.recv(1)
    except ConnectionError:
        status = b""
    if status != GO_ON_ALONE:
        os._exit(status[0] if status else 1)


def receive(meeting: socket.socket) -> Guest:
    """Returns the next waiting process of this user."""
    meeting.settimeout(PATIENCE)
    link, _ = meeting.accept()
    check_peer(link)
    content, descriptors, _, _ = socket.recv_fds(link, 1 << 20, 3)
    return Guest(link, json.loads(content), *descriptors)


def become(guest: Guest | None, guests: list[Guest]) -> None:
    """Makes this process the rank of ``guest``."""
    if guest:
        os.dup2(guest.out, 1)
        os.dup2(guest.err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(int(os.environ["PMI_FD"]))
        os.environ.clear()
        os.environ.update(guest.environment | {"PMI_FD": str(guest.pmi)})
    for other in guests:
        other.link.close()
        os.close(other.out)
        os.close(other.err)
        if other is not guest:
            os.close(other.pmi)


def watch(ranks: dict[int, Guest | None]) -> NoReturn:
    """Leaves in order when all ranks have; ends the job when one of them, or of those who wait for them, dies."""
    selector = selectors.DefaultSelector()
    for child, guest in ranks.items():
        selector.register(os.pidfd_open(child), selectors.EVENT_READ, child)
        if guest:
            selector.register(guest.link, selectors.EVENT_READ, child)
            for descriptor in (guest.pmi, guest.out, guest.err):
                os.close(descriptor)
    while ranks:
        for key, _ in selector.select():
            if (child := key.data) not in ranks:
                continue
            guest = ranks[child]
            rank = (guest.environment if guest else os.environ)["PMI_RANK"]
            if guest and key.fileobj is guest.link:  # where Hydra kills all, it begins with this process
                process.fail(f"the process that waited for rank {rank} was killed", 1)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status < 0:
                process.fail(f"rank {rank} was killed by {signal.Signals(-status).name}", 128 - status)
            if status > 0:
                process.end_job(status)  # it has said why
            selector.unregister(key.fileobj)
            if guest:
                selector.unregister(guest.link)
                guest.link.send(b"\0")
            del ranks[child]
    os._exit(0)
