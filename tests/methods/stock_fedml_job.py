"""One of our methods under FedML's own MPI wiring: what each rank does in the jobs of test_stock_fedml.py."""

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

try:
    from fedml.simulation.mpi.fedavg.FedAVGAggregator import FedAVGAggregator
    from fedml.simulation.mpi.fedavg.FedAvgAPI import FedML_FedAvg_distributed
    from fedml.simulation.mpi.fedavg.FedAvgServerManager import FedAVGServerManager
except ModuleNotFoundError as missing:
    sentence = f"FedML's own runtime needs the package {missing.name}; pip install -r requirements-stock.txt"
    raise ModuleNotFoundError(sentence) from None
from mpi4py import MPI
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

from baselines.base import Aggregator, Trainer
from benchmarks.federation.registry import METHODS

CLIENTS, ROUNDS = 3, 3


def client_data(client: int) -> TensorDataset:
    stream = torch.Generator().manual_seed(client)
    n = 20 + 10 * client
    y = torch.randint(0, 3, (n,), generator=stream)
    return TensorDataset(torch.randn(n, 12, generator=stream) + y[:, None], y)


def build(algo: str) -> tuple[Trainer, Aggregator]:
    """Returns the trainer and aggregator of ``algo``, or ``algo,alternate``, on a small model of the same start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
    name, _, in_turn = algo.partition(",")
    trainer = METHODS[name].build(model, alternate=bool(in_turn), epochs=1, batch_size=8)
    return trainer, trainer.make_aggregator(CLIENTS)


def main() -> None:
    out = Path(sys.argv[2])
    comm = MPI.COMM_WORLD
    logging.disable()
    torch.set_num_threads(1)
    trainer, aggregator = build(sys.argv[1])
    args = SimpleNamespace(
        random_seed=0,
        round_idx=0,
        client_num_in_total=CLIENTS,
        comm_round=ROUNDS,
        client_num_per_round=CLIENTS,
        backend="MPI",
        dataset="synthetic",
        frequency_of_the_test=1,
    )
    data = {client: client_data(client) for client in range(CLIENTS)}
    sizes = {client: len(own) for client, own in data.items()}

    def finish(server: FedAVGServerManager) -> None:
        save_file(aggregator.get_model_params() | {"rounds": torch.tensor(args.round_idx)}, out)
        comm.Abort(0)  # FedML's own way to end an MPI job hangs now and then

    FedAVGServerManager.finish = finish
    if type(aggregator) is not Aggregator:
        # FedML's cross-silo server calls ServerAggregator.aggregate; its MPI server averages, whatever it was given.
        FedAVGAggregator._fedavg_aggregation_ = lambda self, updates: self.aggregator.aggregate(updates)
    dataset = [sum(sizes.values()), sum(sizes.values()), data[0], data[0], sizes, data, data, 3]
    FedML_FedAvg_distributed(
        args, comm.rank, comm.size, comm, torch.device("cpu"), dataset, trainer.model, trainer, aggregator
    )
    os._exit(0)
