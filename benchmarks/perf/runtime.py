"""What the runtime costs, side by side in one go: this runtime, plain PyTorch loops, and FedML's own MPI managers.

    python -m benchmarks.perf.runtime            # on an otherwise idle machine; about five minutes

The work is the same everywhere: FedAvg, 10 clients of 500 samples, the mlp, batches of 32, one local epoch, no
evaluation. Times are per round; what counts is the ratio to the plain loop, since machines differ, and to the capacity
of the moment: what the plain loop takes beside itself, on every core at once. Both are measured before and after each
row, as cores may be uneven and neighbours busy. Rows named "slowed" stop one worker, and one of the loops, for two
thirds of the time. Then what messages cost, and what ``benchmarks/perf/cost.py`` makes of all that: seconds per round
of each method, here and elsewhere.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.perf import cost
from benchmarks.perf.cost import BATCH, MODEL, SAMPLES
from benchmarks.runtime.launch import defer_packages
from pfedpara.streams import stream_seed

CLIENTS, LR, CLIP = 10, 0.05, 5.0
RANKS = (2, 3, 6, 11)
SLOWED = (3, 11)
SPAN = 6.0  # seconds that the loops of all cores run together
PARAMETERS = (200_000, 1_600_000, 15_000_000)
ROOT = Path(__file__).resolve().parents[2]


def digits(client: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a client's made-up samples: x uint8 (500, 28, 28), y int64 (500,)."""
    stream = np.random.default_rng(stream_seed("made-up digits", client))
    return stream.integers(0, 256, (SAMPLES, 28, 28), np.uint8), stream.integers(0, 10, SAMPLES)


def model() -> Any:
    from benchmarks.federation.models import build_model

    return build_model(MODEL, (28, 28), 10, (0.5,), (0.5,))


def made_up(path: Path, samples: int, shape: tuple[int, ...], *keys: Any) -> Path:
    """Writes so many pictures of ten classes, drawn from the stream of ``keys``, unless they are there. Returns it."""
    if not path.exists():
        stream = np.random.default_rng(stream_seed(*keys))
        np.savez(path, x=stream.integers(0, 256, (samples, *shape), np.uint8), y=np.arange(samples) % 10)
    return path


def plain_round() -> Callable[[], None]:
    """Returns what takes a round of FedAvg as anybody would write it in one process."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(1)
    data = [tuple(map(torch.from_numpy, digits(client))) for client in range(CLIENTS)]
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    shared = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def take_round() -> None:
        nonlocal shared
        updates = []
        for x, y in data:
            net.load_state_dict(shared)
            for batch in torch.randperm(len(y)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
                optimizer.step()
            updates.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        shared = {name: sum(update[name] for update in updates) / CLIENTS for name in shared}

    return take_round


def plain_loop(rounds: int) -> list[float]:
    """Returns the seconds of each round of the plain loop."""
    return timeit.repeat(plain_round(), number=1, repeat=rounds)


def loop_when_told() -> None:
    """Says that it is ready; when it is told, how many rounds a second the plain loop takes, over ``SPAN`` seconds."""
    take_round, rounds = plain_round(), 0
    take_round()
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    while time.monotonic() < begin + SPAN:
        take_round()
        rounds += 1
    print(rounds / (time.monotonic() - begin))


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Within the block the process runs for a third of the time."""
    over = threading.Event()

    def stop_and_go() -> None:
        with suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(0.02)
                os.kill(pid, signal.SIGCONT)
                over.wait(0.01)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def capacity(slow: bool = False) -> float:
    """Returns the seconds of a round if the plain loops of all cores shared it. With ``slow`` one is slowed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.perf.runtime", "--loop"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    loops = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in os.sched_getaffinity(0)]
    for loop in loops:
        assert loop.stdout is not None
        loop.stdout.readline()
    for loop in loops:
        print("go", file=loop.stdin, flush=True)
    with slowed(loops[0].pid) if slow else nullcontext():
        return 1 / sum(float(loop.communicate()[0]) for loop in loops)


def vectorized_loop(rounds: int) -> list[float]:
    """The same with a step of all clients at once, on their stacked weights. Returns the seconds of each round."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from torch.func import functional_call, grad, vmap

    x, y = map(torch.from_numpy, map(np.stack, zip(*map(digits, range(CLIENTS)), strict=True)))  # (K, n, …), (K, n)
    net, client = model(), torch.arange(CLIENTS)[:, None]
    shared = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (x,)), y)

    gradients_of = vmap(grad(loss))

    def take_round() -> None:
        nonlocal shared
        weights = {name: tensor.expand(CLIENTS, *tensor.shape).clone() for name, tensor in shared.items()}
        order = torch.stack([torch.randperm(SAMPLES) for _ in range(CLIENTS)])
        for batch in order.split(BATCH, dim=1):  # (K, B)
            gradients = gradients_of(weights, x[client, batch], y[client, batch])
            squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]
            scale = LR * (CLIP / torch.stack(squares).sum(0).sqrt()).clamp(max=1)  # (K,)
            for name, gradient in gradients.items():
                weights[name] -= scale.view(-1, *[1] * (gradient.dim() - 1)) * gradient
        shared = {name: tensor.mean(0) for name, tensor in weights.items()}

    return timeit.repeat(take_round, number=1, repeat=rounds)


def pss(launcher: psutil.Process) -> int:
    """Returns the bytes that a job's processes hold together, shared pages counted once."""
    return sum(p.memory_full_info().pss for p in (launcher, *launcher.children(recursive=True)))


def first_worker(launcher: psutil.Process) -> int | None:
    """Returns the process of rank 1: its doorbell says so. None: it has not yet joined."""
    ranks = launcher.children(recursive=True)
    found = (p.pid for p in ranks if any(str(c.laddr).endswith("-1") for c in p.net_connections("unix")))
    return next(found, None)


def watch(command: list[str], ready: Path, stderr: int | None = None, slow: bool = False) -> dict[str, float]:
    """Runs ``command``. Returns when it began and ended, its exit status, and the largest PSS seen, in GB.

    Once ``ready`` is there memory is looked at and, with ``slow``, one worker is slowed.
    """
    begin, peak = time.monotonic(), 0
    with (
        ExitStack() as stack,
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr) as job,
    ):
        process = psutil.Process(job.pid)
        while job.poll() is None:
            time.sleep(0.1 if slow else 0.5)
            if ready.exists():
                if slow and (worker := first_worker(process)):
                    stack.enter_context(slowed(worker))
                    slow = False
                try:
                    peak = max(peak, pss(process))
                except psutil.Error:  # a rank has just left
                    continue
    return {"begin": begin, "end": time.monotonic(), "status": job.returncode, "pss": peak / 1e9}


def this_runtime(ranks: int, rounds: int, folder: Path, slow: bool = False, kind: str = "own") -> dict[str, float]:
    samples = folder / "samples.npz"
    if not samples.exists():
        # 70 % of a client's samples are its training split.
        n = round(SAMPLES * CLIENTS / 0.7)
        x, y = zip(*(digits(client) for client in range(-(-n // SAMPLES))), strict=True)
        np.savez(samples, x=np.concatenate(x)[:n], y=np.concatenate(y)[:n])
    out = folder / f"{kind}-np{ranks}{'-slow' * slow}"
    options = (
        f"--runtime {kind} --algo fedavg --partition iid --rounds {rounds} --epochs 1 --batch-size {BATCH} --lr {LR}"
    )
    command = ["mpirun", "-np", str(ranks), sys.executable, "benchmarks/run.py", "--dataset", f"npz:{samples}"]
    command += [*options.split(), "--clip-norm", str(CLIP), "--eval-every", "0", "--checkpoint-every", "0"]
    run = out / "samples-iid" / "fedavg" / "seed0"
    seen = watch([*command, "--out", str(out)], run / "rounds.csv", slow=slow)
    summary = json.loads((run / "summary.json").read_text())
    return {
        "ready": summary["seconds"]["startup"],
        "round": summary["seconds"]["training"] / rounds,
        "leaving": seen["end"] - seen["begin"] - summary["seconds"]["total"],
        "pss": seen["pss"],
    }


def messages(*options: str) -> dict[str, Any]:
    command = ["mpirun", "-np", str(CLIENTS + 1), sys.executable, "-W", "ignore", "-m", "benchmarks.perf.messages"]
    done = subprocess.run(
        [*command, *options, *map(str, PARAMETERS)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return {"seconds": {int(n): seconds for n, seconds in found["seconds"].items()}, "idle": found["idle"]}


def methods() -> dict[str, dict[str, float]]:
    """Returns of each method the seconds of one client's training on one core, and the bytes it sends each way."""
    import torch
    from torch.utils.data import TensorDataset

    from baselines.adapter import RoundContext
    from benchmarks.federation.registry import METHODS

    data, found = TensorDataset(*map(torch.from_numpy, digits(0))), {}
    for name, method in METHODS.items():
        try:
            trainer = method.build(model(), epochs=1, batch_size=BATCH)
        except ValueError:  # it needs another model
            continue
        seconds = timeit.repeat(partial(trainer.fit, data, RoundContext(0, 0, 0)), number=1, repeat=5)
        sent = sum(tensor.numel() * tensor.element_size() for tensor in trainer.get_model_params().values())
        found[name] = {"train": round(statistics.median(seconds), 5), "sent": sent}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each job (default: 40)")
    parser.add_argument("--record", action="store_true", help=f"write the model's constants to {cost.RECORDED.name}")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    defer_packages()  # FedML's whole package imports with its own pins alone; its runtime does not need it
    if options.loop:
        loop_when_told()
        return
    from benchmarks.federation.planning import UsageError, check_stock

    try:
        check_stock()  # before minutes of measuring
    except UsageError as error:
        sys.exit(f"error: {error}")
    loop = statistics.median(plain_loop(options.rounds))
    print(f"plain loop, one process: {loop * 1e3:.0f} ms a round, median of {options.rounds}")
    vectorized = statistics.median(vectorized_loop(options.rounds))
    print(f"its clients vectorized (torch.func.vmap): {vectorized * 1e3:.0f} ms a round, {vectorized / loop:.2f} ×\n")
    print(f"{'':28} {'round':>9} {'× loop':>7} {'× capacity':>11} {'ready':>8} {'leaving':>8} {'PSS':>8}")
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = {f"this runtime, -np {n}": partial(this_runtime, n, options.rounds, folder) for n in RANKS}
        slow = {f"slowed, -np {n}": partial(this_runtime, n, options.rounds, folder, slow=True) for n in SLOWED}
        fedml = partial(this_runtime, CLIENTS + 1, options.rounds, folder, kind="fedml")
        stock = {f"--runtime fedml, -np {CLIENTS + 1}": fedml}
        before = {kind: capacity(slow=kind) for kind in (False, True)}
        for name, job in (jobs | slow | stock).items():
            rows[name] = row = job()
            after = capacity(slow=name in slow)
            there, before[name in slow] = (before[name in slow] + after) / 2, after
            print(
                f"{name:28} {row['round'] * 1e3:6.0f} ms {row['round'] / loop:7.2f} {row['round'] / there:11.2f} "
                f"{row['ready']:6.1f} s {row['leaving']:6.1f} s {row['pss']:5.2f} GB",
                flush=True,
            )
    again = statistics.median(plain_loop(options.rounds))
    print(f"\nplain loop again: {again * 1e3:.0f} ms a round (how steady this machine was)")

    here, theirs_too = messages(), messages("--stock")
    print(f"\nto {CLIENTS} ranks and back    {'here':>9} {'FedML':>9}")
    for n in PARAMETERS:
        ours, theirs = here["seconds"][n], theirs_too["seconds"][n]
        print(f"{n:>12,} parameters {ours * 1e3:6.0f} ms {theirs * 1e3:6.0f} ms {theirs / ours:5.1f} ×")
    print(f"{CLIENTS} waiting ranks, of a core {here['idle']:7.1%} {theirs_too['idle']:9.1%}")

    by_method, cores = methods(), len(os.sched_getaffinity(0))
    seconds = {n - 1: rows[f"this runtime, -np {n}"]["round"] for n in RANKS}
    constants, train = cost.fit(seconds, here["seconds"], CLIENTS, int(by_method["fedavg"]["sent"]), cores)
    print(f"\nfitted: {constants.serialise * 1e9:.2f} ns a byte, {constants.wait * 1e3:.1f} ms a round, ", end="")
    print(f"{train * 1e3:.1f} ms a client (alone: {by_method['fedavg']['train'] * 1e3:.1f})")
    for workers, measured in seconds.items():
        model = cost.local_round(constants, train, CLIENTS, int(by_method["fedavg"]["sent"]), min(workers, cores))
        print(f"  -np {workers + 1}: {measured * 1e3:.0f} ms, fitted {model.total * 1e3:.0f}", end="")
        print(" = " + " + ".join(f"{part} {value * 1e3:.0f}" for part, value in model._asdict().items()))
    if options.record:
        cost.RECORDED.write_text(yaml.safe_dump({"constants": constants._asdict(), "methods": by_method}))
    print(f"\n{'seconds per round':18} {'here':>8} {'100 ranks, 10 Gb/s':>20} {'10,000 phones, 10 Mb/s':>24}")
    for name, one in by_method.items():
        sent = int(one["sent"])
        figures = (
            cost.local_round(constants, one["train"], CLIENTS, sent, cores),
            cost.cluster_round(constants, one["train"], sent),
            cost.phones_round(constants, one["train"], sent),
        )
        print(f"{name:18} {figures[0].total:8.3f} {figures[1].total:20.3f} {figures[2].total:24.2f}")


if __name__ == "__main__":
    main()
