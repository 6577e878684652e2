"""What a person sees while a job runs: a progress bar per experiment on a terminal, plain lines elsewhere."""

import os
import sys
from collections.abc import Mapping
from typing import IO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.federation.experiment import Run
from benchmarks.federation.metrics import ClientFigures
from benchmarks.federation.recorder import summarize_newcomers, whose
from benchmarks.federation.settings import Settings
from benchmarks.runtime.launch import launcher
from benchmarks.terminal import printable


def terminal() -> IO[str] | None:
    """Returns the terminal that the user sees, or None.

    A rank's own output is a pipe to ``mpirun``; what ``mpirun`` writes to is what counts.
    """
    try:
        output = os.open(f"/proc/{launcher().pid}/fd/1", os.O_WRONLY | os.O_APPEND)
    except OSError:
        return None
    if os.isatty(output):
        return os.fdopen(output, "w", errors="backslashreplace")
    os.close(output)
    return None


class Screen:
    def __init__(self, runs: int) -> None:
        """``runs``: how many experiments this job holds."""
        self.runs, self.run, self.rounds = runs, 0, 0
        self.terminal = terminal()
        self.bar: Progress | None = None

    def begin(self, settings: Settings, done: int) -> None:
        self.run += 1
        self.rounds = settings.rounds
        title = (
            f"[{self.run}/{self.runs}] {settings.label} {settings.dataset} {settings.partition} seed {settings.seed}"
        )
        print(printable(title), file=self.terminal or sys.stdout, flush=True)
        if self.terminal:
            columns = (BarColumn(None), TextColumn("round {task.completed}/{task.total}{task.fields[figures]}"))
            console = Console(file=self.terminal)
            self.bar = Progress(*columns, TimeRemainingColumn(), console=console, expand=True)
            self.bar.start()
            self.bar.add_task("", total=self.rounds, completed=done, figures="")

    def advance(self, number: int, judged: Mapping[int, ClientFigures], sent: dict[str, int]) -> None:
        """Shows the end of round ``number``; ``judged`` is empty after a round without evaluation."""
        figures = ""
        if judged:
            million = (sent["parameters_up"] + sent["parameters_down"]) / 1e6
            mean = np.mean([client["accuracy"] for client in judged.values()])
            figures = f"  accuracy {mean:.3f}  sent {million:.1f} M parameters"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=number, figures=figures)
        elif number == self.rounds or number % max(1, self.rounds // 5) == 0:
            print(f"  round {number}/{self.rounds}{figures}", flush=True)

    def end(self, run: Run) -> None:
        if self.bar:
            self.bar.stop()
        if d := run.progress.diverged:
            sentence = f"diverged: {run.settings.label}, {whose(d['client'])}, round {d['round']}: {d['reason']}"
            print(printable(sentence), file=sys.stderr, flush=True)
        elif run.figures.new:
            means = {name: of["mean"] for name, of in summarize_newcomers(run.figures.new).items()}
            line = "  {} new clients: accuracy {received:.3f} as received, {adapted:.3f} after adapting"
            print(line.format(len(run.figures.new), **means), file=self.terminal or sys.stdout, flush=True)
