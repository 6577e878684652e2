"""Experiments from Python: run what ``run.py`` runs, and read what it left as a pandas table.

from benchmarks import load_results, run_experiment

rounds = run_experiment(algo=["pfedpara", "fedavg"], rounds=10)
clients = load_results("runs", level="client")
"""

import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mpi4py
import pandas as pd

from benchmarks.analysis.load import ReportError, load
from benchmarks.runtime.launch import Group, defer_packages

if TYPE_CHECKING:
    from benchmarks.federation.experiment import Experiment

if "fedml" not in sys.modules:  # before a method of the user's own imports it
    defer_packages()
if "mpi4py.MPI" not in sys.modules:
    mpi4py.rc.initialize = mpi4py.rc.finalize = False  # this process is no rank

PROGRAM = Path(__file__).with_name("run.py")
TABLES = {"round": "rounds.csv", "client": "clients.csv"}
KEYS = ("dataset", "partition", "model", "seed")


def run_experiment(*, ranks: int | None = None, **options: Any) -> pd.DataFrame:
    """Runs what the command line would with these ``options``, and returns ``load_results`` of its runs.

    An option has its name there, such as ``algo``, ``rounds``, ``clients_per_round`` or ``gamma``. A list stands for
    several values, True for a switch, and ``set`` takes a dictionary. A class or function stands for its own name:
    ``algo=MyTrainer``.

    ``ranks``: how many processes mpirun starts. None runs in this process, which also knows a notebook's own classes.
    The figures are the same bits either way.

    Raises ValueError where the options cannot be, and RuntimeError where a rank fails; in this process, what failed.
    """
    words = _words(options)
    if ranks is None:
        folders = _run_here(words)
    else:
        if any(word.partition("=")[0].startswith("__main__:") for word in words):
            raise ValueError("what is defined here lives in this process alone; leave ranks out, or put it in a file")
        _run_ranks(ranks, words)
        folders = _plan(words, overwrite=False)[1]
    return load_results(*folders)


def load_results(*folders: str | Path, level: Literal["round", "client"] = "round") -> pd.DataFrame:
    """Returns the ended runs below ``folders`` as one tidy table.

    ``level`` says what a row is: a round of a run, or a client in a round. Its first columns tell runs apart:
    ``method``, ``dataset``, ``partition``, ``model``, ``seed``, each hyper-parameter, each other setting that differs,
    and ``folder``. The others are those of ``rounds.csv`` or ``clients.csv``; accuracies are fractions.

    Raises ValueError where there is no run, or one is torn.
    """
    if level not in TABLES:
        raise ValueError(f"level is {level!r}; it must be one of {', '.join(TABLES)}")
    try:
        runs = load([Path(folder) for folder in folders])
        found = {run.folder: pd.read_csv(run.folder / TABLES[level]) for run in runs}
    except (ReportError, OSError) as error:
        raise ValueError(str(error)) from None
    settings = {run.folder: {k: v for k, v in run.settings.items() if not isinstance(v, dict | list)} for run in runs}
    names = dict.fromkeys(name for each in settings.values() for name in each if name not in (*KEYS, "algo"))
    apart = [name for name in names if len({each.get(name) for each in settings.values()}) > 1]
    tables = []
    for run in runs:
        keys = {"method": run.algo, **{name: run.summary[name] for name in KEYS}, **run.hyper}
        keys |= {name: settings[run.folder].get(name) for name in apart if name != "partition_sha256"}
        table = found[run.folder]
        keys = {name: value for name, value in (keys | {"folder": str(run.folder)}).items() if name not in table}
        tables.append(pd.concat([pd.DataFrame([keys] * len(table), index=table.index), table], axis=1))
    first = list(dict.fromkeys(name for table in tables for name in table if name not in found[runs[0].folder]))
    together = pd.concat(tables, ignore_index=True)
    return together[[*(name for name in first if name != "folder"), "folder", *found[runs[0].folder]]]


def _words(options: Mapping[str, Any]) -> list[str]:
    """Returns the command line of ``options``."""
    words = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, Mapping):
            words += [option, *(f"{_word(key)}={_word(each)}" for key, each in value.items())]
        elif isinstance(value, bool):
            words += [option] * value
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [option, *map(_word, value)] if value else []
        elif value is not None:
            words += [option, _word(value)]
    return words


def _word(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else str(value)


def _plan(
    words: list[str], overwrite: bool | None = None, ranks: int | None = None
) -> tuple[list["Experiment"], list[Path]]:
    """Returns the experiments that are due, and the folders of those that have ended. Raises ValueError."""
    from benchmarks.federation import command_line, planning

    chosen = command_line.parser().parse_args(words)
    if overwrite is not None:
        chosen.overwrite = overwrite
    return planning.plan(chosen, ranks)


class Alone:
    """What a communicator of MPI says to the transport in a process that is no rank: nobody else is there."""

    rank, size = 0, 1

    def Improbe(self, **_: Any) -> None:  # noqa: N802
        return None


def _run_here(words: list[str]) -> list[Path]:
    """Runs what is due in this process, whose random stream and threads stay as they are. Returns the runs' folders."""
    import torch

    started, threads = time.monotonic(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        due, finished = _plan(words, ranks=1)
        from benchmarks.federation import lock
        from benchmarks.runtime.job import work

        torch.set_num_threads(1)
        try:
            if due:
                work(Group(Alone(), "alone", True, 0, None), due, started, [])
        finally:
            torch.set_num_threads(threads)
            for experiment in due:
                lock.release(experiment.settings.directory)
    return [*(experiment.settings.directory for experiment in due), *finished]


def _run_ranks(ranks: int, words: list[str]) -> None:
    """Runs a job of so many ranks, and prints what it says. Raises ValueError or RuntimeError with its sentence."""
    beside = Path(sys.executable).with_name("mpirun")
    launcher = str(beside) if beside.exists() else shutil.which("mpirun")
    if launcher is None:
        raise ValueError("there is no mpirun; leave ranks out, or install requirements.txt")
    command = [launcher, "-np", str(ranks), sys.executable, str(PROGRAM), *words]
    with tempfile.TemporaryFile("w+") as said:
        job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True)
        with job:
            try:
                for line in job.stdout or ():
                    print(line, end="", flush=True)
            except BaseException:
                job.terminate()
                raise
        said.seek(0)
        sentences = said.read().splitlines()
    if job.returncode:
        wrong = next((line for line in sentences if line.startswith("error: ")), "error: " + " ".join(sentences[-1:]))
        raise (ValueError if job.returncode == 2 else RuntimeError)(wrong.removeprefix("error: "))
    for sentence in sentences:
        print(sentence, file=sys.stderr)
