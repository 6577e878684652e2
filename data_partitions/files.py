"""What sample files and partition stores have in common: format, version, hashes, and that they appear whole."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

from data_partitions.errors import DataError
from data_partitions.hdf5 import hdf5_child, open_hdf5

REMOVE = "remove it"

SAMPLES_FORMAT = "data_partitions samples"

PARTITION_FORMAT = "data_partitions partition"

VERSIONS = {SAMPLES_FORMAT: 3, PARTITION_FORMAT: 1}
"""A sample file's changes with what the readers make of the same source too, so that it is read anew."""

SAME_LAYOUT = {SAMPLES_FORMAT: 2, PARTITION_FORMAT: 1}
"""The earliest version that is laid out as today's is: a partition built on it still stands."""


class OldVersionError(DataError):
    """A file of an earlier version: it can be made anew from its source."""


def digest(*parts: str | np.ndarray) -> bytes:
    """SHA-256 of texts and of arrays' types, shapes and little-endian values."""
    result = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
            result.update(f"{part.dtype.str}{part.shape}".encode())
            result.update(part.view(np.uint8).data if part.size else b"")
        else:
            result.update(f"{len(part)}:{part}".encode())
    return result.digest()


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@contextmanager
def new_file(path: Path, kind: str) -> Iterator[h5py.File]:
    """An HDF5 file that appears at `path` whole, or not at all. Raises DataError where it cannot be written.

    It is put together in memory: on a full disk HDF5 itself may crash the process while it closes the file.
    """
    image = BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["format"], file.attrs["version"] = kind, VERSIONS[kind]
        yield file
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as out:
                out.write(image.getbuffer())
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose a folder that can hold it") from error


@contextmanager
def known_file(path: Path, kind: str, tried: bool = False, older: bool = False) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, read-only. Raises DataError unless it is of this kind and version and undamaged.

    `tried`: as for open_hdf5. `older`: an earlier version will do that has the same layout.
    """
    with open_hdf5(path, kind, REMOVE, tried) as file:
        if file.attrs.get("format") != kind:
            raise DataError(f"{path} is not a {kind} file; remove it or name another")
        found, oldest = int(file.attrs["version"]), (SAME_LAYOUT if older else VERSIONS)[kind]
        if not oldest <= found <= VERSIONS[kind]:
            refusal = OldVersionError if found < VERSIONS[kind] else DataError
            raise refusal(
                f"{path} has schema version {found}, this program reads {VERSIONS[kind]}; remove it or update"
            )
        yield file


def mapped(file: h5py.File, name: str) -> np.ndarray:
    """A contiguous dataset as a read-only map of the file: processes share its pages, those that are touched."""
    dataset = hdf5_child(file, name, h5py.Dataset, REMOVE)
    if dataset.size == 0:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype.hasobject:
        raise DataError(f"{name} in {file.filename} is kept in a way that is not read here; {REMOVE}")
    return np.memmap(file.filename, dataset.dtype, "r", offset, dataset.shape)
