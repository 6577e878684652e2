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
from data_partitions.readers.values import as_labels, as_uint8, one_scale


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
    """`x`, `y` and optionally `client` (numbers or names); or `x_train`, `y_train`, `x_test`, `y_test`, pooled.

    With the latter, `client` holds those of x_train, then of x_test; only then is the test part kept as such, for
    `natural`. `read` gives an array by its name.
    """
    names = sorted(names)
    pairs = [("x", "y")] if {"x", "y"} <= set(names) else [("x_train", "y_train"), ("x_test", "y_test")]
    used = {name for pair in pairs for name in pair} | ({"client"} & set(names))
    if not used <= set(names):
        raise DataError(
            f"{path} holds {', '.join(names) or 'nothing'}; arrays x and y, or x_train, y_train, x_test, y_test, "
            "are needed at its top"
        )
    if left := [name for name in names if name not in used]:
        note(f"{path}: read {', '.join(sorted(used))}; left out {some(left)}")
    images, labels, places = [], [], [f"{name} in {path}" for name, _ in pairs]
    for (x_name, y_name), place in zip(pairs, places, strict=True):
        pixels, given = read(x_name), read(y_name)
        if not pixels.ndim:
            raise DataError(f"{place} is a single value; (samples, height, width) is right")
        y, taken = as_labels(given, f"{y_name} in {path}")
        as_many(place, len(pixels), y_name, len(y))
        if taken:
            note(f"{y_name} in {path}: {taken}")
        images.append(as_uint8(pixels, place))
        labels.append(y)
        same_shape(places[0], images[0][0].shape[1:], place, pixels.shape[1:])
    if len(scales := {scale for _, scale in images}) > 1 and "integers" in scales:
        note(f"{path}: x_train has {images[0][1]}, x_test {images[1][1]}; each is scaled by its own type")
    x, y = np.concatenate(one_scale(images, places)), np.concatenate(labels)
    if "client" not in names:
        return Arrays(x, y)
    client = read("client")
    if client.size != len(y) or client.ndim > 2:
        raise DataError(f"client in {path} has shape {client.shape}; one for each of {len(y)} samples is right")
    found, client = np.unique(client.reshape(-1), return_inverse=True)
    client_names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in found]
    is_test = None
    if len(pairs) > 1:
        note(f"{path}: client is taken for x_train, then x_test; 'natural' keeps x_test for testing")
        is_test = np.arange(len(y)) >= len(labels[0])
    return Arrays(x, y, None, client, client_names, is_test)
