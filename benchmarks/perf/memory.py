"""What a round takes of the server's memory: the most that rank 0 holds, with a model large enough to see it.

    python -m benchmarks.perf.memory             # about a minute

A hundred clients of ten made-up samples take part in each of two rounds of FedAvg, on a model of 15 million parameters.
The server adds their updates up in the clients' order, and holds those alone that come before their turn.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from torch import nn

from benchmarks.perf.runtime import ROOT, made_up

HIDDEN = 18_868  # 784 · h + h + h · 10 + 10 = 15 million
SAMPLES = 10
BASE = 0.3e9  # bytes: Python, PyTorch and FedML


def wide(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """A model of 15 million parameters."""
    hidden = nn.Linear(channels * height * width, HIDDEN)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(HIDDEN, classes))


class Peak(NamedTuple):
    model: float  # bytes
    rank0: float  # the most that it has held at a time, bytes

    @property
    def models(self) -> float:
        """How many models it holds beside ``BASE``."""
        return (self.rank0 - BASE) / self.model


def peak_of_rank_0(launcher: psutil.Process, run: Path) -> float:
    """Returns the most bytes that rank 0 has held so far: the process that has a file of ``run`` open. 0: none yet.

    By the kernel's own mark (VmHWM), less what rank 0 shares with the ranks that were forked beside it.
    """
    for process in launcher.children(recursive=True):
        try:
            if any(Path(file.path).is_relative_to(run) for file in process.open_files()):
                status = Path(f"/proc/{process.pid}/status").read_text()
                memory = process.memory_full_info()
                return 1024 * float(status.split("VmHWM:")[1].split()[0]) - (memory.rss - memory.pss)
        except (psutil.Error, OSError, IndexError):  # it has just left
            continue
    return 0.0


def measure(ranks: int, clients: int, rounds: int, folder: Path, *options: str) -> Peak:
    """Runs a job of so many ``clients``, all of which take part in each round. Raises SystemExit where it fails."""
    n = -(-clients * SAMPLES * 10 // 7)  # 70 % are for training
    data, out = made_up(folder / f"{clients}.npz", n, (28, 28), "made-up digits", clients), folder / f"np{ranks}"
    command = ["mpirun", "-np", str(ranks), sys.executable, "benchmarks/run.py", "--algo", "fedavg"]
    command += ["--model", f"{__spec__.name}:wide", "--dataset", f"npz:{data}", "--partition", "iid"]
    command += ["--clients", str(clients), "--clients-per-round", str(clients), "--rounds", str(rounds)]
    command += ["--epochs", "1", "--batch-size", str(SAMPLES), "--lr", "0.001", "--eval-every", "0"]
    peak = 0.0
    with subprocess.Popen(
        [*command, *options, "--out", str(out)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as job:
        launcher = psutil.Process(job.pid)
        while job.poll() is None:
            peak = max(peak, peak_of_rank_0(launcher, out))
            time.sleep(0.1)
    if job.returncode:
        raise SystemExit(job.returncode)
    model = sum(4 * tensor.numel() for tensor in wide(1, 28, 28, 10).parameters())
    return Peak(model, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[3, 11])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"{'-np':>4} {'participants':>12} {'model':>8} {'rank 0':>8}  = 0.3 GB +")
    for clients in options.clients:
        for ranks in options.ranks:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(ranks, clients, options.rounds, Path(folder))
            print(
                f"{ranks:4} {clients:12} {found.model / 1e6:5.0f} MB {found.rank0 / 1e9:5.2f} GB  "
                f"  {found.models:.1f} models",
                flush=True,
            )


if __name__ == "__main__":
    main()
