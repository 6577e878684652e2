"""The tables of a run: rounds.csv, clients.csv and ledger.csv, to which rows are added and none is changed."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.federation import files
from benchmarks.federation.ledger import Entry
from benchmarks.federation.metrics import METRICS, Metric

STATISTICS = ("mean", "std", "worst_decile")


def tags_of(metrics: Iterable[Metric]) -> dict[str, str]:
    """Returns TensorBoard's name of each column of ``metrics`` in rounds.csv."""
    return {f"{m.name}_{statistic}": f"metrics/{m.name}/{statistic}" for m in metrics for statistic in STATISTICS}


OF_METRICS = tags_of(METRICS)

# A new column comes after those that tables of earlier versions have.
ROUND_COLUMNS = (
    *("round", "accuracy_mean", "accuracy_std", "accuracy_worst_decile", "loss_mean"),
    *("parameters_up", "parameters_down", "bytes_up", "bytes_down", "seconds"),
    *("accuracy_received_mean", "validation_accuracy_mean", "dropped", "late"),
    *("parameters_to_model", "bytes_to_model"),
    *OF_METRICS,
    "gradients",
)
CLIENT_COLUMNS = ("round", "client", "accuracy", "loss", "samples", *(metric.name for metric in METRICS))
TABLES = {
    "rounds.csv": tuple(dict.fromkeys(ROUND_COLUMNS)),
    "clients.csv": tuple(dict.fromkeys(CLIENT_COLUMNS)),
    "ledger.csv": Entry._fields,
}


def columns_of(table: str, metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Returns the columns of a table of a run with these ``metrics``."""
    further = {"rounds.csv": tags_of(metrics), "clients.csv": [m.name for m in metrics]}
    return tuple(dict.fromkeys([*TABLES[table], *further.get(table, ())]))


@dataclass(frozen=True)
class Extent:
    """What a table held when a checkpoint was written: its first so many bytes, and their SHA-256."""

    size: int
    sha256: str


class Table:
    """A CSV file to which this run alone adds rows."""

    def __init__(self, path: Path, columns: Iterable[str], kept: Extent | None) -> None:
        """Begins the file with its header, or cuts it to what was ``kept`` of it, as ``check_tables`` saw it.

        A file that was begun without one of the ``columns`` goes on without it.
        """
        self.path, self.columns = path, list(columns)
        if kept:
            with files.naming(path):
                os.truncate(path, kept.size)
                content = path.read_bytes()
                self.columns = _header(content)
                self.size, self.content = kept.size, hashlib.sha256(content)
        else:
            header = (",".join(self.columns) + "\n").encode()
            self.size, self.content = files.write(path, header), hashlib.sha256(header)

    def add(self, rows: Iterable[Iterable[Any]]) -> None:
        """Adds ``rows``. Floats keep every bit (repr). Raises as ``files.append``."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        content = text.getvalue().encode()
        self.size = files.append(self.path, content, self.size)
        self.content.update(content)

    def add_named(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """As ``add``, of values by column; one that a row lacks stays empty."""
        self.add([row.get(column, "") for column in self.columns] for row in rows)

    def read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def extent(self) -> Extent:
        return Extent(self.size, self.content.hexdigest())


def check_tables(directory: Path, kept: Mapping[str, Extent], metrics: Sequence[Metric] = METRICS) -> None:
    """Raises ValueError unless each table in ``directory`` still begins with what was ``kept`` of it."""
    if kept.keys() != TABLES.keys():
        raise ValueError(f"it names other tables than {', '.join(TABLES)}")
    for name in TABLES:
        columns, size = columns_of(name, metrics), kept[name].size
        try:
            if (there := (directory / name).stat().st_size) < size:
                raise ValueError(f"{name} does not reach it: {there} of the {size} bytes that it had then")
            with (directory / name).open("rb") as file:
                content = file.read(size)
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != kept[name].sha256:
            raise ValueError(f"{name} holds other rows than it did then")
        if not set(_header(content)) <= set(columns):
            raise ValueError(f"{name} has other columns than this program writes")


def _header(content: bytes) -> list[str]:
    return content.partition(b"\n")[0].decode(errors="replace").split(",")
