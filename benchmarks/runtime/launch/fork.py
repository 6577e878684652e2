"""Lets the ranks of a host import once: a watcher imports, then forks a child to be each of them.

docs/launch.md shows the processes, and says why this is sound and what it relies on.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import selectors
import signal
import socket
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

    @property
    def rank(self) -> int:
        return int(self.environment["PMI_RANK"])


def share_imports(load: Callable[[], None]) -> None:
    """Calls ``load`` in one process a host and returns in processes that have it loaded, one for each rank.

    Returns at once, without loading, where the launcher is not Hydra, ``PFL_FORK`` is 0, or the system is not Linux or
    has no pidfd.
    """
    if not process.HYDRA or sys.platform != "linux":
        return
    die_with_parent(signal.SIGKILL)
    if select.select([int(os.environ["PMI_FD"])], [], [], 0)[0]:  # the proxy says nothing first: it has died already
        os._exit(1)
    if os.environ.get("PFL_FORK") == "0":
        return
    try:
        proxy = os.pidfd_open(os.getppid())
    except OSError:  # Linux before 5.3, gVisor, a seccomp profile
        return
    if os.environ["MPI_LOCALRANKID"] != "0":
        # Hydra passes a signal on to all that it started, and kills the rest as soon as one has died of it: the first
        # process answers for all, and has to come to say so.
        process.answer_signals(signal.SIG_IGN)
        wait_for_rank(0)
        return
    process.fail_on_signal()
    process.traces()  # asked now, by the one that has the launcher's ear
    try:
        if not process.make_folder():
            return
        meeting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        meeting.bind(str(process.STATE.folder / "start"))
    except OSError as error:
        process.fail(f"no socket can be made in {process.STATE.folder}: {error.strerror}", 1)
    meeting.listen(1024)
    process.STATE.watched = True
    first = os.getpid()
    if watcher := os.fork():
        meeting.close()
        wait_for_rank(watcher)
        return
    os.setsid()
    Watcher(first, proxy).serve(meeting, load)


def die_with_parent(signum: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def wait_for_rank(watcher: int) -> None:
    """Hands this process over and leaves with its rank's exit status; returns where it has to be the rank itself.

    ``watcher``: its process id, in its parent; elsewhere 0.
    """
    folder, end = process.STATE.folder, time.monotonic() + PATIENCE
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    while link.connect_ex(str(folder / "start")):
        with contextlib.suppress(FileNotFoundError):
            if not process.is_private(folder):
                return
        if time.monotonic() > end:
            process.fail("the first process on this host did not start", 1)
        time.sleep(0.005)
    process.STATE.watched = True
    socket.send_fds(link, [json.dumps(dict(os.environ)).encode()], [int(os.environ["PMI_FD"]), 1, 2])
    try:
        status = link.recv(1)
    except ConnectionError:
        status = b""
    if status == GO_ON_ALONE:
        process.STATE.watched = False
        return
    if not status and watcher and process.take_the_word():
        process.answer_signals(signal.SIG_IGN)
        process.say(f"the process that watched the ranks on {socket.gethostname()} was killed")
        process.clean_up()
        process.end_job(1)
    if not status:
        time.sleep(5)  # until the first process has said so, and the launcher ended all
    os._exit(status[0] if status else 1)


class Watcher:
    """The process that forks the ranks of a host and outlives what the launcher started there."""

    def __init__(self, first: int, proxy: int) -> None:
        """``first``: its parent; ``proxy``: a pidfd of the parent's."""
        self.first, self.guests, self.ranks = first, list[Guest](), dict[int, Guest]()  # ranks by process id
        self.above = [proxy]  # pidfds of the proxy, and of mpirun where that is on this host
        self.screen: int | None = None  # what mpirun writes errors to
        process.answer_signals(lambda got, _: self.end(process.ended_by(got), 128 + got))
        signal.signal(signal.SIGUSR1, lambda *_: self.end(self.why([]), 1))
        if (launcher := process.launcher()).pid != os.getpid():
            self.above.append(os.pidfd_open(launcher.pid))
            with contextlib.suppress(OSError):  # a socket, or another user's
                self.screen = os.open(f"/proc/{launcher.pid}/fd/2", os.O_WRONLY | os.O_APPEND)
        die_with_parent(signal.SIGUSR1)  # until there are links to watch
        if os.getppid() != first:
            self.end(self.why([]), 1)

    def serve(self, meeting: socket.socket, load: Callable[[], None]) -> None:
        """Imports and forks; returns in the children."""
        try:
            load()
        except Exception as error:
            self.end(process.explain(error), 1)
        meeting.settimeout(PATIENCE)
        for _ in range(int(os.environ["MPI_LOCALNRANKS"])):
            link, _ = meeting.accept()
            content, descriptors, _, _ = socket.recv_fds(link, 1 << 20, 3)
            self.guests.append(Guest(link, json.loads(content), *descriptors))
        self.guests.sort(key=lambda guest: guest.rank)
        (process.STATE.folder / "start").unlink()
        meeting.close()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            for guest in self.guests:
                guest.link.send(GO_ON_ALONE)
            os._exit(0)
        gc.collect()
        gc.freeze()  # else the children's collections would write to the pages they share
        sys.stdout.flush()
        sys.stderr.flush()
        watcher = os.getpid()
        for guest in self.guests:
            child = os.fork()
            if not child:
                process.answer_signals(signal.SIG_DFL)
                die_with_parent(signal.SIGKILL)
                if os.getppid() != watcher:
                    os._exit(1)
                self.become(guest)
                return
            self.ranks[child] = guest
        self.watch()

    def become(self, guest: Guest) -> None:
        """Makes this process the rank of ``guest``."""
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        os.dup2(guest.out, 1)
        os.dup2(guest.err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(int(os.environ["PMI_FD"]))
        os.environ.clear()
        os.environ.update(guest.environment | {"PMI_FD": str(guest.pmi)})
        for descriptor in self.above if self.screen is None else (*self.above, self.screen):
            os.close(descriptor)
        for other in self.guests:
            other.link.close()
            os.close(other.out)
            os.close(other.err)
            if other is not guest:
                os.close(other.pmi)

    def watch(self) -> NoReturn:
        """Leaves in order when all ranks have; ends the job when one of them, or of those who wait for them, dies."""
        selector = selectors.DefaultSelector()
        for child, guest in self.ranks.items():
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, child)
            selector.register(guest.link, selectors.EVENT_READ)
            for descriptor in (guest.pmi, guest.out, guest.err):
                os.close(descriptor)
        while self.ranks:
            ready = selector.select()
            for key in (key for key, _ in ready if key.data):
                guest = self.ranks.pop(key.data)
                status = os.waitstatus_to_exitcode(os.waitpid(key.data, 0)[1])
                if status < 0:
                    self.end(f"rank {guest.rank} was killed by {signal.Signals(-status).name}", 128 - status)
                if status > 0:  # unless it has said why
                    self.end(f"rank {guest.rank} left with exit status {status}", status)
                selector.unregister(key.fileobj)
                selector.unregister(guest.link)
                with contextlib.suppress(OSError):
                    guest.link.send(b"\0")
            waiting = {guest.link: guest for guest in self.ranks.values()}
            if gone := [waiting[key.fileobj] for key, _ in ready if key.fileobj in waiting]:
                self.end(self.why(gone), 1)
        process.clean_up()
        os._exit(0)

    def why(self, gone: list[Guest]) -> str | None:
        """Returns what happened where the processes that waited for ``gone`` did not leave in order.

        None where there are other hosts: Hydra may have killed these because of what one of those has said.
        """
        if os.environ["MPI_LOCALNRANKS"] != os.environ["PMI_SIZE"]:
            return None
        here = socket.gethostname()
        if self.cut_off():
            return f"mpirun was killed, or its proxy on {here}"
        if len(gone) == 1 < len(self.guests):
            return f"the process that waited for rank {gone[0].rank} was killed"
        return f"what the launcher started on {here} was killed"

    def cut_off(self) -> bool:
        """Returns whether one of the launcher's processes has ended, a moment after those that it started."""
        return bool(select.select(self.above, [], [], 0.2)[0])

    def end(self, sentence: str | None, code: int) -> NoReturn:
        """Ends the job on all hosts, after ``sentence`` where nobody has said why."""
        process.answer_signals(signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if sentence and process.take_the_word():
            if self.screen is not None and self.cut_off():  # nobody passes on what is written
                select.select(self.above[1:], [], [], 1)  # mpirun may have to say something: that comes first
                os.dup2(self.screen, 2)
            process.say(sentence)
        process.tell_launcher(code)
        for child in self.ranks:
            os.kill(child, signal.SIGKILL)
        for child in self.ranks:
            os.waitpid(child, 0)
        end = time.monotonic() + 5
        while os.getppid() == self.first and time.monotonic() < end:  # it would speak once this process has left
            time.sleep(0.01)
        process.clean_up()
        os._exit(code)
