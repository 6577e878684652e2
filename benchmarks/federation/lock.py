"""A lock on a run's folder: one job at a time writes there, of those on all hosts that share the file system.

A POSIX lock, because network file systems pass those on. The kernel lets go of it however the process ends, so that
what a killed job leaves of it is a file that locks nothing.
"""

import errno
import fcntl
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

NAME = "lock"
LARGEST = 200  # bytes that say who holds a lock
HELD: dict[Path, int] = {}  # the open file of each folder that this process has locked
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def hold(folder: Path) -> None:
    """Locks ``folder``, which is made where there is none, until ``release`` or the end of this process.

    Raises BlockingIOError that says who has locked it, and OSError where no file can be made in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                holder = os.pread(file, LARGEST, 0).decode(errors="replace").strip() or "it has just begun"
                os.close(file)
                raise BlockingIOError(error.errno, holder, str(folder)) from None
            print(f"{folder} is not locked ({error.strerror}): start no second job there", file=sys.stderr, flush=True)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # whoever held it has removed it
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(file, 0)
    os.pwrite(file, f"host {socket.gethostname()}, process {os.getpid()}, since {since}\n".encode(), 0)
    os.fsync(file)
    HELD[folder] = file


def release(folder: Path) -> None:
    """Removes the lock of ``folder`` that this process holds, if any."""
    if (file := HELD.pop(folder, None)) is not None:
        (folder / NAME).unlink(missing_ok=True)
        os.close(file)
