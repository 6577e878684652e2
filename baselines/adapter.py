"""The adapter to FedML: its two interfaces in terms of ours, and the one place that knows its ``args`` namespace.

FedML's managers call what is here; a method has ``fit``, ``deployed`` and ``aggregate``, with typed values.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fedml.core import ClientTrainer, ServerAggregator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EVALUATION_BATCH = 512  # samples


class RoundContext(NamedTuple):
    """The keys of all that is random in a client's round."""

    seed: int
    client: int
    round: int  # from 0


@torch.no_grad()
def predict(model: nn.Module, data: TensorDataset) -> tuple[Tensor, Tensor]:
    """Returns the labels (n,) of ``data`` and the ``model``'s logits (n, classes), on the CPU.

    Leaves weights, gradients, random streams and the training flag as they were.
    """
    training = model.training
    model.eval()
    x, y = data.tensors
    logits = torch.cat([model(batch) for batch in x.split(EVALUATION_BATCH)])
    model.train(training)
    return y.cpu(), logits.cpu()


def evaluate(model: nn.Module, data: TensorDataset) -> dict[str, float]:
    """Returns FedML's metrics of ``model`` on ``data``: ``test_correct``, ``test_loss`` (a sum) and ``test_total``."""
    labels, logits = predict(model, data)
    correct = int((logits.argmax(dim=1) == labels).sum())
    loss = F.cross_entropy(logits, labels, reduction="sum").item()
    return {"test_correct": correct, "test_loss": loss, "test_total": len(labels)}


class FedMLTrainer(ClientTrainer):
    """FedML's client half. Its ``args`` has ``random_seed`` and ``round_idx``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, None)

    @abstractmethod
    def fit(self, data: TensorDataset, context: RoundContext) -> None: ...

    @abstractmethod
    def deployed(self, data: TensorDataset, context: RoundContext) -> AbstractContextManager[nn.Module]: ...

    def train(self, train_data: TensorDataset, device: Any, args: Any) -> None:
        self.fit(train_data, RoundContext(args.random_seed, self.id, args.round_idx))

    def test(self, test_data: TensorDataset, device: Any, args: Any) -> dict[str, float]:
        """Returns the metrics of ``evaluate`` for the model that this client would deploy."""
        with self.deployed(self.local_train_dataset, RoundContext(args.random_seed, self.id, args.round_idx)) as model:
            return evaluate(model, test_data)


class FedMLAggregator(ServerAggregator):
    """FedML's server half."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, None)

    def test(self, test_data: TensorDataset, device: Any, args: Any) -> dict[str, float]:
        return evaluate(self.model, test_data)

    def test_all(self, train_data_local_dict: Any, test_data_local_dict: Any, device: Any, args: Any) -> bool:
        """Tells FedML's own server that nothing is left to test: each client judges its own model."""
        return True
