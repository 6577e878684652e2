"""The samples of a data set, and the file that holds them once.

A **sample file** holds `x` uint8 or float32 (n, *input_shape) and `y` int64 (n,), both contiguous so that every
process maps the same pages of memory; where the source has them, `client` int64 (n,) and `is_test` bool (n,).
Attributes: `format`, `version`, `meta` (JSON: the fields of Meta), `sha256` (of meta and arrays), `source_sha256` (of
the files they were read from).
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_partitions.errors import DataError
from data_partitions.files import SAMPLES_FORMAT, canonical, digest, known_file, mapped, new_file


@dataclass(frozen=True)
class Meta:
    """What a data set's samples are.

    dataset: its name, without a path; task: "image", "text" or "tabular"; classes: their names; input_shape: of one
    sample, (H, W), (H, W, C), (T,) or (F,); mean, std: per channel or feature, of bytes in [0, 1], of float32 as it is,
    and in a sample file empty, or of all samples, where each partition has those of its own training samples;
    client_names: of the natural clients, empty where there are none.
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
    """All samples of a data set: x uint8 or float32 (n, *input_shape), y int64 (n,) below len(meta.classes).

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


def write_samples(path: Path, samples: Samples) -> None:
    """Write a sample file. Raises DataError where it cannot be written."""
    with new_file(path, SAMPLES_FORMAT) as file:
        file.attrs["meta"] = canonical(asdict(samples.meta))
        file.attrs["sha256"], file.attrs["source_sha256"] = samples.sha256, samples.source_sha256
        for name, array in samples.arrays().items():
            file[name] = array


def read_samples(path: Path) -> Samples:
    """The samples in a sample file, mapped into memory and verified in full. Raises DataError."""
    with known_file(path, SAMPLES_FORMAT) as file:
        arrays = {name: mapped(file, name) for name in file}
        samples = Samples(read_meta(file), file.attrs["source_sha256"], **arrays)
        if samples.sha256 != file.attrs["sha256"]:
            raise DataError(f"{path} was changed after it was written; remove it")
    return samples


def read_meta(file: h5py.File) -> Meta:
    fields: dict[str, Any] = json.loads(file.attrs["meta"])
    fields |= {name: tuple(fields[name]) for name in ("input_shape", "mean", "std")}
    return Meta(**fields)
