"""FedAvg in FedLab's standalone simulation; runs in FedLab's environment, started by benchmarks/perf/peers.py.

    python with_fedlab.py SAMPLES.npz ROUNDS BATCH LR CLIP OUT

Its trainer does not clip, so it has less to do in a step. One process trains all clients.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, ROUNDS, BATCH, LR, _, OUT = sys.argv[1:]


class Samples:
    """The clients' samples, as FedLab's trainer asks for them."""

    def __init__(self) -> None:
        with np.load(SAMPLES) as file:
            x, y = torch.from_numpy(file["x"]).float() / 127.5 - 1, torch.from_numpy(file["y"])
        self.clients = [TensorDataset(*pair) for pair in zip(x, y, strict=True)]

    def get_dataloader(self, client: int, batch_size: int) -> DataLoader:
        return DataLoader(self.clients[client], batch_size, shuffle=True)


class Timed(StandalonePipeline):
    """FedLab's simulation, which notes when each round ends."""

    def evaluate(self) -> None:
        ends.append(time.monotonic())


torch.set_num_threads(1)
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
samples = Samples()
handler = FedAvgServerHandler(net, int(ROUNDS), 1.0)
trainer = FedAvgSerialClientTrainer(net, len(samples.clients))
trainer.setup_dataset(samples)
trainer.setup_optim(1, int(BATCH), float(LR))
ends = [time.monotonic()]
Timed(handler, trainer).main()
Path(OUT).write_text(json.dumps(ends))
