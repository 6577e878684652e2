"""pFedPara's private half, added or multiplied, and how fast it learns."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Trainer
from benchmarks.federation.registry import find_method
from pfedpara.parameterize import parameterize, summarize

X, Y, D = (f"0.parametrizations.weight.original{i}" for i in range(3))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))


def stepped(**chosen: float | str) -> tuple[Trainer, dict[str, Tensor]]:
    """Returns a trainer after two steps, and how far the second one moved each parameter."""
    trainer = find_method("pfedpara").build(model(), ["2"], **chosen)
    batch = torch.randn(8, 20), torch.arange(8) % 3
    trainer.step(*batch, 0.1)
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.step(*batch, 0.1)
    return trainer, {name: tensor.detach() - before[name] for name, tensor in trainer.model.named_parameters()}


def test_the_private_half_is_added() -> None:
    plain = model()
    dense = plain[0].weight.detach().clone()
    (row, *_) = [row for row in summarize(parameterize(plain, additive=True, dense=["2"])) if row.rank]
    assert (row.rank, row.maximal_rank, row.shared, row.private) == (4, 16, 4 * (20 + 16), 20 * 16)
    assert plain[0].weight.square().mean().item() == pytest.approx(dense.square().mean().item())
    trainer, _ = stepped(additive=True)
    assert (trainer.private.keys(), trainer.judged_on) == ({D}, "trained")
    now = dict(trainer.model.named_parameters())
    assert now[D].abs().max() > 0
    torch.testing.assert_close(trainer.model[0].weight, now[X] @ now[Y].T + now[D])


def test_the_private_half_is_added_at_low_rank() -> None:
    """What is sent, kept and started from is pFedPara's; the halves are summed."""
    (row, *_) = [row for row in summarize(parameterize(model(), additive="lowrank", dense=["2"])) if row.rank]
    (plain, *_) = [row for row in summarize(parameterize(model(), dense=["2"])) if row.rank]
    assert (row.rank, row.maximal_rank, row.shared, row.private) == (4, 8, plain.shared, plain.private)
    trainer, _ = stepped(additive="lowrank")
    assert trainer.private.keys() == {D, D.replace("2", "3")}
    now = dict(trainer.model.named_parameters())
    own = now[D] @ now[D.replace("2", "3")].T
    assert own.abs().max() > 0
    torch.testing.assert_close(trainer.model[0].weight, now[X] @ now[Y].T + own)


def test_fedsa_shares_the_factor_that_inputs_pass_first() -> None:
    trainer = find_method("fedsa").build(model(), ["2"])
    now = dict(trainer.model.named_parameters())
    assert (trainer.private.keys(), trainer.judged_on) == ({X}, "trained")
    assert (now[X].shape, now[Y].shape) == ((16, 7), (20, 7))  # 140 of pFedPara's 4 · 36 = 144 shared ones
    torch.testing.assert_close(trainer.model[0].weight, now[X] @ now[Y].T)
    kernel = nn.Sequential(nn.Conv2d(16, 32, 3))
    (row,) = [row for row in summarize(parameterize(kernel, "fedsa")) if row.rank]
    (ours,) = [row for row in summarize(parameterize(nn.Sequential(nn.Conv2d(16, 32, 3)))) if row.rank]
    assert row.shared == 9 * row.rank**2 + 16 * row.rank <= ours.shared < 9 * (row.rank + 1) ** 2 + 16 * (row.rank + 1)
    assert row.private == 32 * row.rank


@pytest.mark.parametrize("additive", [False, True, "lowrank"])
def test_the_private_half_learns_at_its_own_rate(additive: bool | str) -> None:
    trainer, _ = stepped(additive=additive)
    batch = torch.randn(8, 20), torch.arange(8) % 3
    moves = []
    for rate in (1.0, 0.25, 0.0):
        one = copy.deepcopy(trainer)
        one.slow_down_private(rate)
        one.step(*batch, 0.1)
        now = dict(one.model.named_parameters())
        moves.append({name: now[name].detach() - p.detach() for name, p in trainer.model.named_parameters()})
    for name, move in moves[0].items():
        torch.testing.assert_close(
            moves[1][name], move * (0.25 if name in trainer.private else 1), rtol=1e-3, atol=1e-7
        )
        assert torch.equal(moves[2][name], torch.zeros_like(move) if name in trainer.private else move)


def test_a_half_that_stands_still_leaves_the_plain_product() -> None:
    trainer, _ = stepped(private_lr=0.0)
    now = dict(trainer.model.named_parameters())
    torch.testing.assert_close(trainer.model[0].weight, now[X] @ now[Y].T)


@pytest.mark.parametrize("alternate", [False, True])
def test_the_private_half_learns_from_a_round_on(alternate: bool) -> None:
    trainer = find_method("pfedpara").build(model(), ["2"], alternate=alternate, private_from=2, private_lr=3)
    data = TensorDataset(torch.randn(8, 20), torch.arange(8) % 3)
    for number in range(4):
        before = {name: tensor.clone() for name, tensor in trainer.private.items()}
        trainer.fit(data, RoundContext(0, 0, number))
        moved = [not torch.equal(before[name], tensor) for name, tensor in trainer.private.items()]
        assert any(moved) == (number >= 2), number


@pytest.mark.parametrize(
    ("algo", "weights", "chosen", "sentence"),
    [
        ("lowrank", None, {"additive": True}, "additive is of pfedpara's private half, and lowrank has none"),
        ("pfedpara", None, {"private_lr": 0.1, "optimizer": "adam"}, "steps of --optimizer sgd alone, not of adam"),
        ("pfedme", "pfedpara", {"private_lr": 0.1}, "the method has a step of its own"),
        ("pfedpara", None, {"private_lr": -1}, "greater than or equal to 0"),
        ("pfedpara", None, {"private_from": 1, "optimizer": "adam"}, "private_from scales the steps of"),
        ("pfedpara", None, {"private_from": -1}, "greater than or equal to 0"),
    ],
)
def test_nonsense_is_refused(algo: str, weights: str | None, chosen: dict[str, float | str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_method(algo, weights).build(model(), **chosen)
