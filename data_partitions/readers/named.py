"""A user's own arrays, found by their names."""

import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data_partitions.errors import DataError, note, reading, some
from data_partitions.hdf5 import open_hdf5
from data_partitions.readers.arrays import AGAIN, Arrays, as_many, check_memory, hdf5_array, same_shape
from data_partitions.readers.clients import tff
from data_partitions.readers.values import as_labels, as_shaped, as_stored

LAYOUTS = [
    [("x", "y")],
    [("x_train", "y_train"), ("x_val", "y_val"), ("x_test", "y_test")],
    [("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels")],  # MedMNIST's
]
"""Names of samples and labels, in parts; a part for validation may be missing."""


def npz(files: list[Path]) -> Arrays:
    """A user's arrays in NumPy's .npz: see `named_arrays`."""
    path = files[0]
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not a whole .npz file; write one with numpy.savez, or {AGAIN}")

    def read(name: str) -> np.ndarray:
        with reading(path, ".npz", AGAIN), np.load(path, allow_pickle=False) as archive:
            member = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
            with archive.zip.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = header[version](stream)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject:
                    raise DataError(
                        f"{name} in {path} holds Python objects, which are never unpickled; "
                        "save numbers, or strings as astype(str)"
                    )
                check_memory(path, size)
                if stream.tell() + size != member.file_size:
                    raise DataError(f"{name} in {path} declares {size} bytes and has others; {AGAIN}")
            return archive[name]

    with reading(path, ".npz", AGAIN), np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
    return named_arrays(names, read, path)


def hdf5(files: list[Path]) -> Arrays:
    """A user's arrays in HDF5: TensorFlow Federated's layout with its train and test files, or see `named_arrays`."""
    path = files[0]
    with open_hdf5(path, "HDF5", AGAIN) as file:
        # Not "in file": that follows links.
        if "examples" not in (names := list(file)):
            if len(files) > 1:
                note(f"{files[1]} is left out: only files with examples/<client>/… come in pairs")
            return named_arrays(names, lambda name: hdf5_array(file, name, path), path)
    return tff(files)


def named_arrays(names: Iterable[str], read: Callable[[str], np.ndarray], path: Path) -> Arrays:
    """The samples and labels of one of LAYOUTS, its parts pooled; optionally `client` (numbers or names) and `classes`.

    Capital letters do not matter. `client` holds those of the first part, then of the next. With it the test part is
    kept as such, for `natural`; beside `x` and `y` that is what `test` marks. `read` gives an array by its name.
    """
    spelled = {name.lower(): name for name in sorted(names)}
    pairs = next((layout for layout in LAYOUTS if set(layout[0]) <= set(spelled)), LAYOUTS[1])
    pairs = [pair for pair in pairs if set(pair) <= set(spelled) or "val" not in pair[0]]
    used = {name for pair in pairs for name in pair} | ({"client", "classes"} & set(spelled))
    if len(pairs) == 1 and "client" in spelled:
        used |= {"test"} & set(spelled)
    if not used <= set(spelled):
        raise DataError(
            f"{path} holds {', '.join(spelled.values()) or 'nothing'}; arrays x and y, or x_train, y_train, x_test, "
            "y_test, or train_images, train_labels, test_images, test_labels, are needed at its top"
        )
    if left := [name for low, name in spelled.items() if low not in used]:
        read_ones = sorted(spelled[low] for low in used)
        note(f"{path}: read {', '.join(read_ones)}; left out {some(left)}")
    arrays, labels, places = [], [], [f"{spelled[name]} in {path}" for name, _ in pairs]
    said: dict[str, str] = {}  # how they are taken, and the first that is
    for (x_name, y_name), place in zip(pairs, places, strict=True):
        x, y = read(spelled[x_name]), read(spelled[y_name])
        if not x.ndim:
            raise DataError(f"{place} is a single value; (samples, height, width) is right")
        x, shaped = as_shaped(x)
        if y.dtype.kind not in "SUO":
            y, taken = as_labels(y, f"{spelled[y_name]} in {path}")
            said.setdefault(taken, f"{spelled[y_name]} in {path}")
        as_many(place, len(x), spelled[y_name], len(y))
        said.setdefault(shaped, place)
        arrays.append(x)
        labels.append(y)
        same_shape(places[0], arrays[0].shape[1:], place, x.shape[1:])
    for sentence in filter(None, said):
        note(f"{said[sentence]}: {sentence}")
    x, (y, classes) = as_stored(arrays, places), _named(labels, f"{spelled[pairs[0][1]]} in {path}")
    if "classes" in used:
        classes = _classes(read(spelled["classes"]), y, classes, f"{spelled['classes']} in {path}")
    if "client" not in used:
        return Arrays(x, y, classes)
    client = read(spelled["client"])
    if client.size != len(y) or client.ndim > 2:
        raise DataError(f"client in {path} has shape {client.shape}; one for each of {len(y)} samples is right")
    found, client = np.unique(client.reshape(-1), return_inverse=True)
    is_test = None
    if len(pairs) > 1:
        parts = ", then ".join(spelled[name] for name, _ in pairs)
        note(f"{path}: client is taken for {parts}; 'natural' keeps {spelled[pairs[-1][0]]} for testing")
        is_test = np.arange(len(y)) >= len(y) - len(labels[-1])
    elif "test" in used:
        marks = read(spelled["test"])
        if marks.shape == y.shape and np.isin(marks, (0, 1)).all():
            is_test = marks.astype(bool)
            note(f"{path}: 'natural' keeps the {is_test.sum()} samples that test marks for testing")
        else:
            note(f"{path}: left out test, which is not 0 or 1 for each of {len(y)} samples")
    return Arrays(x, y, classes, client, [_text(name) for name in found], is_test)


def _named(labels: list[np.ndarray], where: str) -> tuple[np.ndarray, list[str] | None]:
    """The labels of all parts, and the names of the classes in alphabetical order where the labels are these."""
    named = [y.dtype.kind in "SUO" for y in labels]
    if not any(named):
        return np.concatenate(labels), None
    if not all(named) or any(y.ndim > 1 and y.size != len(y) for y in labels):
        raise DataError(f"{where} has labels that are not all names, one for each sample; give one kind of label")
    texts = [_text(name) for y in labels for name in y.reshape(-1)]
    classes, y = np.unique(np.array(texts, str), return_inverse=True)
    return y.astype(np.int64), [str(name) for name in classes]


def _classes(given: np.ndarray, y: np.ndarray, named: list[str] | None, where: str) -> list[str]:
    """The names that a file gives its classes."""
    names = [_text(name) for name in given.reshape(-1)]
    if named is not None or not len(y) or y.max() >= len(names):
        raise DataError(f"{where} has {len(names)} names, which are not those of the labels; give one for each from 0")
    return names


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
