"""A round of FedAvg here and in other frameworks, side by side in one go: seconds, start-up and memory.

    python -m benchmarks.perf.peers                          # about two minutes, and 200 MB from PyPI
    python -m benchmarks.perf.peers --environments FOLDER    # keeps what it installs there

The work is that of ``benchmarks.perf.runtime``: 10 clients of 500 samples, the mlp, batches of 32, one local epoch, no
evaluation. Each framework is installed from PyPI into an environment of its own, and its script is in ``frameworks/``.
All train with this environment's PyTorch, one thread each. The plain loop and this runtime run before and after.

``round`` is the median of all rounds but the first. ``ready`` is the time from the command to the first round. ``PSS``
is the most that all processes held together, shared pages counted once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.perf.cost import BATCH
from benchmarks.perf.runtime import CLIENTS, CLIP, LR, digits, plain_loop, this_runtime, watch
from benchmarks.runtime.launch import defer_packages

FRAMEWORKS = {"with_flower": "flwr[simulation]==1.42.0", "with_fedlab": "fedlab==1.3.0"}
"""What pip installs for the script of that name in ``frameworks/``."""
SCRIPTS = Path(__file__).parent / "frameworks"


def install(name: str, folder: Path) -> Path:
    """Returns the Python of the framework's environment in ``folder``; makes it where it is not there.

    Raises RuntimeError with pip's last line where it fails.
    """
    here = folder / name
    python = here / "bin" / "python"
    if not (here / "installed").exists():
        venv.create(here, with_pip=True, clear=True)
        packages = sysconfig.get_path("purelib", "venv", {"base": str(here), "platbase": str(here)})
        (Path(packages) / "this.pth").write_text(sysconfig.get_path("purelib"))
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", FRAMEWORKS[name]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "pip failed").splitlines()[-1])
        (here / "installed").touch()
    return python


def run(name: str, rounds: int, folder: Path, environments: Path) -> dict[str, float]:
    """Returns what ``this_runtime`` returns, of the framework. Raises RuntimeError where it does not end well."""
    python = install(name, environments)
    samples, out, log = folder / "clients.npz", folder / f"{name}.json", folder / f"{name}.log"
    if not samples.exists():
        x, y = zip(*map(digits, range(CLIENTS)), strict=True)
        np.savez(samples, x=np.stack(x), y=np.stack(y))  # (K, n, 28, 28), (K, n)
    script = [str(python), "-W", "ignore", str(SCRIPTS / f"{name}.py")]
    with log.open("w") as stderr:
        seen = watch([*script, *map(str, (samples, rounds, BATCH, LR, CLIP, out))], samples, stderr.fileno())
    if not out.exists():
        raise RuntimeError((log.read_text().strip() or f"exit status {seen['status']}").splitlines()[-1])
    ends = json.loads(out.read_text())
    return {
        "ready": ends[0] - seen["begin"],
        "round": statistics.median(np.diff(ends)[1:]),
        "leaving": seen["end"] - ends[-1],
        "pss": seen["pss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each job, at least 3 (default: 20)")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="where the frameworks are installed")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error(f"--rounds: at least 3, got {options.rounds}")
    defer_packages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place in ("before", "after"):
            (folder / place).mkdir()
        environments = options.environments or folder / "environments"
        ours = f"this runtime, -np {len(os.sched_getaffinity(0)) + 1}"
        mine = partial(this_runtime, len(os.sched_getaffinity(0)) + 1, options.rounds)
        jobs = {ours: partial(mine, folder / "before")}
        jobs |= {FRAMEWORKS[name]: partial(run, name, options.rounds, folder, environments) for name in FRAMEWORKS}
        jobs[f"{ours}, again"] = partial(mine, folder / "after")
        loop = statistics.median(plain_loop(options.rounds))
        print(f"plain loop, one process: {loop * 1e3:.0f} ms a round, median of {options.rounds}\n")
        print(f"{'':28} {'round':>9} {'× loop':>7} {'ready':>8} {'leaving':>8} {'PSS':>8}")
        for name, job in jobs.items():
            try:
                row = job()
            except RuntimeError as error:
                print(f"{name:28} left out: {error}", file=sys.stderr)
                continue
            print(
                f"{name:28} {row['round'] * 1e3:6.0f} ms {row['round'] / loop:7.2f} "
                f"{row['ready']:6.1f} s {row['leaving']:6.1f} s {row['pss']:5.2f} GB",
                flush=True,
            )
        again = statistics.median(plain_loop(options.rounds))
        print(f"\nplain loop again: {again * 1e3:.0f} ms a round (how steady this machine was)")


if __name__ == "__main__":
    main()
