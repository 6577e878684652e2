"""Files that say whose samples they hold: TensorFlow Federated's HDF5 and LEAF's JSON."""

import json
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from data_partitions.errors import DataError, note, reading, some
from data_partitions.hdf5 import hdf5_child, open_hdf5
from data_partitions.readers.arrays import AGAIN, Arrays, all_of, as_many, check_labels, hdf5_array, same_shape
from data_partitions.readers.characters import CHARACTERS, DIGITS, LETTERS, alphabet_of, disjoint_windows, windows
from data_partitions.readers.values import as_labels, as_shaped, as_stored, as_uint8, one_scale


class Part(NamedTuple):
    """What one file holds of one natural client. scale: as_uint8's, "text", or "" where x is as read; taken: how."""

    name: str
    is_test: bool
    where: str
    x: np.ndarray
    y: np.ndarray
    scale: str = "text"
    taken: str = ""


def tff(files: list[Path], classes: list[str] | None = None, alphabet: list[str] | None = None) -> Arrays:
    """TensorFlow Federated's HDF5, examples/<client>/…: images and labels, or text; a second file is the test part.

    Images have ``classes`` and texts an ``alphabet``. Without either the files tell which: texts then have that of
    `alphabet_of`, and x may be other numbers than grey values. These stay as they are: in Federated EMNIST the
    background is 1.
    """
    parts: list[Part] = []
    texts: list[tuple[str, bool, str, str]] = []  # name, is_test, where, text
    for path in files:
        with open_hdf5(path, "HDF5", AGAIN) as file:
            examples = hdf5_child(file, "examples", h5py.Group, AGAIN)
            for name in examples:
                group, where = hdf5_child(examples, name, h5py.Group, AGAIN), f"client {name!r} in {path}"
                is_test = path is not files[0]
                held = list(group)
                if "snippets" in held:
                    text = b"\n".join(np.atleast_1d(hdf5_array(group, "snippets", path)).tolist())
                    texts.append((name, is_test, where, text.decode(errors="replace")))
                    continue
                keys = [
                    next((key for key in kind if key in held), "")
                    for kind in (("pixels", "image", "x"), ("label", "y"))
                ]
                if not all(keys):
                    raise DataError(
                        f"{where} has {', '.join(held) or 'nothing'}; pixels and label, or snippets, are needed"
                    )
                x, y = (hdf5_array(group, key, path) for key in keys)
                y, taken = as_labels(y, where)
                if classes is None:
                    x, shaped = as_shaped(x)
                    parts.append(Part(name, is_test, where, x, y, "", "; ".join(filter(None, (shaped, taken)))))
                else:
                    x, scale = as_uint8(x, where)
                    parts.append(Part(name, is_test, where, x, y, scale, taken))
    if texts and classes is None and alphabet is None:
        alphabet = alphabet_of("".join(text for _, is_test, _, text in texts if not is_test), all_of(files))
    read = [Part(name, is_test, where, *windows(text, alphabet or LETTERS)) for name, is_test, where, text in texts]
    return _by_client(read + parts, classes, alphabet, files, divided=len(files) > 1)


def leaf(
    files: list[Path], classes: list[str] | None = None, alphabet: list[str] | None = None, digits_only: bool = False
) -> Arrays:
    """LEAF's JSON in folders `train` and `test`: each user's images of 784 pixels, or 80 characters and the next one.

    Images have ``classes`` and texts an ``alphabet``. digits_only: images of the other 52 characters are left out.
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
                parts.append(Part(name, is_test, where, *disjoint_windows(x, y, alphabet or LETTERS, where)))
                continue
            y, taken = as_labels(y, where)
            as_many(where, len(x), "its y", len(y))
            x, scale = as_uint8(x, where)
            if digits_only:
                check_labels(y, CHARACTERS, where)
                others, count = others + int(np.count_nonzero(y >= len(DIGITS))), count + len(y)
                x, y = x[y < len(DIGITS)], y[y < len(DIGITS)]
            parts.append(Part(name, is_test, where, x, y, scale, taken))
    if others:
        note(f"read {count - others} of {count} samples: {others} are letters")
    return _by_client(parts, classes, alphabet, files, divided=True)


def _by_client(
    parts: list[Part], classes: list[str] | None, alphabet: list[str] | None, files: list[Path], divided: bool
) -> Arrays:
    for part in parts:
        as_many(part.where, len(part.x), "its y", len(part.y))
    used = [part for part in parts if len(part.y)]
    names = list(dict.fromkeys(part.name for part in used))
    if not used:
        raise DataError(f"{all_of(files)}: no client has samples; at least one is needed")
    if empty := sorted({part.name for part in parts} - set(names)):
        note(
            f"{all_of(files)}: left out {len(empty)} of {len(names) + len(empty)} clients, "
            f"without samples: {some(empty)}"
        )
    text = alphabet is not None or (classes is None and used[0].scale == "text")
    for part in used:
        if (part.scale == "text") != text:
            kinds = ("images", "texts") if text else ("texts", "images")
            raise DataError(f"{part.where} has {kinds[0]}; {kinds[1]} are right in this data set")
        same_shape(used[0].where, used[0].x.shape[1:], part.where, part.x.shape[1:])
        check_labels(part.y, None if text else classes, part.where)
    for taken in sorted({part.taken for part in used} - {""}):
        note(f"{all_of(files)}: {taken}")
    places = [part.where for part in used]
    if used[0].scale:
        x = np.concatenate(one_scale([(part.x, part.scale) for part in used], places))
    else:
        x = as_stored([part.x for part in used], places, rounding=True)
    y = np.concatenate([part.y for part in used])
    if text:
        classes = alphabet or LETTERS
        if unknown := np.count_nonzero(x == len(classes)) + np.count_nonzero(y == len(classes)):
            note(f"{all_of(files)}: {unknown} of {x.size + y.size} characters are outside the alphabet, read as spaces")
        x, y = (np.where(ids == len(classes), classes.index(" "), ids).astype(np.uint8) for ids in (x, y))
    number = {name: index for index, name in enumerate(names)}
    lengths = [len(part.y) for part in used]
    return Arrays(
        x,
        y,
        classes,
        np.repeat([number[part.name] for part in used], lengths),
        names,
        np.repeat([part.is_test for part in used], lengths) if divided else None,
        text,
    )
