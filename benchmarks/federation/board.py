"""TensorBoard's event file, written like the tables: by whoever adds to it, with its path in every error."""

import io
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from benchmarks.federation import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Board(SummaryWriter):
    """TensorBoard's writer, without its thread: what is added goes to the file on ``flush``.

    The thread makes a file that vanished anew, without its head, and does not say which file a full disk was about.
    """

    def __init__(self, directory: Path) -> None:
        """Makes an event file in ``directory``. Raises OSError with its path."""
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.0"
        self.path, self.pending = directory / name, io.BytesIO()
        self.size = files.write(self.path, b"")
        super().__init__(str(directory))
        self.add_event(Event(file_version="brain.Event:2"))

    def _get_file_writer(self) -> "Board":
        return self

    def add_summary(self, summary: Any, global_step: int | None = None, walltime: float | None = None) -> None:
        self.add_event(Event(summary=summary, step=global_step))

    def add_event(self, event: Event) -> None:
        event.wall_time = time.time()
        RecordWriter(self.pending).write(event.SerializeToString())

    def flush(self) -> None:
        """Raises as ``files.append``."""
        self.size = files.append(self.path, self.pending.getvalue(), self.size)
        self.pending = io.BytesIO()

    def close(self) -> None:
        self.flush()


def show_partition(folder: Path, heat_map: Callable[[], "Figure"]) -> None:
    """Puts a partition's heat map into ``folder``, unless it is there: many runs share it, and any job may be first.

    Of jobs that do so at once the last one's file stays, which shows the same. Raises OSError with its path.
    """
    path = folder / "events.out.tfevents.0.partition"
    if path.exists():
        return
    with TemporaryDirectory() as scratch:
        board = Board(Path(scratch))
        board.add_figure("partition/samples per class and client", heat_map())
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{socket.gethostname()}-{os.getpid()}"
    files.write(own, board.pending.getvalue())
    with files.naming(path):
        own.replace(path)
