"""What training costs: gradients counted where they are taken, floating-point operations worked out by hand."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, Trainer
from baselines.fedavg_ft import FedAvgFtHyper, FedAvgFtTrainer
from baselines.fedrep import FedRepHyper, FedRepTrainer
from baselines.per_fedavg import PerFedAvgHyper, PerFedAvgTrainer
from baselines.pfedme import PFedMeHyper, PFedMeTrainer
from benchmarks.federation import work

CONTEXT = RoundContext(seed=0, client=0, round=0)
DATA = TensorDataset(torch.rand(10, 6), torch.arange(10) % 3)
COMMON = {"epochs": 2, "batch_size": 4}  # batches of 4, 4 and 2 samples, twice


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("kind", "hyper", "expected"),
    [
        (Trainer, Hyper(**COMMON), {"0 1 2 3": (6, 20)}),
        (PFedMeTrainer, PFedMeHyper(**COMMON, steps=5), {"0 1 2 3": (30, 100)}),  # five for each of FedAvg's
        (FedRepTrainer, FedRepHyper(**COMMON, head_epochs=1), {"2 3": (3, 10), "0 1": (6, 20)}),
        # A step takes two batches, 4 + 4 samples; the two that are left over make none.
        (PerFedAvgTrainer, PerFedAvgHyper(**COMMON), {"0 1 2 3": (4, 16)}),
    ],
)
def test_gradients_of_a_round(kind: type[Trainer], hyper: Hyper, expected: dict[str, tuple[int, int]]) -> None:
    trainer = kind(mlp(), hyper)
    trainer.fit(DATA, CONTEXT)
    assert trainer.take_work() == expected
    assert trainer.take_work() == {}


def test_what_precedes_the_judging_is_apart() -> None:
    trainer = FedAvgFtTrainer(mlp(), FedAvgFtHyper(**COMMON, finetune_epochs=3))
    with trainer.deployed(DATA, CONTEXT):
        pass
    assert trainer.take_work() == {"0 1 2 3": (9, 30)}


def test_floating_point_operations_by_hand() -> None:
    """A matrix product m × k × n is 2mkn: forward 2·6·5 and 2·5·3 a sample, as much for the weights' gradients, and
    2·5·3 more where the gradient passes the second layer. The head's needs neither that nor the first layer's.
    """
    forward, first, second = 60 + 30, 60, 30
    assert work.flops({"0 1 2 3": (6, 20)}, mlp(), DATA.tensors[0]) == 20 * (forward + first + second + 30)
    both = {"2 3": (3, 10), "0 1": (6, 20)}
    assert work.flops(both, mlp(), DATA.tensors[0]) == 10 * (forward + second) + 20 * (forward + first + 30)
    assert work.gradients(both) == 30


def test_composing_weights_costs_the_same_at_any_batch() -> None:
    """W = X Yᵀ, 5 × 2 and 6 × 2: 2·5·2·6 for each gradient, and twice that for those of X and Y."""

    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.y = nn.Parameter(torch.rand(5, 2)), nn.Parameter(torch.rand(6, 2))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ (self.x @ self.y.T).T

    assert work.flops({"0 1": (7, 20)}, LowRank(), DATA.tensors[0]) == 7 * 3 * 120 + 20 * (60 + 60)


def test_a_model_that_looks_at_its_numbers_is_counted_too() -> None:
    class Looks(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * (1 if inputs.sum().item() > 0 else 2)

    assert work.flops({"0": (1, 1)}, Looks(6, 3, bias=False), DATA.tensors[0]) == 2 * 6 * 3 * 2  # forward, and W's
