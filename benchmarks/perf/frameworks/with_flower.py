"""FedAvg in Flower's simulation; runs in Flower's environment, started by benchmarks/perf/peers.py.

python with_flower.py SAMPLES.npz ROUNDS BATCH LR CLIP OUT
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn

SAMPLES, ROUNDS, BATCH, LR, CLIP, OUT = sys.argv[1:]


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def samples(client: int) -> tuple[Tensor, Tensor]:
    """Returns x float32 (n, 28, 28) in [−1, 1] and y int64 (n,)."""
    with np.load(SAMPLES) as file:
        return torch.from_numpy(file["x"][client]).float() / 127.5 - 1, torch.from_numpy(file["y"][client])


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    net = model()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=float(LR))
    x, y = samples(int(context.node_config["partition-id"]))
    for batch in torch.randperm(len(y)).split(int(BATCH)):
        optimizer.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), float(CLIP))
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


server_app = ServerApp()
ends: list[float] = []


class Timed(FedAvg):
    """FedAvg, which notes when each round begins, and when it has its mean."""

    def configure_train(self, server_round, *rest):  # type: ignore[no-untyped-def]
        if server_round == 1:
            ends.append(time.monotonic())
        return super().configure_train(server_round, *rest)

    def aggregate_train(self, *arguments):  # type: ignore[no-untyped-def]
        found = super().aggregate_train(*arguments)
        ends.append(time.monotonic())
        return found


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    with np.load(SAMPLES) as file:
        clients = len(file["y"])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model().state_dict()), num_rounds=int(ROUNDS))
    Path(OUT).write_text(json.dumps(ends))


if __name__ == "__main__":
    with np.load(SAMPLES) as file:
        clients = len(file["y"])
    run_simulation(server_app, client_app, clients, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0}})
