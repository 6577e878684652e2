"""Where a worker keeps its clients' private states if not in memory."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from tempfile import TemporaryFile

from safetensors.torch import load, save

from baselines.base import Params
from benchmarks.federation import files


class StateFile(MutableMapping[int, Params]):
    """Private states by client, in a file, so that memory holds only the one in use.

    The file has no name: no other job finds it, and nothing of it stays, however this process ends. All states have
    the same tensors and so the same size: each takes a slot.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError where ``folder`` cannot hold a file."""
        with files.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = TemporaryFile(dir=folder)  # noqa: SIM115
        self.folder, self.size = folder, 0
        self.slots: dict[int, int] = {}  # by client
        self.free: list[int] = []  # slots of clients that moved away

    def __setitem__(self, client: int, state: Params) -> None:
        content = save(state)
        self.size = self.size or len(content)
        if len(content) != self.size:
            raise ValueError(f"the private state of client {client} has {len(content)} bytes, others {self.size}")
        if client not in self.slots:
            self.slots[client] = self.free.pop() if self.free else len(self.slots)
        with files.naming(self.folder):
            self.file.seek(self.slots[client] * self.size)
            self.file.write(content)
            self.file.flush()

    def __getitem__(self, client: int) -> Params:
        self.file.seek(self.slots[client] * self.size)
        return load(self.file.read(self.size))

    def __delitem__(self, client: int) -> None:
        self.free.append(self.slots.pop(client))

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)
