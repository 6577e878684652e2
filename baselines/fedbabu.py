"""FedBABU (Oh, Kim, Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022,
Algorithm 1).

The head stays at its random start, the same at every client, so that only the body is trained in the federation and
only the body travels; the server averages it, weighted by samples. For evaluation a client fine-tunes the whole model,
head and body, by ``finetune_epochs`` epochs on its own data (τ_f, 5 in the paper's main tables), and is judged on that.

No deviation beyond the shared clipping of baselines/base.py. The fine-tuning is no part of training, as in
baselines/fedavg_ft.py.
"""

from torch import nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper
from baselines.fedavg_ft import FedAvgFtHyper, FedAvgFtTrainer
from baselines.fedper import FedPerHyper, FedPerTrainer


class FedBabuHyper(FedAvgFtHyper, FedPerHyper, frozen=True):
    pass


class FedBabuTrainer(FedAvgFtTrainer, FedPerTrainer):
    """FedBABU: a shared body under a head that nobody trains; each client fine-tunes both before it uses them."""

    hyper_class = FedBabuHyper
    hyper: FedBabuHyper

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        _, self.body = self.divide()

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.trainable = self.body
        super().fit(data, context)

    def deploy(self, data: TensorDataset, context: RoundContext) -> None:
        self.trainable = list(self.model.parameters())
        super().deploy(data, context)
