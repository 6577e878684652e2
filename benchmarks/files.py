"""Files that survive a crash: written whole or not at all, on the disk before the next step, named where that fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Puts ``content`` in the place of ``path`` in one step. Raises OSError with the path in it."""
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def append(path: Path, content: bytes) -> None:
    """Adds ``content`` in a single write, so that a killed run leaves whole rows only. Raises OSError as ``write``."""
    with naming(path), path.open("ab", buffering=len(content) + 1) as file:
        file.write(content)


def sync(path: Path) -> None:
    """Waits until the disk holds the file, or the folder's list of names. Raises OSError as ``write``."""
    with naming(path):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an OSError, such as a full disk's, says which file it was about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
