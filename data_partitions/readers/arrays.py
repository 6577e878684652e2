"""What a reader returns, and the checks that every format needs."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from data_partitions.errors import DataError
from data_partitions.hdf5 import hdf5_child

AGAIN = "get the file again"

MEMORY_SHARE = 4
"""What a file declares may take the MEMORY_SHARE-th part of the memory that is free: reading makes copies of it."""


class Arrays(NamedTuple):
    """Samples as read, before they are checked; the names are those of store.Samples and store.Meta.

    text: whether x holds the numbers of characters, for which `classes` is the alphabet.
    """

    x: np.ndarray
    y: np.ndarray
    classes: list[str] | None = None
    client: np.ndarray | None = None
    client_names: Sequence[str] = ()
    is_test: np.ndarray | None = None
    text: bool = False


def check_memory(path: Path, size: int) -> None:
    """Raise DataError unless `size` bytes that a file declares are a MEMORY_SHARE-th of what is free, or less."""
    import psutil

    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - psutil.Process().memory_info().vms)
    if size * MEMORY_SHARE > free:
        raise DataError(
            f"{path} declares {size / 2**30:.3g} GiB, and {max(free, 0) / 2**30:.3g} GiB of memory are free; "
            f"at most a quarter of that is read"
        )


def hdf5_array(group: h5py.Group, name: str, path: Path) -> np.ndarray:
    """All values of the dataset of that name, where `path` is the file. Raises DataError."""
    dataset = hdf5_child(group, name, h5py.Dataset, AGAIN)
    check_memory(path, dataset.size * dataset.dtype.itemsize)
    return dataset[()]


def as_many(first: object, samples: int, second: object, labels: int) -> None:
    if samples != labels:
        raise DataError(f"{first} holds {samples} samples and {second} {labels} labels; give as many of both")


def same_shape(first: object, right: tuple[int, ...], second: object, shape: tuple[int, ...]) -> None:
    if right != shape:
        raise DataError(f"{second} has samples of shape {shape} and {first} of {right}; give one shape")


def check_labels(y: np.ndarray, classes: list[str] | None, where: str) -> None:
    """Raise DataError where labels are outside the classes. The name of the file or client is in `where`."""
    if classes and len(y) and not (y.min() >= 0 and y.max() < len(classes)):
        raise DataError(f"{where} has labels from {y.min()} to {y.max()}; 0 to {len(classes) - 1} is right")


def all_of(files: list[Path]) -> str:
    """What a sentence about the whole of a data set calls its files."""
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def visible(path: Path) -> bool:
    """Whether a file or folder is the user's: systems and editors hide theirs behind a dot, Windows names its own."""
    return not path.name.startswith(".") and path.name.lower() not in ("thumbs.db", "desktop.ini")
