"""pFedPara-X: the form of pFedPara that docs/pfedpara.md ends with."""

import pytest
import torch
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Trainer
from benchmarks.federation.models import build_model
from benchmarks.federation.registry import find_method
from pfedpara.trainer import head

SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "mlp": ((28, 28), "image"),
    "cnn": ((28, 28), "image"),
    "cnn-bn": ((28, 28), "image"),
    "vgg16": ((32, 32, 3), "image"),
    "resnet18": ((32, 32, 3), "image"),
    "lstm": ((80,), "text"),
}


def model(name: str) -> torch.nn.Module:
    shape, task = SHAPES[name]
    channels = [0.5] * (3 if len(shape) == 3 else 1)
    torch.manual_seed(0)
    return build_model(name, shape, 10, channels, channels, task)


@pytest.mark.parametrize("name", SHAPES)
def test_the_head_gives_the_classes(name: str) -> None:
    layer = model(name).get_submodule(head(model(name)))
    assert isinstance(layer, torch.nn.Linear)
    assert layer.out_features == 10


def trained(algo: str, dense: list[str], alternate: bool) -> tuple[Trainer, list[int]]:
    """Returns the trainer after three rounds, and how many parameters it sent in each."""
    trainer = find_method(algo).build(model("mlp"), dense, alternate, epochs=1, lr=0.1)
    stream, sent = torch.Generator().manual_seed(0), []
    x = torch.randint(0, 256, (40, 28, 28), generator=stream, dtype=torch.uint8)
    data = TensorDataset(x, torch.randint(0, 10, (40,), generator=stream))
    for number in range(3):
        trainer.fit(data, RoundContext(0, 0, number))
        sent.append(sum(tensor.numel() for tensor in trainer.get_model_params().values()))
    return trainer, sent


def test_it_is_pfedpara_with_a_dense_head_and_factors_in_turn() -> None:
    ours, sent = trained("pfedpara-x", [], False)
    same, _ = trained("pfedpara", ["classifier"], True)
    for name, tensor in same.model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name])
    rest = 256 + 10 * 256 + 10  # the hidden bias, and the head
    assert sent == [256 * 56 + rest, 784 * 56 + rest, 256 * 56 + rest]  # X1, Y1, X1, of rank 56


def test_turns_are_not_taken_twice() -> None:
    with pytest.raises(ValueError, match="takes its factors in turn already; leave it out"):
        trained("pfedpara-x", [], True)
