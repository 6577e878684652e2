"""Tables: a column of classes, columns of features, and perhaps one that names clients."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError, note, reading, some
from data_partitions.readers.arrays import AGAIN, Arrays
from data_partitions.readers.values import as_shaped, as_stored, check_numbers

if TYPE_CHECKING:
    import pandas as pd

LABEL, CLIENT, TEST = "label", "client", "test"
"""Columns that are taken as such where nothing else is asked."""

WORDS = 50
"""More different words than this in a column are names or texts, no feature."""


def csv(files: list[Path], label: str | None, client: str | None) -> Arrays:
    """A file of values that commas, semicolons or tabs separate, with a line of names at its top."""
    import pandas as pd

    path = files[0]
    with reading(path, "csv", AGAIN):
        top = "".join(pd.read_csv(path, sep="\0", header=None, nrows=1, dtype=str, engine="python").astype(str).iloc[0])
        frame = pd.read_csv(path, sep=max(",;\t", key=top.count))
    frame = frame.drop(
        columns=[name for name in frame if str(name).startswith("Unnamed: ")]
    )  # a column of line numbers
    return table(frame, label, client, path)


def table(frame: "pd.DataFrame", label: str | None, client: str | None, path: Path) -> Arrays:
    """The rows of a frame: numbers as they are, and words as columns of 0 and 1. Raises DataError, which names `path`.

    label, client: names of columns, by default LABEL, and CLIENT where there is one. With clients, a column TEST of 0
    and 1 marks the source's own test part.
    """
    frame.columns = frame.columns.astype(str)
    for name, option in ((label or LABEL, "--label-column"), (client, "--client-column")):
        if name is not None and name not in frame:
            raise DataError(f"{path} has no column {name!r}; give one of {some(list(frame))} by {option}")
    label, client = label or LABEL, client or (CLIENT if CLIENT in frame else None)
    if label == client:
        raise DataError(f"{path}: column {label!r} cannot name both classes and clients; give two")
    if frame.empty:
        raise DataError(f"{path} has no rows; at least one is needed")
    if (empty := frame.isna()).to_numpy().any():
        column = next(name for name in frame if empty[name].any())
        line, cells = int(np.flatnonzero(empty[column])[0]) + 2, empty.to_numpy().sum()
        raise DataError(
            f"{path} has empty cells or NaN, {cells} in all, the first in column {column!r}, line {line}; "
            "fill them in or drop these rows"
        )
    classes, y = _numbered(frame.pop(label))
    decimals = [name for name in classes if _number(name) and "." in name and not name.endswith(".0")]
    if decimals:
        raise DataError(f"column {label!r} in {path} holds decimals such as {decimals[0]}; classes are needed")
    if not frame.shape[1]:
        raise DataError(f"{path} has no columns but {label!r}; features are needed")
    names: list[str] = []
    owner = is_test = None
    if client is not None:
        names, owner = _numbered(frame.pop(client))
        if TEST in frame and frame[TEST].isin((0, 1)).all():
            is_test = frame.pop(TEST).to_numpy(bool)
            note(f"{path}: 'natural' keeps the {is_test.sum()} rows that column test marks for testing")
    x, shaped = as_shaped(_features(frame, path).to_numpy())
    place = f"features in {path}"
    if shaped:
        note(f"{path}: {shaped}")
        return Arrays(as_stored([x], [place]), y, classes, owner, names, is_test)
    check_numbers(x, place)
    return Arrays(x.astype(np.float32), y, classes, owner, names, is_test)


def _numbered(column: "pd.Series") -> tuple[list[str], np.ndarray]:
    """The different values in order, as text, and the number of each row's."""
    found, numbers = np.unique(column.to_numpy(), return_inverse=True)
    whole = found.dtype.kind == "f" and (found == np.rint(found)).all()
    return [str(int(value) if whole else value) for value in found], numbers.astype(np.int64)


def _number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit()


def _features(frame: "pd.DataFrame", path: Path) -> "pd.DataFrame":
    import pandas as pd

    worded = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    for name in worded:
        numbers, different = pd.to_numeric(frame[name], errors="coerce"), frame[name].nunique()
        if 2 * numbers.notna().sum() > len(frame):
            row = int(np.flatnonzero(numbers.isna())[0])
            raise DataError(
                f"column {name!r} in {path} has {frame[name].iloc[row]!r} among numbers, the first in line {row + 2}; "
                "fill them in or drop these rows"
            )
        if different > WORDS:
            raise DataError(f"column {name!r} in {path} has {different} different words; leave it out or give numbers")
    if not worded:
        return frame
    spread = pd.get_dummies(frame, columns=worded, dtype=np.float32)
    made = spread.shape[1] - frame.shape[1] + len(worded)
    note(f"{path}: the words of {some(worded)} are taken as {made} columns of 0 and 1")
    return spread
