"""Data sets that the package `datasets` loads: Hugging Face's hub, or a folder of its files."""

from contextlib import AbstractContextManager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.errors import DataError, note, some
from data_partitions.readers.arrays import Arrays
from data_partitions.readers.pictures import PICTURES, stack
from data_partitions.readers.table import CLIENT, LABEL, table

if TYPE_CHECKING:
    from PIL import Image


def load_hub(text: str) -> Any:
    """The DatasetDict of NAME or NAME:CONFIGURATION, downloaded or from `datasets`' own cache. Raises DataError."""
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise DataError(
            f"hf:{text} needs the package datasets, which is not installed; pip install datasets, or give npz:PATH"
        ) from None
    datasets.disable_progress_bars()
    name, _, configuration = text.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"hf:{text} is not loaded by datasets ({reason:.300}); give a name that is") from error


def hub(_: list[Path], found: Any, where: Path, label: str | None, client: str | None, size: int | None) -> Arrays:
    """All splits of a DatasetDict, pooled: its first column of pictures, or its columns of numbers and words.

    label: by default the first that has classes. With clients the split "test" is kept as such.
    """
    import datasets

    data = datasets.concatenate_datasets(list(found.values()))
    classed = [name for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)]
    label = label or next(iter(classed), LABEL)
    pictures = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    scalar = [name for name, kind in data.features.items() if isinstance(kind, datasets.Value | datasets.ClassLabel)]
    if not pictures and (left := sorted(set(data.features) - set(scalar))):
        note(f"{where}: left out {some(left)}, which are neither numbers nor words")
    client = client or (CLIENT if CLIENT in scalar else None)
    if pictures:  # of the table then only these columns count
        known = [name for name in (label, client) if name in scalar]
        frame = data.select_columns(known).to_pandas()
        arrays = table(frame.assign(**{"(number)": np.arange(len(frame))}), label, client, where)
        raw = data.cast_column(pictures[0], datasets.Image(decode=False))[pictures[0]]
        arrays = arrays._replace(x=stack([partial(_opened, each) for each in raw], [where] * len(raw), size, where))
    else:
        arrays = table(data.select_columns(scalar).to_pandas(), label, client, where)
    if label in classed:
        arrays = _with_all_classes(arrays, data.features[label].names)
    if client is not None and "test" in found:
        arrays = arrays._replace(
            is_test=np.repeat([name == "test" for name in found], [len(part) for part in found.values()])
        )
    return arrays


def _with_all_classes(arrays: Arrays, names: list[str]) -> Arrays:
    """Labels are numbers of these names, of which some may have no sample."""
    assert arrays.classes is not None
    return arrays._replace(y=np.array([int(number) for number in arrays.classes])[arrays.y], classes=names)


def _opened(raw: dict[str, Any]) -> "AbstractContextManager[Image.Image]":
    from PIL import Image

    return Image.open(BytesIO(raw["bytes"]) if raw["bytes"] is not None else raw["path"], formats=PICTURES)
