"""What registered clients cost that do not take part: time per participating client, and memory, from 10 to 1,000.

    python -m benchmarks.perf.clients            # on an otherwise idle machine; about two minutes

Every client has 50 made-up samples (35 to train on), five take part in a round; pFedMe, whose private state is a whole
model. Evaluation and checkpoints, which concern all clients, are due after the last round only and not in the times; a
participant's own model is judged when it has trained, as always where not all take part.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.perf.runtime import ROOT, made_up, watch

SAMPLES = 50


def measure(ranks: int, clients: int, participants: int, rounds: int, folder: Path) -> tuple[float, float]:
    """Returns milliseconds per participating client, and the largest memory of all ranks together (PSS, MB)."""
    out = folder / f"{ranks}-{clients}-{participants}"
    data = made_up(folder / f"{clients}.npz", clients * SAMPLES, (28, 28), "made-up digits", clients)
    command = ["mpirun", "-np", str(ranks), sys.executable, "benchmarks/run.py", "--algo", "pfedme"]
    command += ["--dataset", f"npz:{data}", "--partition", "iid", "--clients", str(clients), "--rounds", str(rounds)]
    command += ["--clients-per-round", str(participants), "--epochs", "1", "--batch-size", "10", "--lr", "0.01"]
    command += ["--set", "pfedme.personal_lr=0.01", "--eval-every", "0", "--checkpoint-every", "0", "--out", str(out)]
    seen = watch(command, ROOT)
    if seen["status"]:
        raise SystemExit(int(seen["status"]))
    summary = json.loads(next(out.rglob("summary.json")).read_text())
    return 1000 * summary["seconds"]["training"] / (rounds * participants), 1000 * seen["pss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 11])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--participants", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(f"{options.participants} participants a round, {options.rounds} rounds")
    print("  -np  registered  ms per participant  ratio  memory (PSS)")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in options.ranks:
            first = None
            for clients in options.clients:
                taken, memory = measure(ranks, clients, options.participants, options.rounds, Path(folder))
                first = first or taken
                print(f"  {ranks:3}  {clients:10,}  {taken:18.2f}  {taken / first:5.2f}  {memory:9,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
