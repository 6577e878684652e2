"""Checkpoints of a run: tensors in safetensors files, the rest in JSON; nothing that could execute.

    RUN/checkpoint/round-000010/   shared.safetensors   server.safetensors   server.json   client-<k>.safetensors

A checkpoint is written under another name, brought to the disk and renamed when it is whole; the one before it is kept.
server.json holds the SHA-256 of every other file, of the run's tables as they were, and of itself.
Random streams are not in it: each is a function of (seed, client, round).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from benchmarks.federation import files
from benchmarks.federation.metrics import ClientFigures
from benchmarks.federation.run_tables import Extent

VERSION = 3
KEPT = 2
LARGEST_RECORD = 1 << 28  # bytes of server.json: a million clients

Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, StringConstraints(pattern=r"^(shared|server|client-\d{1,9})\.safetensors$")]


class Record(BaseModel, frozen=True, extra="forbid", strict=True):
    """server.json: what the server knows beside tensors. Counts, figures and seconds are the run's so far."""

    version: int
    round: Annotated[int, Field(ge=1)]
    partition_sha256: str
    sent: dict[str, Count]
    to_model: dict[str, Count]
    moved: dict[str, Count]
    absent: dict[str, Count]
    seen: list[Count]  # clients that have trained
    figures: dict[Count, ClientFigures]
    received: dict[Count, float]
    seconds: dict[str, float]
    tables: dict[str, Extent]
    files: dict[FileName, str]  # SHA-256 of each
    work: dict[str, tuple[Count, Count]] | None = None  # None: of a run that began without counting it
    arrived: list[Count] = []  # clients whose update arrived in this round, where links decide that
    sha256: str = ""  # of this record without it, as ``seal`` returns it

    def seal(self) -> str:
        # What a record of an earlier version does not have is no part of its seal.
        text = json.dumps(self.model_dump(exclude={"sha256"}, exclude_unset=True))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def states(self) -> dict[int, str]:
        """The clients whose state is in the checkpoint, and their files' SHA-256."""
        names = {name: re.fullmatch(r"client-(\d+)\.safetensors", name) for name in self.files}
        return {int(found[1]): self.files[name] for name, found in names.items() if found}


class Checkpoint(NamedTuple):
    folder: Path
    record: Record
    shared: dict[str, Tensor]
    server: dict[str, Tensor]


class RefusedError(ValueError):
    """A checkpoint cannot be used; the text says why."""


def clear(directory: Path) -> None:
    """Gives the run an empty folder of checkpoints. Raises OSError with its path."""
    folder = directory / "checkpoint"
    with files.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            shutil.rmtree(left)


def begin(directory: Path, number: int) -> Path:
    """Returns a fresh folder for the checkpoint after round ``number``, where workers put their clients' states.

    Raises OSError where the run's folder has vanished: it is not made again.
    """
    for left in (directory / "checkpoint").glob("*.partial"):
        shutil.rmtree(left)
    folder = directory / "checkpoint" / f"{_name(number)}.partial"
    with files.naming(folder):
        folder.mkdir()
    return folder


def save_client(folder: Path, client: int, state: dict[str, Tensor]) -> None:
    files.write(folder / f"client-{client}.safetensors", save(state))


def load_client(folder: Path, client: int, sha256: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what the client kept. Raises RefusedError where the file is not that, or as ``read_state``."""
    name = f"client-{client}.safetensors"
    content = _read(folder / name, sha256)
    try:
        return read_state(content, like)
    except RefusedError as error:
        raise RefusedError(f"{name}: {error}") from None


def read_state(content: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a client's private tensors from safetensors' bytes.

    Raises RefusedError where their names, shapes and types are not those of ``like``.
    """
    state = _parse(content)
    if not alike(state, like):
        raise RefusedError("these are not the private tensors of this method and model")
    return {name: state[name] for name in like}


def alike(some: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names, with the same shapes and types."""
    kinds, expected = ({name: (t.shape, t.dtype) for name, t in each.items()} for each in (some, other))
    return kinds == expected


def commit(folder: Path, shared: dict[str, Tensor], server: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Adds the server's part, gives the checkpoint its name, and removes all but the newest ``KEPT``."""
    files.write(folder / "shared.safetensors", save(shared))
    files.write(folder / "server.safetensors", save(server))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    whole = Record(version=VERSION, files=digests, **record)
    whole = whole.model_copy(update={"sha256": whole.seal()})
    files.write(folder / "server.json", json.dumps(whole.model_dump(exclude_unset=True)).encode())  # a loss may be NaN
    files.sync(folder)
    final = folder.with_suffix("")
    with files.naming(final):
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    files.sync(final.parent)
    for old in folders(final.parent.parent)[KEPT:]:
        shutil.rmtree(old)


def newest(
    directory: Path, like: Mapping[str, Tensor], check: Callable[[Checkpoint], None]
) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest checkpoint that can be used, if any, and a sentence for each newer one that cannot.

    Those are removed. ``like``: a client's private tensors. ``check`` raises RefusedError where it is not this run's.
    """
    refused: list[str] = []
    for folder in folders(directory):
        try:
            found = restore(folder, like)
            check(found)
            return found, refused
        except RefusedError as error:
            refused.append(f"checkpoint {folder} is refused: {error}")
            shutil.rmtree(folder)
    return None, refused


def _name(number: int) -> str:
    return f"round-{number:06d}"


def folders(directory: Path) -> list[Path]:
    """Returns the run's checkpoints, newest first."""
    found = (directory / "checkpoint").glob("round-*")
    numbers = {int(path.name[6:]): path for path in found if re.fullmatch(r"round-\d{6,18}", path.name)}
    return [numbers[number] for number in sorted(numbers, reverse=True)]


def restore(folder: Path, like: Mapping[str, Tensor]) -> Checkpoint:
    """Reads every file once, so that no worker finds one damaged after the tables were cut to this checkpoint.

    ``like``: a client's private tensors. Raises RefusedError.
    """
    record = _read_record(folder / "server.json")
    if folder.name != _name(record.round):
        raise RefusedError(f"it says that it was written after round {record.round}")
    for client, sha256 in record.states.items():
        load_client(folder, client, sha256, like)
    shared, server = (
        _parse(_read(folder / name, record.files.get(name, "")))
        for name in ("shared.safetensors", "server.safetensors")
    )
    return Checkpoint(folder, record, shared, server)


def _read_record(path: Path) -> Record:
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise RefusedError(f"{path.name} is too large")
        text = path.read_bytes()
        version = Versioned.model_validate_json(text).version
        if version != VERSION:
            raise RefusedError(f"it has version {version}, this program reads {VERSION}")
        record = Record.model_validate_json(text)
    except OSError as error:
        raise RefusedError(f"{path.name}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise RefusedError(f"{path.name} is not whole ({where + ': ' if where else ''}{first['msg'][:200]})") from None
    if record.seal() != record.sha256:
        raise RefusedError(f"{path.name} was changed or is not whole")
    return record


class Versioned(BaseModel, extra="ignore"):
    version: int = 1  # the first version did not say


def _parse(content: bytes) -> dict[str, Tensor]:
    """Returns the tensors in safetensors' bytes. Raises RefusedError; the library bounds every size by theirs."""
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RefusedError(f"not tensors in safetensors' form ({str(error)[:200]})") from None


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path.name}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RefusedError(f"{path.name} was changed or is not whole")
    return content
