"""Pooled training: one model on the training samples of all clients together, which no federation has in one place.

Each round takes E epochs of mini-batch SGD on the union. It is the upper bound of one global model: what averaging
costs is its distance to FedAvg. Every client is judged on the newest model, as it comes.

The messages are those of one client, the first, where the samples lie. How they came there is not counted.
"""

from torch import nn

from baselines.base import Hyper, Trainer


class PooledTrainer(Trainer):
    """Pooled: one model, trained on the samples of all clients in one place; an upper bound, no federation."""

    pools = True

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """Raises ValueError where the weights have private parts: samples of all clients have no one client's part."""
        super().__init__(model, hyper)
        if self.private:
            raise ValueError(
                "one model is trained on all clients' samples, so that none of it can be private; "
                "take --parameterization dense, fedpara or lowrank"
            )
