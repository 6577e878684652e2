"""What a person sees while a job runs: a progress bar per experiment on a terminal, plain lines elsewhere."""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.federation import privacy
from benchmarks.federation.experiment import Run
from benchmarks.federation.metrics import ClientFigures
from benchmarks.federation.recorder import summarize_newcomers, whose
from benchmarks.federation.settings import Settings
from benchmarks.runtime.launch import launcher
from benchmarks.terminal import printable

LONG = 30
"""Seconds after which a person wonders whether anything happens."""


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
        self.shown = time.monotonic()  # when a line was last written, where there is no bar
        self.folders: list[Path] = []  # of the runs that have ended

    def begin(self, settings: Settings, done: int) -> None:
        self.run += 1
        self.rounds = settings.rounds
        title = (
            f"[{self.run}/{self.runs}] {settings.label} {settings.dataset} {settings.partition} seed {settings.seed}"
        )
        self.say(title)
        if self.terminal:
            said = "round {task.completed}/{task.total}{task.fields[figures]}{task.fields[now]}"
            columns = (BarColumn(None), TextColumn(said))
            console = Console(file=self.terminal)
            self.bar = Progress(*columns, TimeRemainingColumn(), console=console, expand=True)
            self.bar.start()
            self.bar.add_task("", total=self.rounds, completed=done, figures="", now="")
        self.shown = time.monotonic()

    def within(self, number: int, doing: str, done: int, of: int) -> None:
        """Shows that round ``number`` lives: on a bar at once, in lines where none was written for long."""
        now = f"{doing} {done} of {of}"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], now=f"  {now}")
        elif time.monotonic() - self.shown > LONG:
            print(f"  in round {number}/{self.rounds}: {now}", flush=True)
            self.shown = time.monotonic()

    def advance(self, number: int, judged: Mapping[int, ClientFigures], sent: dict[str, int]) -> None:
        """Shows the end of round ``number``; ``judged`` is empty after a round without evaluation."""
        figures = ""
        if judged:
            million = (sent["parameters_up"] + sent["parameters_down"]) / 1e6
            mean = np.mean([client["accuracy"] for client in judged.values()])
            figures = f"  accuracy {mean:.3f}  sent {million:.1f} M parameters"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=number, figures=figures, now="")
        elif number == self.rounds or number % max(1, self.rounds // 5) == 0:
            print(f"  round {number}/{self.rounds}{figures}", flush=True)
            self.shown = time.monotonic()

    def end(self, run: Run) -> None:
        """Shows how ``run`` ended."""
        if self.bar:
            self.bar.stop()
        settings, seconds = run.settings, run.progress.seconds
        self.folders.append(settings.directory)
        if d := run.progress.diverged:
            sentence = f"diverged: {settings.label}, {whose(d['client'])}, round {d['round']}: {d['reason']}"
            print(printable(sentence), file=sys.stderr, flush=True)
            return
        if run.noise:
            known = privacy.summarize(settings, run.sizes, run.noise, diverged=False)
            said = "ε = {epsilon:.3g} at δ = {delta:.2g}, one of {clients} clients replaced ({releases} noisy means)"
            self.say("  " + (said.format(**known) if known["private"] else "ε: not private, by --dp-seed"))
        if new := run.newcomers.figures:
            means = {name: of["mean"] for name, of in summarize_newcomers(new).items()}
            line = "  {} new clients: accuracy {received:.3f} as received, {adapted:.3f} after adapting"
            self.say(line.format(len(new), **means))
        if settings.eval_every == 1 and seconds["evaluation"] > max(seconds["training"], LONG):
            self.say(
                f"  judging took {seconds['evaluation']:.0f} s, training {seconds['training']:.0f} s; "
                "--eval-every 5 judges each fifth round"
            )

    def leave(self, out: Path) -> None:
        """Shows where the results of this job are, and what to type next. ``out`` holds them all."""
        runs = len(self.folders)
        self.say(f"results in {self.folders[0]}; next:" if runs == 1 else f"results of {runs} runs in {out}; next:")
        self.say(f"  python benchmarks/report.py {shlex.quote(str(out))}")
        self.say(f"  tensorboard --logdir {shlex.quote(str(out))}")

    def say(self, line: str) -> None:
        print(printable(line), file=self.terminal or sys.stdout, flush=True)
