"""Checkpoints of a run: tensors in safetensors files, the rest in JSON; nothing that could execute.

    RUN/checkpoint/round-000010/   shared.safetensors   server.safetensors   server.json   client-<k>.safetensors

A checkpoint is written under another name, brought to the disk and renamed when it is whole; the one before it is kept.
Random streams are not in it: each is a function of (seed, client, round).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from benchmarks import files
from benchmarks.record import ClientFigures

VERSION = 2
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
    moved: dict[str, Count]
    absent: dict[str, Count]
    seen: list[Count]  # clients that have trained
    figures: dict[Count, ClientFigures]
    received: dict[Count, float]
    seconds: dict[str, float]
    files: dict[FileName, str]  # SHA-256 of each


class Checkpoint(NamedTuple):
    folder: Path
    record: Record
    shared: dict[str, Tensor]
    server: dict[str, Tensor]


class RefusedError(ValueError):
    """A checkpoint cannot be used; the text says why."""


def begin(directory: Path, number: int) -> Path:
    """Returns a fresh folder for the checkpoint after round ``number``, where workers put their clients' states."""
    for left in (directory / "checkpoint").glob("*.partial"):
        shutil.rmtree(left)
    folder = directory / "checkpoint" / f"round-{number:06d}.partial"
    with files.naming(folder):
        folder.mkdir(parents=True)
    return folder


def save_client(folder: Path, client: int, state: dict[str, Tensor]) -> None:
    files.write(folder / f"client-{client}.safetensors", save(state))


def load_client(folder: Path, client: int, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns what the client kept, or None where it kept nothing yet. Raises RefusedError as ``read_state``."""
    path = folder / f"client-{client}.safetensors"
    return read_state(path.read_bytes(), like) if path.exists() else None


def read_state(content: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a client's private tensors from safetensors' bytes.

    Raises RefusedError where their names, shapes and types are not those of ``like``.
    """
    state = _parse(content)
    kinds, expected = ({name: (t.shape, t.dtype) for name, t in some.items()} for some in (state, like))
    if kinds != expected:
        raise RefusedError("these are not the private tensors of this method and model")
    return {name: state[name] for name in like}


def commit(folder: Path, shared: dict[str, Tensor], server: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Adds the server's part, gives the checkpoint its name, and removes all but the newest ``KEPT``."""
    files.write(folder / "shared.safetensors", save(shared))
    files.write(folder / "server.safetensors", save(server))
    digests = {path.name: _digest(path) for path in folder.glob("*.safetensors")}
    whole = Record(version=VERSION, files=digests, **record)
    files.write(folder / "server.json", json.dumps(whole.model_dump()).encode())  # a loss may be NaN
    files.sync(folder)
    final = folder.with_suffix("")
    with files.naming(final):
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    files.sync(final.parent)
    for old in _folders(final.parent.parent)[KEPT:]:
        shutil.rmtree(old)


def newest(directory: Path, partition_sha256: str) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest checkpoint that can be used, if any, and a sentence for each newer one that cannot.

    Those are removed.
    """
    refused: list[str] = []
    for folder in _folders(directory):
        try:
            return _restore(folder, partition_sha256), refused
        except RefusedError as error:
            refused.append(f"checkpoint {folder} is refused: {error}")
            shutil.rmtree(folder)
    return None, refused


def _folders(directory: Path) -> list[Path]:
    """Returns the run's checkpoints, newest first."""
    return sorted((directory / "checkpoint").glob("round-??????"), reverse=True)


def _restore(folder: Path, partition_sha256: str) -> Checkpoint:
    record = _read_record(folder / "server.json")
    if record.partition_sha256 != partition_sha256:
        raise RefusedError("it was made on another partition")
    parts = ("shared.safetensors", "server.safetensors")
    for name in (*parts, *record.files):
        try:
            if _digest(folder / name) != record.files.get(name):
                raise RefusedError(f"{name} was changed or is not whole")
        except OSError as error:
            raise RefusedError(f"{name}: {error.strerror}") from None
    return Checkpoint(folder, record, *(_parse((folder / name).read_bytes()) for name in parts))


def _read_record(path: Path) -> Record:
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise RefusedError(f"{path.name} is too large")
        text = path.read_bytes()
        version = Versioned.model_validate_json(text).version
        if version != VERSION:
            raise RefusedError(f"it has version {version}, this program reads {VERSION}")
        return Record.model_validate_json(text)
    except OSError as error:
        raise RefusedError(f"{path.name}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise RefusedError(f"{path.name} is not whole ({where + ': ' if where else ''}{first['msg'][:200]})") from None


class Versioned(BaseModel, extra="ignore"):
    version: int = 1  # the first version did not say


def _parse(content: bytes) -> dict[str, Tensor]:
    """Returns the tensors in safetensors' bytes. Raises RefusedError; the library bounds every size by theirs."""
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RefusedError(f"not tensors in safetensors' form ({str(error)[:200]})") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
