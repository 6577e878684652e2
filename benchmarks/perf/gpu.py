"""What a GPU brings: seconds a round and memory, beside the same job on the CPU. For whoever has one.

    python -m benchmarks.perf.gpu                # on a machine with a GPU; about five minutes

Ten clients of made-up pictures train FedAvg and pFedPara. The ranks of a host share its GPUs in turn. The last column
is how far the two models are apart: devices add in another order, so their bits differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.perf.runtime import ROOT, made_up

CLIENTS, BATCH = 10, 50
WORK: dict[str, tuple[int, ...]] = {"mlp": (28, 28), "cnn": (32, 32, 3)}  # a picture's shape by model


def measure(model: str, algo: str, device: str, ranks: int, rounds: int, samples: int, folder: Path) -> dict[str, Any]:
    """Returns a job's seconds a round and its shared tensors. Raises SystemExit where it fails."""
    out = folder / f"{model}-{algo}-{device}-{ranks}"
    n = -(-CLIENTS * samples * 10 // 7)  # 70 % are for training
    data = made_up(folder / f"{model}.npz", n, WORK[model], "made-up pictures", samples)
    command = ["mpirun", "-np", str(ranks), sys.executable, "benchmarks/run.py", "--algo", algo, "--model", model]
    command += ["--dataset", f"npz:{data}", "--partition", "iid", "--lr", "0.01"]
    command += ["--clients", str(CLIENTS), "--rounds", str(rounds), "--epochs", "1", "--batch-size", str(BATCH)]
    command += ["--eval-every", "0", "--overwrite", "--device", device, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)
    summary = next(out.rglob("summary.json"))
    newest = max(summary.parent.glob("checkpoint/round-*"))
    seconds = json.loads(summary.read_text())["seconds"]["training"] / rounds
    return {"seconds": seconds, "shared": load_file(newest / "shared.safetensors")}


def apart(some: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Returns ‖a − b‖ / ‖b‖ of two models."""
    a, b = (np.concatenate([params[name].ravel() for name in other]) for params in (some, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="what to compare with the CPU (default: cuda)")
    parser.add_argument("--models", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 6])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--samples", type=int, default=500, help="of each client, to train on (default: 500)")
    options = parser.parse_args()
    ratio = f"cpu / {options.device}"
    print(f"{'model':6} {'method':9} {'-np':>4} {'cpu':>10} {options.device:>10} {ratio:>12} {'apart':>9}")
    with tempfile.TemporaryDirectory() as name:
        for model in options.models:
            for algo in ("fedavg", "pfedpara"):
                for ranks in options.ranks:
                    about = (ranks, options.rounds, options.samples, Path(name))
                    cpu, there = (measure(model, algo, device, *about) for device in ("cpu", options.device))
                    print(
                        f"{model:6} {algo:9} {ranks:4} {cpu['seconds'] * 1e3:7.0f} ms {there['seconds'] * 1e3:7.0f} ms "
                        f"{cpu['seconds'] / there['seconds']:12.2f} {apart(there['shared'], cpu['shared']):9.1e}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
