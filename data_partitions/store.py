"""The partition store: an HDF5 file that says who has which samples, verified when it is opened.

    attributes   format, version, recipe (JSON), meta (JSON), sha256 (content hash),
                 provenance (JSON: source_sha256 and the versions of the libraries that wrote it),
                 samples (name of the sample file in the same folder; "" where embedded)
    indices      int64 (m,): positions in the sample file, client by client, train, validation, test, each ascending
    bounds       int64 (clients, 4): client c's split s is indices[bounds[c, s]:bounds[c, s + 1]]
    digests      uint8 (clients, 3, 32): SHA-256 of the samples of each client and split
    x, y         only where embedded: the samples in the order of `indices`, chunked

The content hash covers recipe, meta, indices, bounds and digests, by value: it is the same whatever the machine, the
version of HDF5, the way the samples are kept, or whether the source's files were compressed.
"""

import hashlib
import json
import math
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from data_partitions.errors import DataError, reading
from data_partitions.files import (
    PARTITION_FORMAT,
    REMOVE,
    SAMPLES_FORMAT,
    canonical,
    digest,
    known_file,
    mapped,
    new_file,
)
from data_partitions.hdf5 import hdf5_child
from data_partitions.samples import Samples, read_meta
from data_partitions.splits import SPLITS


def write_partition(
    path: Path, recipe: dict[str, Any], samples: Samples, owner: np.ndarray, part: np.ndarray, samples_file: str
) -> None:
    """Write a partition store from owner and split (both (n,), negative where unused) of each sample.

    samples_file: the name of the sample file beside it, or "" to embed the samples. Raises DataError.
    """
    slot = np.where((owner >= 0) & (part >= 0), owner * len(SPLITS) + part, -1)
    indices = np.argsort(slot, kind="stable")[np.count_nonzero(slot < 0) :]
    ends = np.cumsum(np.bincount(slot[indices], minlength=recipe["clients"] * len(SPLITS)))
    bounds = np.zeros((recipe["clients"], len(SPLITS) + 1), np.int64)
    bounds[:, 1:] = ends.reshape(-1, len(SPLITS))
    bounds[1:, 0] = bounds[:-1, -1]
    chosen = [indices[start:end] for row in bounds for start, end in pairwise(row)]
    digests = np.array([list(digest(samples.x[rows], samples.y[rows])) for rows in chosen], np.uint8)
    digests = digests.reshape(*bounds[:, 1:].shape, -1)
    meta = canonical(asdict(samples.meta))
    with new_file(path, PARTITION_FORMAT) as file:
        file.attrs["recipe"] = canonical(recipe)
        file.attrs["meta"] = meta
        versions = {name: version(name) for name in ("numpy", "h5py")}
        file.attrs["provenance"] = canonical({"source_sha256": samples.source_sha256} | versions)
        file.attrs["sha256"] = digest(canonical(recipe), meta, indices, bounds, digests).hex()
        file.attrs["samples"] = samples_file
        file["indices"], file["bounds"], file["digests"] = indices, bounds, digests
        if not samples_file:
            chunk = (min(64, len(indices)), *samples.x.shape[1:])
            file.create_dataset("x", data=samples.x[indices], chunks=chunk, compression="gzip")
            file["y"] = samples.y[indices]


class Store:
    """A partition store, opened read-only by `open_store`; a client's samples are read when asked for.

    sha256: content hash. recipe: what the partition was made from. provenance: source_sha256 and library versions.
    clients: how many. meta: what the samples are; task, classes, input_shape, mean and std are its fields.
    """

    def __init__(self, path: Path, sha256: str | None, tried: bool) -> None:
        self._path = path
        with ExitStack() as opened:
            file = opened.enter_context(known_file(path, PARTITION_FORMAT, tried))
            self.sha256: str = file.attrs["sha256"]
            self.recipe: dict[str, Any] = json.loads(file.attrs["recipe"])
            self.provenance: dict[str, str] = json.loads(file.attrs["provenance"])
            self.meta = read_meta(file)
            self._indices, self._bounds, self._digests = (
                mapped(file, name) for name in ("indices", "bounds", "digests")
            )
            found = digest(file.attrs["recipe"], file.attrs["meta"], self._indices, self._bounds, self._digests).hex()
            if found != self.sha256:
                raise DataError(f"{path} was changed after it was written; remove it and build it again")
            if sha256 not in (None, found):
                raise DataError(f"{path} has content hash {found} instead of {sha256}; give the store that has it")
            self._embedded = not file.attrs["samples"]
            if self._embedded:
                self._x, self._y = hdf5_child(file, "x", h5py.Dataset, REMOVE), mapped(file, "y")
            else:
                beside_path = path.parent / Path(file.attrs["samples"]).name
                with known_file(beside_path, SAMPLES_FORMAT, tried, older=True) as beside:
                    self._x, self._y = mapped(beside, "x"), mapped(beside, "y")
            self._check_shapes(path)
            self._file = opened.pop_all()
        self.clients: int = len(self._bounds)
        self.task, self.classes, self.input_shape = self.meta.task, self.meta.classes, self.meta.input_shape
        self.mean, self.std = self.meta.mean, self.meta.std

    def _check_shapes(self, path: Path) -> None:
        """A hash proves no good will: nothing read later may lie outside the arrays."""
        ends, rows = self._bounds.ravel(), len(self._indices) if self._embedded else len(self._x)
        if not (
            (self._indices.dtype, self._bounds.dtype) == (np.int64, np.int64)
            and self._bounds.shape == (self.recipe["clients"], len(SPLITS) + 1)
            and self._digests.shape == (len(self._bounds), len(SPLITS), hashlib.sha256().digest_size)
            and ends[0] == 0
            and ends[-1] == len(self._indices)
            and (np.diff(ends) >= 0).all()
            and (self._indices >= 0).all()
            and (self._embedded or (self._indices < rows).all())
            and self._x.shape == (rows, *self.meta.input_shape)
            and self._x.dtype in ((np.uint8,) if self.meta.task == "text" else (np.uint8, np.float32))
            and (self._y.dtype, self._y.shape) == (np.int64, (rows,))
            and 0 <= self._y.min(initial=0) <= self._y.max(initial=0) < len(self.meta.classes)
        ):
            raise DataError(f"{path} does not fit its samples; remove it and build it again")

    def _range(self, client: int, split: str) -> slice:
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} is not in 0 to {self.clients - 1}")
        index = _number(split)
        return slice(self._bounds[client, index], self._bounds[client, index + 1])

    def sizes(self, split: str) -> np.ndarray:
        """int64 (clients,): how many samples each has in the split."""
        index = _number(split)
        return self._bounds[:, index + 1] - self._bounds[:, index]

    def counts(self, split: str | None = None) -> np.ndarray:
        """int64 (clients, classes): samples of each class in the split, or in all three."""
        slots = np.repeat(np.arange(self.clients * len(SPLITS)), np.diff(self._bounds).ravel())
        labels = self._y if self._embedded else self._y[self._indices]
        shape = (self.clients, len(SPLITS), len(self.classes))
        counted = np.bincount(slots * len(self.classes) + labels, minlength=math.prod(shape)).reshape(shape)
        return counted.sum(axis=1) if split is None else counted[:, _number(split)]

    def indices(self, client: int, split: str) -> np.ndarray:
        """int64 (n,): where the client's samples of the split are in the sample file, ascending."""
        return np.array(self._indices[self._range(client, split)])

    def samples(self, client: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        """x uint8 or float32 (n, *input_shape) and y int64 (n,) of one client and split; nothing else is read.

        Raises DataError where they are not the samples that the store was built from.
        """
        where = self._range(client, split)
        rows = where if self._embedded else self._indices[where]
        with reading(self._path, PARTITION_FORMAT, REMOVE):
            x, y = np.array(self._x[rows]), np.array(self._y[rows])
        if digest(x, y) != self._digests[client, _number(split)].tobytes():
            raise DataError(
                f"the {split} samples of client {client} were changed after the store was built; "
                "remove the store and its sample file and build them again"
            )
        return x, y

    def close(self) -> None:
        """Close the file; arrays already read stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(path: Path, sha256: str | None = None, tried: bool = False) -> Store:
    """Open a partition store and verify it, against content hash `sha256` too where given. Raises DataError.

    `tried`: it has been opened already, in this process or another, so that no child has to try its structure.
    """
    return Store(path, sha256, tried)


def _number(split: str) -> int:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    return SPLITS.index(split)
