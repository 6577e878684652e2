"""How fast data get to training: building a partition, opening it, and feeding batches, on made-up data of real size.

python -m benchmarks.perf.data
"""

import tempfile
import timeit
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from data_partitions import open_store, prepare
from pfedpara.streams import stream_seed, stream_state

BATCH = 32
SAMPLES, CLIENTS = 60_000, 1_000
ROLES, CHARACTERS = 715, 5_800  # as many as LEAF's Shakespeare has, 4.2 million characters in all


def seconds(action: Callable[[], object], repeats: int = 1) -> float:
    """The least time of `repeats` runs: what the machine can do when nothing disturbs it."""
    return min(timeit.repeat(action, number=1, repeat=repeats))


def images(folder: Path) -> Path:
    """Build 60,000 images of 28x28 pixels into 1,000 clients, open the store, read one client."""
    rng = np.random.default_rng(stream_seed("made-up images"))
    x, y = rng.integers(0, 256, (SAMPLES, 28, 28), np.uint8), rng.integers(0, 10, SAMPLES)
    np.savez(folder / "images.npz", x=x, y=y)
    paths = []
    took = seconds(lambda: paths.append(prepare(f"npz:{folder}/images.npz", None, "dirichlet:0.5", CLIENTS, 0, folder)))
    print(f"{SAMPLES:,} samples into {CLIENTS:,} clients, source file to store: {took:.2f} s (limit 3 s)")
    again = seconds(lambda: prepare(f"npz:{folder}/images.npz", None, "dirichlet:0.5", CLIENTS, 0, folder))
    print(f"the same recipe again, verified and reused: {again:.2f} s")
    took = seconds(lambda: open_store(paths[0]).samples(500, "train"), repeats=5)
    print(f"opening the store and one client's samples: {1000 * took:.1f} ms (limit 50 ms)")
    return paths[0]


def roles(folder: Path) -> None:
    """Build a text data set of Shakespeare's size in TensorFlow Federated's format, one client a role."""
    rng = np.random.default_rng(stream_seed("made-up text"))
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ,.", "S1")
    for split, share in (("train", 0.8), ("test", 0.2)):
        with h5py.File(folder / f"shakespeare_{split}.h5", "w") as file:
            for role in range(ROLES):
                text = letters[rng.integers(0, len(letters), int(share * CHARACTERS))].tobytes()
                file[f"examples/role{role}/snippets"] = [text[start : start + 40] for start in range(0, len(text), 40)]
    took = seconds(lambda: prepare("shakespeare", folder, "natural", None, 0, folder))
    print(f"{ROLES} roles of {CHARACTERS:,} characters, source file to store: {took:.2f} s (limit 10 s)")


def epochs(path: Path) -> None:
    """Time of one epoch over the same tensors: drawing batches alone, which is all that a training loop adds."""
    with open_store(path) as store:
        parts = [store.samples(client, "train") for client in range(100)]
    x = torch.from_numpy(np.concatenate([x for x, _ in parts])).float().div_(255)
    y = torch.from_numpy(np.concatenate([y for _, y in parts]))
    dataset = TensorDataset(x, y)

    def permuted() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        torch.set_rng_state(stream_state("training"))
        order = torch.randperm(len(y))
        return ((x[rows], y[rows]) for rows in order.split(BATCH))

    ways: dict[str, Callable[[], Iterable]] = {
        "preloaded tensors, seeded permutation": permuted,
        "DataLoader(TensorDataset)": partial(DataLoader, dataset, BATCH, shuffle=True),
        "DataLoader(TensorDataset), 1 worker": partial(DataLoader, dataset, BATCH, shuffle=True, num_workers=1),
    }
    print(f"one epoch of {len(y):,} samples in batches of {BATCH}:")
    times = {name: seconds(partial(exhaust, way), repeats=2) for name, way in ways.items()}
    fastest = min(times.values())
    for name, took in times.items():
        print(f"  {name:40} {1000 * took:8.1f} ms  {took / fastest:6.1f} x")


def exhaust(way: Callable[[], Iterable]) -> None:
    """Draw all batches of an epoch."""
    deque(way(), maxlen=0)


def main() -> None:
    """Run all measurements in a folder that is removed afterwards."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = images(Path(name))
        roles(Path(name))
        epochs(path)


if __name__ == "__main__":
    main()
