"""How a rank starts, waits for rank 0's word, and leaves.

Rank 0 checks the whole job before any other rank imports torch, so that a bad option ends the job in seconds, in one
sentence.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import mpi4py

from benchmarks.runtime.launch import host
from benchmarks.runtime.launch.host import HYDRA, RANK
from benchmarks.terminal import printable

if TYPE_CHECKING:
    import psutil

GATE = 2  # MPI tag
CARD = 128  # bytes by which a rank introduces itself
FAILING = threading.RLock()  # of the thread that ends the job; it never lets go
LIBC = ctypes.PyDLL(None)  # PyDLL: no other thread runs during a call
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of mallopt(3)


def born(pid: int) -> int:
    """Returns when process ``pid`` started, 0 where there is none: with ``pid``, a name used once.

    In clock ticks since the machine started, elsewhere than on Linux in hundredths of a second since 1970.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
            return int(after_name.split()[19])  # field 22
        return 0
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).create_time() * 100)
    return 0


def name_folder() -> Path:
    """Returns the folder of this job on this host, for its sockets: the same in each rank, without any exchange.

    Not in TMPDIR: a socket's path has at most 103 bytes on macOS, 107 on Linux.
    """
    room = next((room for room in ("/tmp", "/var/tmp") if os.access(room, os.W_OK)), "/dev/shm")
    above = os.getppid() if RANK else os.getpid()  # what the launcher runs on this host, or this process
    space = Path("/proc/self/ns/pid").stat().st_ino if sys.platform == "linux" else 0
    return Path(room, f"pfedpara-{space}-{above}-{born(above)}")


@dataclass
class State:
    """What this process is to its job; forked ranks inherit it."""

    folder: Path = field(default_factory=name_folder)
    watched: bool = False  # a watcher (fork.py) ends what this process leaves
    has_the_word: bool = False  # this process says why the job ends
    after_interrupt: str = ""  # what a person who typed Ctrl-C is told


STATE = State()


class Group(NamedTuple):
    """The ranks of this job."""

    comm: Any  # MPI.COMM_WORLD
    job: str  # a name no other job on these hosts has
    one_host: bool
    local_rank: int  # this rank's number on its host
    folder: Path | None  # of this job on this host, for its sockets; None where another user took its name

    @property
    def launched(self) -> float:
        """When the user started this job, on the clock of ``time.monotonic``.

        On Linux from the kernel's own clock: psutil's time of creation is off by up to a second.
        """
        if sys.platform != "linux":
            return time.monotonic() - (time.time() - launcher().create_time())
        started = born(launcher().pid) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME) + started

    def broadcast(self, plan: Callable[[], bytes]) -> bytes:
        """Returns what ``plan`` does, which only rank 0 calls; the others sleep until it has."""
        from mpi4py import MPI

        if self.comm.rank == 0:
            planned = plan()
            for request in [self.comm.Isend(planned, dest=rank, tag=GATE) for rank in range(1, self.comm.size)]:
                request.Wait()
            return planned
        status = MPI.Status()
        while not self.comm.Iprobe(source=0, tag=GATE, status=status):
            time.sleep(0.01)
        received = bytearray(status.Get_count(MPI.BYTE))
        self.comm.Recv(received, source=0, tag=GATE)
        return bytes(received)

    def leave(self) -> NoReturn:
        """Ends this rank through ``MPI_Finalize``, without the seconds that Python and torch take to clean up.

        By C's ``exit``: MPICH tells the launcher in an exit handler that the rank left in order, and mpirun returns 9
        when it sees one leave without. ``start()`` has cut off the handlers that were there before MPI's.
        """
        from mpi4py import MPI

        sys.stdout.flush()
        sys.stderr.flush()
        MPI.Finalize()
        if self.folder and not STATE.watched:
            with contextlib.suppress(OSError):
                if RANK in (None, "0"):
                    shutil.rmtree(self.folder / "matplotlib", ignore_errors=True)
                for socket_file in self.folder.glob(f"*-{RANK or 0}"):
                    socket_file.unlink()
                self.folder.rmdir()  # the last rank of the host can
        LIBC.exit(0)
        raise AssertionError("exit() returned")


def prepare() -> None:
    """For each process, before the first import of numpy, torch or MPI."""
    # With more ranks than cores, a second thread a rank costs more than it brings, and sums stay in one order.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # instead of a traceback from whatever is being imported
    mpi4py.rc.initialize = mpi4py.rc.finalize = False  # start() and leave() say when
    if not os.access(os.environ.get("HOME", ""), os.W_OK):  # Matplotlib would warn, and leave a folder in TMPDIR
        os.environ.setdefault("MPLCONFIGDIR", str(STATE.folder / "matplotlib"))


def start() -> Group:
    """Joins the other ranks."""
    from mpi4py import MPI

    if STATE.watched:
        answer_signals(signal.SIG_DFL)
    elif RANK in (None, "0"):
        fail_on_signal()
    else:
        answer_signals(signal.SIG_IGN)  # rank 0 answers; the launcher kills the rest
    if sentence := host.obstacle(MPI):
        fail(sentence, 1)
    if HYDRA:
        # MPICH itself carries what stays on a host. UCX's "posix" would fill /dev/shm, other transports open ports.
        one_host = os.environ["MPI_LOCALNRANKS"] == os.environ["PMI_SIZE"]
        os.environ.setdefault("UCX_TLS", "self,sysv" if one_host else "^posix,cma")
    keep_freed_memory()
    traces()
    if hasattr(LIBC, "on_exit"):  # glibc
        LIBC.on_exit(LIBC._exit, None)  # exit handlers run last in, first out: MPI's, then this
    MPI.Init_thread(MPI.THREAD_MULTIPLE)  # FedML's own runtime sends and receives in two threads
    if sentence := host.alone(MPI):
        fail(sentence, 1)
    comm = MPI.COMM_WORLD
    everyone = bytearray(CARD * comm.size)
    comm.Allgather(f"{secrets.token_hex(8)} {socket.gethostname()}".encode()[:CARD].ljust(CARD), everyone)
    names, hosts = zip(*(everyone[i : i + CARD].decode().split() for i in range(0, len(everyone), CARD)), strict=True)
    local_rank = hosts[: comm.rank].count(hosts[comm.rank])
    if not local_rank:  # each rank holds what it needs of them by now
        maps = Path("/proc/self/maps").read_text() if sys.platform == "linux" else ""
        for line in maps.splitlines():
            if "/dev/shm/mpich_" in line:
                Path(line.split()[5]).unlink(missing_ok=True)
        unlink_traces()
        remove_abandoned()
    folder = None
    with contextlib.suppress(OSError):
        folder = STATE.folder if make_folder() else None
    return Group(comm, names[0], len(set(hosts)) == 1, local_rank, folder)


@cache
def traces() -> list[Path]:
    """Returns the names of the files that MPICH and Hydra make for this host's ranks; patterns, in their last part.

    Both are known before MPI is initialised: Hydra's file to whoever asks for it, MPICH's segment by a hash (FNV-1a) of
    the job's name. Only the first process of a host asks.
    """
    if not HYDRA or os.environ["MPI_LOCALRANKID"] != "0":
        return []

    def ask(question: str, answer: str) -> str:
        os.write(pmi, f"cmd={question}\n".encode())
        said = os.read(pmi, 4096).decode().split()
        return next((word.removeprefix(f"{answer}=") for word in said if word.startswith(f"{answer}=")), "")

    pmi = int(os.environ["PMI_FD"])
    ask("init pmi_version=1 pmi_subversion=1", "rc")
    job = ask("get_my_kvsname", "kvsname")
    file = ask(f"get kvsname={job} key=PMI_hwloc_xmlfile", "value")
    number = 2166136261
    for byte in job.encode():
        number = (number ^ byte) * 16777619 % 2**32
    return [Path(f"/dev/shm/mpich_*_{number:x}_*"), *([Path(file)] if "hydra_hwloc_xmlfile_" in file else [])]


def unlink_traces() -> None:
    for pattern in traces():
        for path in pattern.parent.glob(pattern.name):
            path.unlink(missing_ok=True)


def make_folder() -> bool:
    """Makes this job's folder unless it is there. Returns whether it belongs to this user alone."""
    with contextlib.suppress(FileExistsError):
        STATE.folder.mkdir(0o700)
    return is_private(STATE.folder)


def is_private(folder: Path) -> bool:
    """Returns whether ``folder`` is no other user's, and open to none. Raises FileNotFoundError."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o77


def remove_abandoned() -> None:
    """Removes what this user's jobs left whose processes were all killed at once."""
    for folder in STATE.folder.parent.glob(f"{STATE.folder.name.rsplit('-', 2)[0]}-*"):
        with contextlib.suppress(OSError, ValueError):
            _, _, above, ticks = folder.name.split("-")
            if is_private(folder) and born(int(above)) != int(ticks):
                shutil.rmtree(folder)


def clean_up() -> None:
    """Removes what the job leaves on this host; for the last of its processes."""
    unlink_traces()
    with contextlib.suppress(OSError):
        if is_private(STATE.folder):
            shutil.rmtree(STATE.folder)


def keep_freed_memory() -> None:
    """Keeps freed memory with this process: else the kernel clears pages for each large message or activation."""
    if hasattr(LIBC, "mallopt"):  # glibc
        LIBC.mallopt(M_MMAP_MAX, 0)
        LIBC.mallopt(M_TRIM_THRESHOLD, -1)


@cache
def launcher() -> "psutil.Process":
    """Returns the process that the user started: ``mpirun``, or this one where there is none."""
    import psutil

    above = psutil.Process().parents()
    return next((p for p in above if p.name().startswith(("mpirun", "mpiexec", "prterun", "srun"))), psutil.Process())


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
    say(sentence)
    if not STATE.watched:
        clean_up()
    end_job(code)


def take_the_word() -> bool:
    """Returns whether this is the first process of the job on this host that fails, also when asked again.

    True too where that cannot be known: better said twice than not at all.
    """
    if not STATE.has_the_word:
        try:
            if make_folder():
                (STATE.folder / "word").touch(0o600, exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass
    STATE.has_the_word = True
    return True


def say(sentence: str) -> None:
    """Writes an error's sentence, and nothing after it."""
    with contextlib.suppress(OSError):  # its reader has gone, or its disk is full
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"error: {printable(sentence)}\n".encode(sys.stderr.encoding, "backslashreplace"))
    time.sleep(0.3)  # mpirun drops what it has not yet read when a rank aborts
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI would add that it was told to abort


def end_job(code: int) -> NoReturn:
    """Has the launcher end all ranks, also from a process that has not joined them; ``mpirun`` returns ``code``."""
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized():
        mpi.COMM_WORLD.Abort(code)
    elif HYDRA:
        tell_launcher(code)
        time.sleep(5)  # the launcher needs less
    os._exit(code)


def tell_launcher(code: int) -> None:
    """Has Hydra end the job with ``code``."""
    with contextlib.suppress(OSError):
        os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={code}\n".encode())


def answer_signals(answer: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """From here on ``answer`` is what follows a signal that asks this process to end.

    With the default one it ends at once, and whoever watches it sees which signal it was.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, answer)


def ended_by(got: int) -> str:
    """Returns the sentence about a signal."""
    return f"ended by {signal.Signals(got).name}" + STATE.after_interrupt * (got == signal.SIGINT)


def fail_on_signal() -> None:
    """From here on a signal that asks this process to end ends all ranks, in a sentence."""
    answer_signals(lambda got, _: fail(ended_by(got), 128 + got))


def explain(error: BaseException) -> str:
    """Returns what went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def fail_on_error(where: Callable[[], str], verbose: bool, explain: Callable[[BaseException], str]) -> None:
    """From here on an exception in any thread ends all ranks, in a sentence: ``where()``, and its ``explain``."""

    def hook(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if verbose:
            sys.__excepthook__(kind, error or kind(), trace)
        if kind.__module__.startswith("mpi4py"):
            time.sleep(1)  # where another rank died first, that is the reason, and this one is ended meanwhile
        fail(f"{where()}: {explain(error or kind())}", 1)

    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
