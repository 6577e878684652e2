"""Checkpoints of a run: tensors in safetensors files, the rest in JSON; nothing that could execute.

    RUN/checkpoint/round-000010/   shared.safetensors   server.safetensors   server.json   client-<k>.safetensors

A checkpoint is written under another name and renamed when it is whole; the one before it is kept.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = 2


def begin(directory: Path, number: int) -> Path:
    """Returns a fresh folder for the checkpoint after round ``number``, where workers put their clients' states."""
    folder = directory / "checkpoint" / f"round-{number:06d}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save_client(folder: Path, client: int, state: dict[str, Tensor]) -> None:
    save_file(state, folder / f"client-{client}.safetensors")


def load_client(folder: Path, client: int) -> dict[str, Tensor] | None:
    """Returns what the client kept, or None where it had not trained yet."""
    path = folder / f"client-{client}.safetensors"
    return load_file(path) if path.exists() else None


def commit(folder: Path, shared: dict[str, Tensor], state: dict[str, Tensor], server: dict[str, Any]) -> None:
    """Adds the server's part, gives the checkpoint its name, and removes all but the newest ``KEPT``."""
    save_file(shared, folder / "shared.safetensors")
    save_file(state, folder / "server.safetensors")
    digests = {path.name: _digest(path) for path in folder.glob("*.safetensors")}
    (folder / "server.json").write_text(json.dumps(server | {"files": digests}))
    whole = folder.with_suffix("")
    shutil.rmtree(whole, ignore_errors=True)
    folder.rename(whole)
    for old in sorted(whole.parent.glob("round-??????"))[:-KEPT]:
        shutil.rmtree(old)


def newest(directory: Path) -> tuple[Path, dict[str, Tensor], dict[str, Tensor], dict[str, Any]] | None:
    """Returns folder, shared tensors, server's tensors and the rest of the newest whole checkpoint, or None."""
    for folder in sorted((directory / "checkpoint").glob("round-??????"), reverse=True):
        try:
            server = json.loads((folder / "server.json").read_text())
            if all(_digest(folder / name) == digest for name, digest in server["files"].items()):
                shared, state = (load_file(folder / f"{part}.safetensors") for part in ("shared", "server"))
                return folder, shared, state, server
        except (OSError, ValueError, KeyError, SafetensorError):
            continue  # torn: the one before it serves
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
