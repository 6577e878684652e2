"""What averaging factors apart loses, and what other ways give for the same traffic.

    python -m benchmarks.perf.averaging

The mean of X_k Y_kᵀ over clients is not (mean X_k)(mean Y_k)ᵀ. Five ways send about as many numbers of one factored
layer, W = X Yᵀ; the head stays dense and is shared:

    apart        both factors are averaged, each by itself
    in turn      one factor a round, the other stands still, at twice the rank
    re-factored  the server averages the products, and sends the factors of the nearest matrix of that rank (SVD)
    fixed X, Y   that factor stays as it was drawn, and never travels; the rank is as high as traffic or layer allow

``lost`` is ‖W_new − M‖ / ‖M − W_old‖ with M the mean of the products: which part of a round's progress it costs.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from benchmarks.runtime.launch import defer_packages

warnings.simplefilter("ignore")
defer_packages()

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext, predict
from baselines.base import Params, Trainer
from benchmarks.federation import metrics
from benchmarks.federation.registry import build_trainer, find_method
from benchmarks.federation.settings import Settings
from data_partitions import Store, open_store, prepare

X, Y = (f"hidden.parametrizations.weight.original{i}" for i in range(2))


class Way(NamedTuple):
    gamma: float  # of a low-rank product on digits: 18 at 0.057, 22 at 0.17, 36 at 0.568, 50 at 1
    alternate: bool = False
    refactored: bool = False
    fixed: str = ""


WAYS = {
    "apart": Way(0.057),
    "in turn": Way(0.568, alternate=True),
    "re-factored": Way(0.057, refactored=True),
    "fixed X": Way(1.0, fixed=X),
    "fixed Y": Way(0.17, fixed=Y),
}


def product(params: Params) -> Tensor:
    return params[X].double() @ params[Y].double().T


def refactored(mean: Tensor, shared: Params) -> Params:
    """Returns the factors, of the shapes in ``shared``, of the matrix nearest to ``mean`` (m, n)."""
    U, S, Vt = torch.linalg.svd(mean, full_matrices=False)
    rank = shared[X].shape[1]
    root = S[:rank].sqrt()
    return {X: (U[:, :rank] * root).float(), Y: (Vt[:rank].T * root).float()}


def accuracy(trainer: Trainer, store: Store, client: int) -> float:
    x, y = map(torch.from_numpy, store.samples(client, "test"))
    return metrics.accuracy(*predict(trainer.model, TensorDataset(x, y)))


def simulate(way: Way, settings: Settings, store: Store) -> dict[str, float]:
    """Returns the figures of one run: what a client sends a round, what was lost, and both accuracies."""
    trainer = build_trainer(settings, store)
    trainer.trainable = [p for name, p in trainer.model.named_parameters() if name != way.fixed]
    aggregator, sizes = trainer.make_aggregator(store.clients), store.sizes("train").tolist()
    sent: list[int] = []
    lost: list[float] = []
    trained: list[float] = []
    for number in range(settings.rounds):
        shared, updates, trained = aggregator.get_model_params(), [], []
        mean = torch.zeros_like(product(shared))
        for client, size in enumerate(sizes):
            trainer.set_model_params(shared)
            trainer.fit(
                TensorDataset(*map(torch.from_numpy, store.samples(client, "train"))),
                RoundContext(settings.seed, client, number),
            )
            update = trainer.get_model_params()
            updates.append((float(size), update))
            mean += size / sum(sizes) * product(shared | update)
            trained.append(accuracy(trainer, store, client))
            sent.append(sum(tensor.numel() for name, tensor in update.items() if name != way.fixed))
        new = aggregator.aggregate(updates)
        if way.refactored:
            new |= refactored(mean, shared)
        lost.append(float((product(shared | new) - mean).norm() / (mean - product(shared)).norm()))
        aggregator.set_model_params(new)
    trainer.set_model_params(aggregator.get_model_params())
    received = [accuracy(trainer, store, client) for client in range(store.clients)]
    figures = {"sent": np.mean(sent), "lost": np.mean(lost), "trained": np.mean(trained), "received": np.mean(received)}
    return {name: float(value) for name, value in figures.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="(default: 0 to 4)")
    p.add_argument("--rounds", type=int, default=10, metavar="N", help="(default: 10)")
    p.add_argument("--lr", type=float, default=0.4, metavar="X", help="(default: 0.4)")
    p.add_argument("--out", type=Path, default=Path("runs/averaging"), metavar="DIR", help="where the partitions go")
    options = p.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in options.seed:
        path = prepare("digits", Path("data"), "dirichlet:0.5", 10, seed, options.out)
        for name, way in WAYS.items():
            hyper = find_method("lowrank").complete({"gamma": way.gamma, "lr": options.lr})
            chosen = {"seed": seed, "rounds": options.rounds, "alternate": way.alternate, "hyper": hyper}
            settings = Settings(algo="lowrank", dataset="digits", dense=["classifier"], **chosen)
            with open_store(path) as store:
                rows.append({"way": name, **simulate(way, settings, store)})
        print(f"seed {seed}", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).groupby("way", sort=False).mean()
    table[["lost", "trained", "received"]] *= 100
    print(table.rename(columns=lambda name: name if name == "sent" else f"{name} %").round(1).to_string())


if __name__ == "__main__":
    main()
