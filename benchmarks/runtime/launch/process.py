"""How a rank starts, waits for rank 0's word, and leaves.

Rank 0 checks the whole job before any other rank imports torch, so that a bad option ends the job in seconds, in one
sentence.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import mpi4py

from benchmarks.terminal import printable

if TYPE_CHECKING:
    import psutil

GATE = 2  # MPI tag
CARD = 128  # bytes by which a rank introduces itself
FAILING = threading.RLock()  # of the thread that ends the job; it never lets go
THE_WORD: list[socket.socket] = []  # held by the process that says why the job ends
LIBC = ctypes.PyDLL(None)  # PyDLL: no other thread runs during a call
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of mallopt(3)
mpi4py.rc.initialize = mpi4py.rc.finalize = False  # start() and leave() say when

# Before the first import of numpy or torch: with more ranks than cores, a second thread per rank costs more than it
# brings, and sums stay in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

signal.signal(signal.SIGINT, signal.SIG_DFL)  # instead of a traceback from whatever is being imported


class Group(NamedTuple):
    """The ranks of this job."""

    comm: Any  # MPI.COMM_WORLD
    job: str  # a name no other job on these hosts has
    one_host: bool
    local_rank: int  # this rank's number on its host


def start() -> Group:
    """Joins the other ranks."""
    from mpi4py import MPI

    if launcher().pid == os.getpid():
        fail_on_signal()
    else:
        answer_signals(signal.SIG_DFL)
    keep_freed_memory()
    LIBC.on_exit(LIBC._exit, None)  # exit handlers run last in, first out: MPI's, then this
    MPI.Init_thread(MPI.THREAD_SERIALIZED)
    comm = MPI.COMM_WORLD
    everyone = bytearray(CARD * comm.size)
    comm.Allgather(f"{secrets.token_hex(8)} {socket.gethostname()}".encode()[:CARD].ljust(CARD), everyone)
    names, hosts = zip(*(everyone[i : i + CARD].decode().split() for i in range(0, len(everyone), CARD)), strict=True)
    return Group(comm, names[0], len(set(hosts)) == 1, hosts[: comm.rank].count(hosts[comm.rank]))


def keep_freed_memory() -> None:
    """Keeps freed memory with this process: else the kernel clears pages for each large message or activation."""
    LIBC.mallopt(M_MMAP_MAX, 0)
    LIBC.mallopt(M_TRIM_THRESHOLD, -1)


@cache
def launcher() -> "psutil.Process":
    """Returns the process that the user started: ``mpirun``, or this one where there is none."""
    import psutil

    above = psutil.Process().parents()
    return next((p for p in above if p.name().startswith(("mpirun", "mpiexec", "prterun", "srun"))), psutil.Process())


def launched() -> float:
    """Returns when the user started this job, on the clock of ``time.monotonic``.

    From the kernel's own clock: psutil's time of creation is off by up to a second.
    """
    after_name = Path(f"/proc/{launcher().pid}/stat").read_text().rpartition(")")[2]
    started = int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")  # field 22, seconds since boot
    return time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME) + started


def open_gate(group: Group, plan: bytes) -> None:
    """Rank 0: lets every other rank go on with ``plan``; an empty one sends it home."""
    for request in [group.comm.Isend(plan, dest=rank, tag=GATE) for rank in range(1, group.comm.size)]:
        request.Wait()


def wait_at_gate(group: Group) -> bytes:
    """Every other rank: returns the plan of rank 0, asleep until it comes."""
    from mpi4py import MPI

    status = MPI.Status()
    while not group.comm.Iprobe(source=0, tag=GATE, status=status):
        time.sleep(0.01)
    plan = bytearray(status.Get_count(MPI.BYTE))
    group.comm.Recv(plan, source=0, tag=GATE)
    return bytes(plan)


def leave() -> NoReturn:
    """Ends this rank through ``MPI_Finalize``, without the seconds that Python and torch take to clean up.

    By C's ``exit``: MPICH tells the launcher in an exit handler that the rank left in order, and mpirun returns 9 when
    it sees one leave without. ``start()`` has cut off the handlers that were there before MPI's.
    """
    from mpi4py import MPI

    sys.stdout.flush()
    sys.stderr.flush()
    MPI.Finalize()
    LIBC.exit(0)
    raise AssertionError("exit() returned")


def fail(sentence: str, code: int) -> NoReturn:
    """Ends all ranks after one ``sentence`` on standard error; ``mpirun`` returns ``code``.

    A thread that fails while another one does this waits for its own end, and so does a process of this host: a full
    disk fails several at once, and the first has said it.
    """
    if threading.current_thread() is threading.main_thread():
        answer_signals(signal.SIG_IGN)
    FAILING.acquire()
    if not take_the_word():
        time.sleep(5)  # the launcher needs less
        end_job(code)
    with contextlib.suppress(OSError):  # its reader has gone, or its disk is full
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"error: {printable(sentence)}\n".encode(sys.stderr.encoding, "backslashreplace"))
    time.sleep(0.3)  # mpirun drops what it has not yet read when a rank aborts
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI would add that it was told to abort
    end_job(code)


def take_the_word() -> bool:
    """Returns whether this is the first process of the job on this host that fails, also when asked again."""
    if not THE_WORD:  # else a signal came while this process failed
        THE_WORD.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        try:
            THE_WORD[0].bind(f"\0pfedpara-{namespace}-{launcher().pid}-failed")
        except OSError:
            THE_WORD.clear()
    return bool(THE_WORD)


def end_job(code: int) -> NoReturn:
    """Has the launcher end all ranks, also from a process that has not joined them; ``mpirun`` returns ``code``."""
    from mpi4py import MPI

    if MPI.Is_initialized():
        MPI.COMM_WORLD.Abort(code)
    elif "PMI_FD" in os.environ:
        with contextlib.suppress(OSError):
            os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={code}\n".encode())
            time.sleep(5)  # the launcher needs less
    os._exit(code)


def answer_signals(answer: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """From here on ``answer`` is what follows a signal that asks this process to end.

    With the default one it ends at once, and whoever watches it sees which signal it was.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, answer)


def fail_on_signal() -> None:
    """From here on a signal that asks this process to end ends all ranks, in a sentence."""
    launcher()  # found ahead: once the signal is there, mpirun does not listen for long
    answer_signals(lambda got, _: fail(f"ended by {signal.Signals(got).name}", 128 + got))


def fail_on_error(where: Callable[[], str], verbose: bool) -> None:
    """From here on an exception in any thread ends all ranks, in a sentence that begins with ``where()``."""

    def hook(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if verbose:
            sys.__excepthook__(kind, error or kind(), trace)
        if kind.__module__.startswith("mpi4py"):
            time.sleep(1)  # where another rank died first, that is the reason, and this one is ended meanwhile
        fail(f"{where()}: {kind.__name__}: {' '.join(str(error).split())}", 1)

    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
