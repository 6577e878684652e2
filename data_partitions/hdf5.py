"""The one way into an HDF5 file, whoever made it."""

import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from data_partitions.errors import DataError, reading

LARGEST_CHUNK = 1 << 28  # bytes: a chunk is unpacked whole, and says itself how large it is
STRUCTURE_SECONDS, STRUCTURE_BYTES = 5, 1 << 30  # more than HDF5 needs to read what a file says of itself


@contextmanager
def open_hdf5(path: Path, kind: str, advice: str, tried: bool = False) -> Iterator[h5py.File]:
    """The one way into an HDF5 file, read-only: HDF5 gets through it, or it is not opened here.

    `kind` is what the file should be, `advice` what to do with a broken one. What is in it is reached by hdf5_child.
    `tried`: HDF5 got through it already, in this process or another; no process is forked then.
    Raises DataError, also for what fails on reading within the block.
    """
    with reading(path, kind, advice):
        if not path.is_file():
            raise DataError(f"{path} is {'a directory' if path.is_dir() else 'missing'}; a {kind} file is needed there")
        path.open("rb").close()
        if not tried:
            _try(path, kind, advice)
        with _opened(path) as file:
            yield file


def _opened(path: Path) -> h5py.File:
    # A finished file never changes, and locks fail on some clusters' shared folders.
    return h5py.File(path, "r", locking=False)


def hdf5_child(group: h5py.Group, name: str, kind: type[h5py.Group] | type[h5py.Dataset], advice: str) -> Any:
    """The group or dataset of that name, where its bytes are in this file: elsewhere are all that its reader may read.

    Raises DataError for links, external storage, virtual datasets, chunks too large, and values that are neither
    numbers nor strings.
    """
    where = f"{name} in {group.file.filename}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{where} is missing, or a link, which is not followed; {advice}")
    child = group[name]
    if not isinstance(child, kind):
        raise DataError(f"{where} is not a {kind.__name__.lower()}; {advice}")
    if isinstance(child, h5py.Dataset):
        if child.external or child.is_virtual or (child.dtype.hasobject and not h5py.check_string_dtype(child.dtype)):
            raise DataError(f"{where} is kept in a way that is not read here; {advice}")
        if child.chunks and math.prod(child.chunks) * child.dtype.itemsize > LARGEST_CHUNK:
            raise DataError(f"{where} is kept in chunks larger than {LARGEST_CHUNK} bytes; {advice}")
    return child


def _try(path: Path, kind: str, advice: str) -> None:
    """Raise DataError unless HDF5 gets through all that the file says of its own structure, in bounded time and memory.

    Tried in a child process: some damaged files crash the library, others keep it busy for ever. Where the user's own
    limits are below ours, to fail is no proof against the file.
    """
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: STRUCTURE_SECONDS + (path.stat().st_size >> 24),
    }
    if sys.platform == "linux":  # macOS does not keep to it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        wanted[resource.RLIMIT_AS] = pages * resource.getpagesize() + STRUCTURE_BYTES
    hard = {limit: resource.getrlimit(limit)[1] for limit in wanted}
    limits = {
        limit: value if hard[limit] == resource.RLIM_INFINITY else min(value, hard[limit])
        for limit, value in wanted.items()
    }
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1] == 0:
            return
        if limits != wanted:
            raise DataError(f"{path} cannot be tested within this process's limits (ulimit -v, -t); raise them")
        raise DataError(f"{path} is not a whole {kind} file (HDF5 does not get through it); {advice}")
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, value))
        with _opened(path) as file:
            dict(file.attrs)
            file.visititems(_walk)
        os._exit(0)
    finally:
        os._exit(1)


def _walk(name: str, child: h5py.Group | h5py.Dataset) -> None:
    """Read of a dataset what it does not declare: where its chunks are, what they unpack to, how long its strings are.

    A chunk is unpacked whole, whatever its dataset declares; only those that may be larger than STRUCTURE_BYTES are.
    """
    if not isinstance(child, h5py.Dataset) or child.external or child.is_virtual:
        return
    if child.chunks:
        filters = child.id.get_create_plist()
        packed = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())].count(h5py.h5z.FILTER_DEFLATE)
        large: list[tuple[int, ...]] = []
        child.id.chunk_iter(
            lambda chunk: large.append(chunk.chunk_offset) if chunk.size > STRUCTURE_BYTES // 1032**packed else None
        )
        for start in large:
            child[tuple(slice(at, at + length) for at, length in zip(start, child.chunks, strict=True))]
    if child.dtype.hasobject:
        child[()]
