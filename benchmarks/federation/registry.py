"""The methods that the harness knows, by the name that ``--algo`` takes, each on the weights that it is asked for."""

from types import SimpleNamespace

import torch

from baselines.apfl import ApflTrainer
from baselines.base import Trainer
from baselines.ditto import DittoTrainer
from baselines.fedavg import FedAvgTrainer
from baselines.fedavg_ft import FedAvgFtTrainer
from baselines.fedbabu import FedBabuTrainer
from baselines.fedbn import FedBNTrainer
from baselines.feddyn import FedDynTrainer
from baselines.fedopt import FedAdamTrainer, FedAvgMTrainer, FedYogiTrainer
from baselines.fedper import FedPerTrainer
from baselines.fedprox import FedProxTrainer
from baselines.fedrep import FedRepTrainer
from baselines.lg_fedavg import LGFedAvgTrainer
from baselines.local import LocalTrainer
from baselines.per_fedavg import PerFedAvgTrainer
from baselines.pfedme import PFedMeTrainer
from baselines.scaffold import ScaffoldTrainer
from benchmarks.federation.models import build_model
from benchmarks.federation.settings import Settings
from data_partitions import Store
from pfedpara.streams import stream_state
from pfedpara.trainer import FedParaTrainer, LowRankTrainer, PFedParaTrainer, on_factors

METHODS: dict[str, type[Trainer]] = {
    "fedavg": FedAvgTrainer,
    "local": LocalTrainer,
    "fedper": FedPerTrainer,
    "pfedme": PFedMeTrainer,
    "fedprox": FedProxTrainer,
    "scaffold": ScaffoldTrainer,
    "feddyn": FedDynTrainer,
    "fedavgm": FedAvgMTrainer,
    "fedadam": FedAdamTrainer,
    "fedyogi": FedYogiTrainer,
    "ditto": DittoTrainer,
    "fedrep": FedRepTrainer,
    "lg-fedavg": LGFedAvgTrainer,
    "apfl": ApflTrainer,
    "fedbabu": FedBabuTrainer,
    "per-fedavg": PerFedAvgTrainer,
    "fedbn": FedBNTrainer,
    "fedavg-ft": FedAvgFtTrainer,
    "pfedpara": PFedParaTrainer,
    "fedpara": FedParaTrainer,
    "lowrank": LowRankTrainer,
}


def find_method(algo: str, parameterization: str | None = None) -> type[Trainer]:
    """Returns the trainer of ``algo`` on weights of that ``parameterization``, by default the method's own.

    Raises ValueError where the method itself is another parameterization.
    """
    method = METHODS[algo]
    if parameterization in (None, method.parameterization):
        return method
    if method.parameterization != "dense":
        raise ValueError(
            f"--parameterization: {algo} is FedAvg on {method.parameterization} weights; "
            f"take --algo fedavg for {parameterization} ones"
        )
    return on_factors(method, parameterization)  # type: ignore[arg-type]


def build_trainer(settings: Settings, store: Store, device: str = "cpu") -> Trainer:
    """Returns the method's trainer on a fresh model, equal on every rank: the start depends on the seed alone."""
    torch.set_rng_state(stream_state("start", settings.seed))
    model = build_model(settings.model, store.input_shape, len(store.classes), store.mean, store.std).to(device)
    args = SimpleNamespace(
        random_seed=settings.seed, round_idx=0, client_num_in_total=settings.clients, **settings.hyper
    )
    return find_method(settings.algo, settings.parameterization)(model, args)
