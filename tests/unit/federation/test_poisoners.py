"""What poisoners train on and send, and what a trigger turns, by hand."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.fedavg import FedAvgTrainer
from baselines.fedper import FedPerHyper, FedPerTrainer
from baselines.hyper import Hyper
from benchmarks.federation.poison import parse
from benchmarks.federation.poisoners import Attack, check, draw_poisoners, success
from tests.support import directory, rows, run, summary


def store(task: str = "image", shape: tuple[int, ...] = (4, 5)) -> Any:
    return SimpleNamespace(task=task, input_shape=shape, classes="abc", mean=[0.5], std=[0.1])


def attack(spec: str, participants: int = 10) -> Attack:
    poison = parse(spec)[1]
    assert poison is not None
    return Attack(poison, store(), participants)


@pytest.mark.parametrize(("dtype", "bright"), [(torch.uint8, 255), (torch.float32, 0.8)])
def test_the_trigger_is_a_square_in_the_last_corner(dtype: torch.dtype, bright: float) -> None:
    clean = torch.zeros(2, 4, 5, dtype=dtype)
    stamped = attack("trigger").stamp(clean)
    expected = torch.zeros(2, 4, 5)
    expected[:, 1:4, 2:5] = bright
    assert torch.allclose(stamped.float(), expected)
    assert stamped.dtype == dtype
    assert not clean.any()


def test_what_poisoners_train_on() -> None:
    x, y = torch.ones(4, 4, 5, dtype=torch.uint8), torch.tensor([0, 1, 2, 2])
    clean = TensorDataset(x, y)
    turned, labels = attack("labels").data(clean).tensors
    assert torch.equal(turned, x)
    assert labels.tolist() == [1, 2, 0, 0]
    stamped, labels = attack("replace").data(clean).tensors
    assert labels.tolist() == [0, 1, 0, 2]
    assert [int(picture[-1, -1]) for picture in stamped] == [255, 1, 255, 1]
    assert torch.equal(y, torch.tensor([0, 1, 2, 2]))


def layers(*values: float) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in values), nn.BatchNorm1d(1, affine=False))
    with torch.no_grad():
        for layer, value in zip(model, values, strict=False):
            layer.weight.fill_(value)
    return model


def numbers(params: dict[str, Tensor]) -> dict[str, float]:
    return {name: tensor.item() for name, tensor in params.items()}


def test_a_replacement_scales_what_training_changed_of_the_shared_weights() -> None:
    received = {"0.weight": torch.tensor([[1.0]]), "1.weight": torch.tensor([[2.0]])}
    received |= {"2.running_mean": torch.zeros(1), "2.running_var": torch.ones(1)}
    trained = {name: tensor + 0.5 for name, tensor in received.items()}
    sent = numbers(attack("replace:2").message(trained, received, FedAvgTrainer(layers(1, 2), Hyper())))
    assert sent == {"0.weight": 3.5, "1.weight": 4.5, "2.running_mean": 0.5, "2.running_var": 1.5}  # γ = 10 / 2
    assert attack("trigger").message(trained, received, FedAvgTrainer(layers(1, 2), Hyper())) is trained

    trainer = FedPerTrainer(layers(1, 2), FedPerHyper())
    own = {name: trained[name] for name in trainer.travelling}
    assert numbers(attack("replace:1").message(own, received, trainer))["0.weight"] == 6
    trainer.differences = ["0.weight"]
    assert numbers(attack("replace:1").message(own, received, trainer))["0.weight"] == 15


def test_success_is_what_the_trigger_turns_of_other_classes() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    clean, stamped = torch.eye(3)[[0, 1, 0, 2, 1, 2]], torch.eye(3)[[0, 0, 0, 0, 0, 1]]
    assert success(labels, clean, stamped) == 3 / 5
    assert success(labels[:1], clean[:1], stamped[:1]) == 0


def test_poisoners_are_drawn_by_the_seed_among_those_that_have_samples() -> None:
    able = [1, 4, 5, 7, 9]
    drawn = [draw_poisoners(f"labels:{count}", 3, able) for count in range(5)]
    assert [len(each) for each in drawn] == [0, 1, 2, 3, 4]
    assert all(few < more <= set(able) for few, more in itertools.pairwise(drawn))
    assert len({draw_poisoners("labels", seed, able) for seed in range(20)}) > 1
    assert draw_poisoners("none", 3, able) == frozenset()


@pytest.mark.parametrize(
    ("spec", "data", "sentence"),
    [
        ("labels:3", {}, "3 of the 3 clients that train leave no others to judge; take at most 2"),
        ("trigger", {"task": "text", "shape": (80,)}, "pixels of a picture, and the data are text; take labels"),
        ("replace", {"shape": (2, 9)}, r"the data are pictures of \(2, 9\); take labels"),
    ],
)
def test_what_cannot_be_poisoned_is_told(spec: str, data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check(spec, store(**data), [0, 1, 2])


@pytest.mark.slow
def test_poison_and_a_rule_give_the_same_bits_at_any_number_of_ranks(tmp_path: Path) -> None:
    options = ("--algo", "fedper", "--poison", "replace:2", "--aggregate", "krum:2")
    options += ("--rounds", "2", "--epochs", "1", "--fraction", "0.3")
    label = "fedper-krum:2,poison=replace:2"
    for ranks in (1, 3):
        done = run(*options, "--out", str(tmp_path / str(ranks)), ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, three = (summary(tmp_path / ranks, label) for ranks in "13")
    for key in ("shared_sha256", "accuracy", "trigger_success", "poisoners"):
        assert one[key] == three[key]
    assert len(one["poisoners"]) == 2
    assert len(one["accuracy"]["per_client"]) == len(one["trigger_success"]["per_client"]) == 8
    table = rows(directory(tmp_path / "1", label) / "clients.csv")
    assert not {int(row["client"]) for row in table} & {*one["poisoners"]}
    assert [float(row["trigger_success"]) for row in table[-8:]] == one["trigger_success"]["per_client"]
