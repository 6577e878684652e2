"""The files that data live in: HDF5 sample files and partition stores, written atomically and verified when opened.

A **sample file** holds a data set once: `x` uint8 (n, *input_shape) and `y` int64 (n,), both contiguous so that every
process maps the same pages of memory; where the source has them, `client` int64 (n,) and `is_test` bool (n,).
Attributes: `format`, `version`, `meta` (JSON: the fields of Meta), `sha256` (of meta and arrays), `source_sha256` (of
the files they were read from).

A **partition store** holds who has which samples:

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
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from data_partitions.errors import DataError, reading
from data_partitions.partitioners import SPLITS

LARGEST_CHUNK = 1 << 28  # bytes: a chunk is unpacked whole, and says itself how large it is
STRUCTURE_SECONDS, STRUCTURE_BYTES = 5, 1 << 30  # more than HDF5 needs to read what a file says of itself
REMOVE = "remove it"
SAMPLES_FORMAT = "data_partitions samples"
PARTITION_FORMAT = "data_partitions partition"
VERSIONS = {SAMPLES_FORMAT: 2, PARTITION_FORMAT: 1}
"""A sample file's changes with what the readers make of the same source too, so that it is read anew."""


class OldVersionError(DataError):
    """A file of an earlier version: it can be made anew from its source."""


@dataclass(frozen=True)
class Meta:
    """What a data set's samples are.

    dataset: its name, without a path; task: "image" or "text"; classes: their names; input_shape: of one sample; mean,
    std: per channel, of pixels in [0, 1]; client_names: of the natural clients, empty where there are none.
    """

    dataset: str
    task: str
    classes: list[str]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    client_names: list[str]


@dataclass(frozen=True)
class Samples:
    """All samples of a data set: x uint8 (n, *input_shape), y int64 (n,) below len(meta.classes).

    source_sha256: of the files they were read from. client: int64 (n,), the natural client of each; is_test: bool (n,),
    the source's own division. None: it has none.
    """

    meta: Meta
    source_sha256: str
    x: np.ndarray
    y: np.ndarray
    client: np.ndarray | None = None
    is_test: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays there are, by name."""
        named = {"x": self.x, "y": self.y, "client": self.client, "is_test": self.is_test}
        return {name: array for name, array in named.items() if array is not None}

    @cached_property
    def sha256(self) -> str:
        """Of meta and arrays."""
        return digest(canonical(asdict(self.meta)), *self.arrays().values()).hex()


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


def write_samples(path: Path, samples: Samples) -> None:
    """Write a sample file. Raises DataError where it cannot be written."""
    with _new_file(path, SAMPLES_FORMAT) as file:
        file.attrs["meta"] = canonical(asdict(samples.meta))
        file.attrs["sha256"], file.attrs["source_sha256"] = samples.sha256, samples.source_sha256
        for name, array in samples.arrays().items():
            file[name] = array


def read_samples(path: Path) -> Samples:
    """The samples in a sample file, mapped into memory and verified in full. Raises DataError."""
    with _known_file(path, SAMPLES_FORMAT) as file:
        arrays = {name: _mapped(file, name) for name in file}
        samples = Samples(_meta(file), file.attrs["source_sha256"], **arrays)
        if samples.sha256 != file.attrs["sha256"]:
            raise DataError(f"{path} was changed after it was written; remove it")
    return samples


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
    with _new_file(path, PARTITION_FORMAT) as file:
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

    def __init__(self, path: Path, sha256: str | None) -> None:
        self._path = path
        with ExitStack() as opened:
            file = opened.enter_context(_known_file(path, PARTITION_FORMAT))
            self.sha256: str = file.attrs["sha256"]
            self.recipe: dict[str, Any] = json.loads(file.attrs["recipe"])
            self.provenance: dict[str, str] = json.loads(file.attrs["provenance"])
            self.meta = _meta(file)
            self._indices, self._bounds, self._digests = (
                _mapped(file, name) for name in ("indices", "bounds", "digests")
            )
            found = digest(file.attrs["recipe"], file.attrs["meta"], self._indices, self._bounds, self._digests).hex()
            if found != self.sha256:
                raise DataError(f"{path} was changed after it was written; remove it and build it again")
            if sha256 not in (None, found):
                raise DataError(f"{path} has content hash {found} instead of {sha256}; give the store that has it")
            self._embedded = not file.attrs["samples"]
            if self._embedded:
                self._x, self._y = hdf5_child(file, "x", h5py.Dataset, REMOVE), _mapped(file, "y")
            else:
                with _known_file(path.parent / Path(file.attrs["samples"]).name, SAMPLES_FORMAT) as beside:
                    self._x, self._y = _mapped(beside, "x"), _mapped(beside, "y")
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
            and (self._x.dtype, self._y.dtype, self._y.shape) == (np.uint8, np.int64, (rows,))
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
        """x uint8 (n, *input_shape) and y int64 (n,) of one client and split; nothing else is read.

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


def open_store(path: Path, sha256: str | None = None) -> Store:
    """Open a partition store and verify it, against content hash `sha256` too where given. Raises DataError."""
    return Store(path, sha256)


def _number(split: str) -> int:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


@contextmanager
def _new_file(path: Path, kind: str) -> Iterator[h5py.File]:
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
def _known_file(path: Path, kind: str) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, read-only. Raises DataError unless it is of this kind and version and undamaged."""
    with open_hdf5(path, kind, REMOVE) as file:
        if file.attrs.get("format") != kind:
            raise DataError(f"{path} is not a {kind} file; remove it or name another")
        if (found := int(file.attrs["version"])) != VERSIONS[kind]:
            refusal = OldVersionError if found < VERSIONS[kind] else DataError
            raise refusal(
                f"{path} has schema version {found}, this program reads {VERSIONS[kind]}; remove it or update"
            )
        yield file


@contextmanager
def open_hdf5(path: Path, kind: str, advice: str) -> Iterator[h5py.File]:
    """The one way into an HDF5 file, read-only: HDF5 gets through it, or it is not opened here.

    `kind` is what the file should be, `advice` what to do with a broken one. What is in it is reached by hdf5_child.
    Raises DataError, also for what fails on reading within the block.
    """
    with reading(path, kind, advice):
        if not path.is_file():
            raise DataError(f"{path} is {'a directory' if path.is_dir() else 'missing'}; a {kind} file is needed there")
        path.open("rb").close()
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
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: STRUCTURE_SECONDS + (path.stat().st_size >> 24),
        resource.RLIMIT_AS: pages * resource.getpagesize() + STRUCTURE_BYTES,
    }
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


def _meta(file: h5py.File) -> Meta:
    fields: dict[str, Any] = json.loads(file.attrs["meta"])
    fields |= {name: tuple(fields[name]) for name in ("input_shape", "mean", "std")}
    return Meta(**fields)


def _mapped(file: h5py.File, name: str) -> np.ndarray:
    """A contiguous dataset as a read-only map of the file: processes share its pages, those that are touched."""
    dataset = hdf5_child(file, name, h5py.Dataset, REMOVE)
    if dataset.size == 0:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype.hasobject:
        raise DataError(f"{name} in {file.filename} is kept in a way that is not read here; {REMOVE}")
    return np.memmap(file.filename, dataset.dtype, "r", offset, dataset.shape)
