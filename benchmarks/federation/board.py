"""TensorBoard's event file, written like the tables: by whoever adds to it, with its path in every error."""

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from benchmarks.federation import files


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
