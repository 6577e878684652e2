"""Factors in turn: what is trained and sent in which round, and that the mean of products is exact."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Trainer
from benchmarks.federation import codec
from benchmarks.federation.registry import find_method
from pfedpara.parameterize import reconstruct
from tests.support import directory, rows, run, same_findings, summary

HIDDEN = "0.parametrizations.weight.original"  # X1, Y1, and pFedPara's X2, Y2


def build(algo: str = "pfedpara", weights: str | None = None, **hyper: float) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    return find_method(algo, weights).build(model, ["2"], alternate=True, epochs=1, **hyper)


def data(client: int) -> TensorDataset:
    stream = torch.Generator().manual_seed(client)
    return TensorDataset(torch.randn(40, 20, generator=stream), torch.randint(0, 3, (40,), generator=stream))


def changed(trainer: Trainer, number: int) -> set[str]:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit(data(0), RoundContext(0, 0, number))
    return {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_each_round_trains_and_sends_one_shared_factor() -> None:
    trainer = build()
    trainer.fit(data(0), RoundContext(0, 0, 0))  # Y2 starts at 0, and with it the gradient in X2
    always = {"0.bias", "2.weight", "2.bias"}
    for number, turn in ((0, "0"), (1, "1"), (2, "0")):
        assert changed(trainer, number) == {HIDDEN + turn, HIDDEN + "2", HIDDEN + "3", *always}
        assert trainer.get_model_params().keys() == {HIDDEN + turn, *always}


def test_fedpara_takes_four_turns() -> None:
    trainer = build("fedpara")
    assert [changed(trainer, number) & {HIDDEN + i for i in "0123"} for number in range(5)] == [
        {HIDDEN + i} for i in "01230"
    ]


def products(trainer: Trainer) -> np.ndarray:
    X, Y = (trainer.travelling[HIDDEN + i].detach().double().numpy() for i in "01")
    return X @ Y.T


@pytest.mark.parametrize("number", [0, 1])
def test_the_server_s_mean_is_that_of_the_products(number: int) -> None:
    trainer, weights = build("lowrank", lr=0.5), (1, 2, 5)
    aggregator = copy.deepcopy(trainer).make_aggregator(3)
    start, updates, mean = aggregator.get_model_params(), [], 0.0
    for client, weight in enumerate(weights):
        trainer.set_model_params(start)
        trainer.fit(data(client), RoundContext(0, client, number))
        updates.append((float(weight), trainer.get_model_params()))
        mean = mean + weight / sum(weights) * products(trainer)
    aggregator.set_model_params(aggregator.aggregate(updates))
    trainer.set_model_params(aggregator.get_model_params())
    np.testing.assert_allclose(products(trainer), mean, rtol=0, atol=1e-6)
    assert aggregator.get_model_params().keys() == start.keys()


def test_fine_tuning_trains_every_factor() -> None:
    trainer = build("fedavg-ft", "lowrank")
    trainer.fit(data(0), RoundContext(0, 0, 0))
    before = trainer.model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    with trainer.deployed(data(0), RoundContext(0, 0, 0)) as model:
        assert not any(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_is_the_plain_model_again() -> None:
    trainer, x = build(), torch.randn(5, 20)
    trainer.fit(data(0), RoundContext(0, 0, 0))
    output = trainer.model(x)
    torch.testing.assert_close(reconstruct(trainer.model)(x), output)


@pytest.mark.parametrize(
    ("algo", "weights", "sentence"),
    [
        ("scaffold", "lowrank", "a server of its own"),
        ("fedadam", "fedpara", "a server of its own"),
        ("fedrep", "pfedpara", "local steps or"),
        ("pfedme", "lowrank", "local steps or"),
        ("ditto", "lowrank", "sends more than the shared parameters"),
        ("local", "lowrank", "no weight has two shared factors"),
        ("fedavg", "dense", "no weight has two shared factors"),
    ],
)
def test_where_there_are_no_turns(algo: str, weights: str, sentence: str) -> None:
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=sentence):
        find_method(algo, weights).build(model, alternate=True)


@pytest.mark.parametrize("form", ["4", "8", "16", "float16"])
def test_what_was_quantized_once_travels_again_without_loss(form: str) -> None:
    like = {"a": torch.zeros(300), "b": torch.zeros(70, 3), "none": torch.zeros(9)}
    values = torch.cat([torch.randn(300) * 1e-4, torch.randn(210), torch.zeros(9)])

    def travel(values: Tensor, stream: np.random.Generator | None) -> Tensor:
        return codec.unpack(codec.pack(values, None, like, form, stream)["tensors"], None, like, form)

    once = travel(values, np.random.default_rng(0))
    assert not torch.equal(once, values)
    assert torch.equal(travel(once, None), once)


# A whole run

JOB = (
    *("--dense", "classifier", "--alternate", "--quantize", "32", "8", "--quantize-down", "8", "--rounds", "4"),
    *("--epochs", "1", "--clients-per-round", "6", "--checkpoint-every", "1"),
)
LABELS = [f"pfedpara-dense-classifier-alternate{up}-down8bit" for up in ("", "-8bit")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alternating")
    job = run(*JOB, "--out", str(out), ranks=3)
    assert job.returncode == 0, job.stderr
    return out


@pytest.mark.slow
def test_what_travels_by_hand(done: Path) -> None:
    """X1 256 × 56 in odd rounds, Y1 784 × 56 in even ones, and always a head of 2,560 and 266 biases."""
    turn, always = {1: 256 * 56, 0: 784 * 56}, 2_560 + 266
    for label in LABELS:
        ledger = [entry for entry in rows(directory(done, label) / "ledger.csv") if entry["direction"] != "move"]
        sent = {(int(e["round"]), int(e["client"]), e["direction"]): int(e["parameters"]) for e in ledger}
        part = {number: {c for n, c, way in sent if n == number and way == "up"} for number in range(5)}
        expected = {}
        for number in range(1, 5):
            assert len(part[number]) == 6
            for client in part[number]:
                holds = client in part[number - 1]
                expected[number, client, "up"] = turn[number % 2] + always
                expected[number, client, "down"] = turn[(number - 1) % 2] + always if holds else 61_066
        assert sent == expected
        assert len({count for (_, _, way), count in sent.items() if way == "down"}) == 3


@pytest.mark.slow
def test_the_same_bits_on_one_rank_and_after_a_stop(done: Path, tmp_path: Path) -> None:
    where = [directory(done, label) for label in LABELS]
    shutil.copytree(done, tmp_path / "stopped")
    job = run(*JOB, "--out", str(tmp_path / "one"))
    assert job.returncode == 0, job.stderr
    for path, label in zip(where, LABELS, strict=True):
        same_findings(directory(tmp_path / "one", label), path)
        stopped = directory(tmp_path / "stopped", label)
        (stopped / "summary.json").unlink()
        shutil.rmtree(stopped / "checkpoint" / "round-000004")
    job = run(*JOB, "--out", str(tmp_path / "stopped"))
    assert (job.returncode, job.stderr) == (0, "")
    assert "round 3/4" not in job.stdout
    for path, label in zip(where, LABELS, strict=True):
        same_findings(directory(tmp_path / "stopped", label), path)


@pytest.mark.slow
def test_without_partial_participation_half_of_the_traffic_remains(tmp_path: Path) -> None:
    job = run("--algo", "pfedpara", *JOB[:3], "--rounds", "2", "--epochs", "1", "--out", str(tmp_path))
    assert job.returncode == 0, job.stderr
    found = summary(tmp_path, "pfedpara-dense-classifier-alternate")
    assert found["parameters_per_client_round"]["up"] == (256 * 56 + 784 * 56) // 2 + 2_826 == 31_946
