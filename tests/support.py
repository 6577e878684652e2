"""Real jobs, started as a user starts them, and what they left behind."""

import csv
import fcntl
import hashlib
import json
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.federation.metrics import ClientFigures

ROOT = Path(__file__).resolve().parents[1]
DOWN_WITHIN = 30  # seconds; what lasts longer hangs. How fast a machine is decides no test


AHEAD = """
from benchmarks import run
from benchmarks.runtime.launch import process

start = process.start
def begin():
    process.start = start
    exec({code!r}, globals())
    return process.start()
process.start = begin
run.main()
"""


def command(*options: str, ranks: int = 1, before: str = "") -> list[str]:
    """Returns the words that start a job. ``before`` is Python for each rank to run when it has all imported."""
    program = ["-W", "ignore", "-c", AHEAD.format(code=before)] if before else ["benchmarks/run.py"]
    return ["mpirun", "-np", str(ranks), sys.executable, *program, *options]


def run(
    *options: str, ranks: int = 1, timeout: float = 150, before: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``benchmarks/run.py`` under mpirun, from the project's root."""
    return subprocess.run(
        command(*options, ranks=ranks, before=before),
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def killed_after(number: int, algo: str = "") -> str:
    """Returns what ``run`` runs ``before``, so that rank 0 is killed once a run, of that ``algo`` if given, has written
    the checkpoint of round ``number``.
    """
    return f"""
import os
from benchmarks.federation import rounds
write_checkpoint = rounds.write_checkpoint
def kill(run, folder):
    write_checkpoint(run, folder)
    if run.progress.round == {number} and {algo!r} in ("", run.settings.algo):
        os.kill(os.getpid(), {int(signal.SIGKILL)})
rounds.write_checkpoint = kill
"""


def start(*options: str, ranks: int = 1) -> subprocess.Popen[str]:
    """Starts ``benchmarks/run.py`` under mpirun in a process group of its own, and returns at once."""
    return subprocess.Popen(
        command(*options, ranks=ranks),
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def directory(out: Path, algo: str, partition: str = "dirichlet:0.5", seed: int = 0) -> Path:
    return out / f"mnist5k-{partition}" / algo / f"seed{seed}"


def summary(out: Path, algo: str, **where: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory(out, algo, **where) / "summary.json").read_text())
    return loaded


def figures_of(accuracy: float, loss: float, samples: int, validation_accuracy: float) -> ClientFigures:
    """Returns a client's figures, its balanced accuracy and macro F1 a half and a quarter of its accuracy."""
    known = {"accuracy": accuracy, "loss": loss, "balanced_accuracy": accuracy / 2, "macro_f1": accuracy / 4}
    return known | {"samples": samples, "validation_accuracy": validation_accuracy}


def rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file by column, as text: equal text is equal bits."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def family(job: subprocess.Popen[str]) -> list[psutil.Process]:
    """Returns the processes of a job: mpirun, its helpers and every rank."""
    launcher = psutil.Process(job.pid)
    return [launcher, *launcher.children(recursive=True)]


def alive(processes: list[psutil.Process], out: Path) -> list[psutil.Process]:
    """Returns which of ``processes`` still run, and any other that was started with ``out`` on its command line."""
    named = [p for p in psutil.process_iter(["cmdline"]) if str(out) in (p.info["cmdline"] or ())]
    found = []
    for process in {*processes, *named}:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def wait_until(fulfilled: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (done := fulfilled()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def wait_for_round(job: subprocess.Popen[str], table: Path, number: int) -> None:
    """Returns as soon as round ``number`` is recorded."""
    begun = wait_until(lambda: job.poll() is not None or (table.exists() and len(rows(table)) >= number), 120)
    assert begun
    assert job.poll() is None, job.communicate()


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Returns the content of every file in a folder, and when it was last written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def peak_memory() -> int:
    """Returns the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def tensors(run_directory: Path) -> dict[str, str]:
    """Returns the hash of each file of tensors in the newest checkpoint."""
    newest = max((run_directory / "checkpoint").glob("round-??????"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.glob("*.safetensors")}


def findings(run_directory: Path) -> dict[str, Any]:
    """Returns all that a run found out: all it left but for the time it took and what went from rank to rank."""
    found = json.loads((run_directory / "summary.json").read_text())
    rounds = rows(run_directory / "rounds.csv")
    for timed in (found, *rounds):
        del timed["seconds"]
    del found["provenance"]
    moved = found.pop("moved")
    ledger = rows(run_directory / "ledger.csv")
    moves = [entry for entry in ledger if entry["direction"] == "move"]
    assert moved == {unit: sum(int(entry[unit]) for entry in moves) for unit in ("parameters", "bytes")}
    federated = [entry for entry in ledger if entry["direction"] != "move"]
    clients = rows(run_directory / "clients.csv")
    return {
        **{"summary": found, "rounds": rounds, "clients": clients, "ledger": federated},
        "tensors": tensors(run_directory),
    }


def same_findings(one: Path, other: Path) -> None:
    ours, theirs = findings(one), findings(other)
    for table in ours:
        assert ours[table] == theirs[table], f"{table} of {one} and {other}"


def refusal(out: Path, *options: str, ranks: int = 1) -> str:
    """Runs a job that must be refused, and returns its sentence."""
    # No download leaves the machine, wherever this runs.
    done = run(*options, "--out", str(out), ranks=ranks, timeout=60, https_proxy="http://127.0.0.1:9")
    assert done.returncode != 0
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert "Traceback" not in sentence
    return sentence


def on_terminal(words: list[str], columns: int) -> Iterator[bytes]:
    """Runs a command on a terminal of so many columns and yields what it writes there. Raises where it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    env["TERM"] = "xterm-256color"
    job = subprocess.Popen(words, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        while chunk := os.read(ours, 65536):
            yield chunk
    except OSError:  # Linux's end of file on a terminal
        pass
    finally:
        os.close(ours)
        assert job.wait(timeout=60) == 0


def copy_project(folder: Path) -> Path:
    """Makes ``folder`` hold what a clone does, and returns it: the files that git knows or would add."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def bash_lines(page: str) -> list[str]:
    """Returns the commands of a page's bash blocks."""
    return [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


def write_parts(page: str, folder: Path) -> None:
    """Writes the files that a page shows, each by the name in its first line, beside a link to this repository."""
    (folder / "pFedPara").symlink_to(ROOT)
    for text, name in re.findall(r"```python\n(# (\S+).*?)```", page, re.DOTALL):
        (folder / name).write_text(text)
