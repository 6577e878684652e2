"""The methods on numbers worked out by hand or by a few lines of NumPy, in float64."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext, evaluate
from baselines.base import Aggregator, DivergedError, Hyper, Trainer, clip_there
from baselines.fedavg import FedAvgTrainer
from baselines.fedper import FedPerTrainer
from baselines.local import LocalTrainer
from baselines.pfedme import PFedMeAggregator, PFedMeHyper, PFedMeTrainer
from benchmarks.federation.registry import METHODS
from pfedpara.sharing import keep_private, split_parameters
from pfedpara.streams import stream_state
from pfedpara.trainer import Method

FIRST = RoundContext(seed=0, client=0, round=0)


def linear() -> nn.Linear:
    """A model small enough to work out: 2 inputs, 2 classes, weights 0, in float64."""
    model = nn.Linear(2, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def network(norm: bool = False) -> nn.Sequential:
    """784-256-10, with a norm layer where asked for: FedBN needs one."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(784, 256), *([nn.LayerNorm(256)] if norm else []), nn.ReLU(), nn.Linear(256, 10))


def trainer_of(algo: str) -> Trainer:
    return METHODS[algo].build(network(norm=algo == "fedbn"), epochs=1)


ONE = TensorDataset(torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([0]))
# At zero weights softmax gives (1/2, 1/2), so that the gradient of the logits is (-1/2, 1/2).
GRADIENT = np.array([[-0.5, -1.0], [0.5, 1.0]])


def softmax_gradient(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the cross-entropy of ONE, by the textbook formula."""
    x = np.array([1.0, 2.0])
    p = np.exp(weight @ x + bias)
    delta = p / p.sum() - np.array([1.0, 0.0])
    return np.outer(delta, x), delta


def test_one_step_of_sgd_by_hand() -> None:
    trainer = Method(FedAvgTrainer).build(linear(), lr=0.2, epochs=1, clip_norm=0.0)
    trainer.fit(ONE, FIRST)
    params = trainer.get_model_params()
    np.testing.assert_allclose(params["weight"], -0.2 * GRADIENT, atol=1e-12)
    np.testing.assert_allclose(params["bias"], [0.1, -0.1], atol=1e-12)


def test_learning_rate_decays_by_round() -> None:
    trainer = Method(FedAvgTrainer).build(linear(), lr=0.2, lr_decay=0.5, epochs=1, clip_norm=0.0)
    trainer.fit(ONE, FIRST._replace(round=2))
    np.testing.assert_allclose(trainer.get_model_params()["bias"], [0.025, -0.025], atol=1e-12)


def test_clipping_scales_the_whole_gradient_to_the_norm() -> None:
    # ‖(weight, bias)‖² = 2·(1/4 + 1) + 2·1/4 = 3
    trainer = Method(FedAvgTrainer).build(linear(), lr=1.0, epochs=1, clip_norm=0.3)
    trainer.fit(ONE, FIRST)
    np.testing.assert_allclose(trainer.get_model_params()["weight"], -GRADIENT * 0.3 / np.sqrt(3), atol=1e-12)


def test_clipping_leaves_small_gradients_alone() -> None:
    trainer = Method(FedAvgTrainer).build(linear(), lr=1.0, epochs=1, clip_norm=2.0)
    trainer.fit(ONE, FIRST)
    np.testing.assert_allclose(trainer.get_model_params()["weight"], -GRADIENT, atol=1e-12)


@pytest.mark.parametrize(("longest", "factor"), [(0.5, 0.1), (5.0, 1.0), (9.0, 1.0)])
def test_clipping_on_a_device_of_its_own_is_the_same_but_for_rounding(longest: float, factor: float) -> None:
    gradients = (torch.tensor([[3.0, 0.0]]), torch.tensor([4.0]))
    clip_there(gradients, torch._foreach_norm(gradients), longest)
    torch.testing.assert_close(gradients, (torch.tensor([[3 * factor, 0.0]]), torch.tensor([4 * factor])))


def test_clipping_on_a_device_of_its_own_hides_no_wild_number() -> None:
    for wild in (math.nan, math.inf):
        gradients = (torch.tensor([1.0, wild]),)
        clip_there(gradients, torch._foreach_norm(gradients), 5.0)
        assert not gradients[0].isfinite().all()


def test_aggregation_weighs_by_samples() -> None:
    aggregator = Aggregator(linear(), Hyper(), clients=2)
    mean = aggregator.aggregate([(1, full(1.0)), (3, full(5.0))])
    np.testing.assert_allclose(mean["weight"], np.full((2, 2), 4.0))


def full(value: float) -> dict[str, Tensor]:
    return {
        "weight": torch.full((2, 2), value, dtype=torch.float64),
        "bias": torch.full((2,), value, dtype=torch.float64),
    }


def test_pfedme_server_mixes_the_plain_mean_by_beta() -> None:
    aggregator = PFedMeAggregator(linear(), PFedMeHyper(beta=0.25), clients=2)
    aggregator.set_model_params(full(8.0))
    mixed = aggregator.aggregate([(1, full(1.0)), (3, full(5.0))])
    np.testing.assert_allclose(mixed["bias"], [0.75 * 8 + 0.25 * 3] * 2)


def test_pfedme_follows_algorithm_1() -> None:
    """Two batches of one sample, three inner steps each, against a transcription in NumPy."""
    hyper = {"lr": 0.05, "personal_lr": 0.1, "lam": 4.0, "steps": 3, "beta": 1.0, "epochs": 2, "clip_norm": 0.0}
    trainer = Method(PFedMeTrainer).build(linear(), **hyper)
    start = {"weight": torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64), "bias": full(0.5)["bias"]}
    trainer.set_model_params(start)
    trainer.fit(ONE, FIRST)

    w = [start["weight"].numpy().copy(), start["bias"].numpy().copy()]
    theta = [tensor.copy() for tensor in w]
    for _ in range(2):
        for _ in range(3):
            gradient = softmax_gradient(*theta)
            theta = [t - 0.1 * (g + 4.0 * (t - v)) for t, g, v in zip(theta, gradient, w, strict=True)]
        w = [v - 0.05 * 4.0 * (v - t) for v, t in zip(w, theta, strict=True)]

    sent, kept = trainer.get_model_params(), trainer.get_private_state()
    for name, v, t in zip(("weight", "bias"), w, theta, strict=True):
        np.testing.assert_allclose(sent[name], v, atol=1e-12)
        np.testing.assert_allclose(kept[name], t, atol=1e-12)
    assert not np.allclose(sent["weight"], start["weight"])  # the global model does move


def test_pfedme_is_judged_on_theta() -> None:
    trainer = Method(PFedMeTrainer).build(linear(), lr=0.05, personal_lr=0.1, epochs=1)
    trainer.fit(ONE, FIRST)
    theta = linear()
    theta.load_state_dict(trainer.get_private_state())
    with trainer.deployed(ONE, FIRST) as model:
        assert evaluate(model, ONE) == evaluate(theta, ONE)


def test_fedper_keeps_the_last_layers() -> None:
    trainer = Method(FedPerTrainer).build(network())
    assert sum(tensor.numel() for tensor in trainer.get_model_params().values()) == 784 * 256 + 256
    assert set(trainer.get_private_state()) == {"2.weight", "2.bias"}


def test_fedper_needs_a_layer_to_share() -> None:
    with pytest.raises(ValueError, match="private_layers must be below the model's 2 layers, got 2"):
        Method(FedPerTrainer).build(network(), private_layers=2)


def test_local_shares_nothing() -> None:
    trainer = Method(LocalTrainer).build(network())
    assert trainer.get_model_params() == {}
    assert trainer.make_aggregator(2).aggregate([(3, {}), (4, {})]) == {}


def test_pfedpara_sends_a_third() -> None:
    trainer = METHODS["pfedpara"].build(network(), gamma=0.5)
    assert sum(tensor.numel() for tensor in trainer.get_model_params().values()) == 59_304 + 266


def digits(n: int = 70) -> TensorDataset:
    stream = torch.Generator().manual_seed(5)
    return TensorDataset(torch.rand(n, 784, generator=stream), torch.randint(0, 10, (n,), generator=stream))


@pytest.mark.parametrize("algo", METHODS)
def test_evaluation_has_no_side_effects(algo: str) -> None:
    trainer, data = trainer_of(algo), digits()
    trainer.fit(data, FIRST)
    before = trainer.get_model_params(), trainer.get_private_state()
    stream = torch.get_rng_state()
    with trainer.deployed(data, FIRST) as model:
        evaluate(model, data)
    after = trainer.get_model_params(), trainer.get_private_state()
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, after, strict=True) for name in a)
    assert torch.equal(stream, torch.get_rng_state())
    assert trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("algo", METHODS)
def test_training_depends_on_seed_client_and_round_alone(algo: str) -> None:
    trainer = trainer_of(algo)
    start, state = trainer.get_model_params(), trainer.get_private_state()

    def train(client: int) -> Tensor:
        trainer.set_private_state(state)
        trainer.set_model_params(start)
        trainer.fit(digits(), FIRST._replace(client=client))
        both = trainer.get_model_params() | trainer.get_private_state()
        return torch.cat([tensor.flatten() for tensor in both.values()])

    first = train(3)
    other = train(4)
    assert torch.equal(train(3), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("algo", METHODS)
def test_params_and_state_are_copies(algo: str) -> None:
    trainer = trainer_of(algo)
    taken = trainer.get_model_params() | trainer.get_private_state()
    kept = {name: tensor.clone() for name, tensor in taken.items()}
    trainer.fit(digits(), FIRST)
    assert all(torch.equal(taken[name], kept[name]) for name in kept)


def test_a_clients_stream_follows_from_purpose_seed_client_and_round() -> None:
    found = {}

    class Noting(FedAvgTrainer):
        def run_epochs(self, *args: Any) -> None:
            found["training"] = torch.get_rng_state()

        def deploy(self, *args: Any) -> None:
            found["deployment"] = torch.get_rng_state()

    trainer, drawn = Noting(linear(), Hyper()), set()
    for seed, client, number in product(range(2), range(3), range(3)):
        context = RoundContext(seed, client, number)
        trainer.fit(ONE, context)
        with trainer.deployed(ONE, context):
            pass
        for purpose, state in found.items():
            assert torch.equal(state, stream_state(purpose, seed, client, number))
            drawn.add(bytes(state.numpy()))
    assert len(drawn) == 2 * 2 * 3 * 3


def test_divergence_is_told_with_the_learning_rate() -> None:
    trainer = Method(FedAvgTrainer).build(network(), lr=1e30, clip_norm=0.0, epochs=2)
    with pytest.raises(DivergedError, match="learning rate 1e"):
        trainer.fit(digits(), FIRST)


def test_wrong_tensors_are_refused() -> None:
    trainer = Method(FedAvgTrainer).build(linear())
    with pytest.raises(ValueError, match="expected the tensors"):
        trainer.set_model_params({"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"weight: expected shape \(2, 2\), got \(3, 2\)"):
        trainer.set_model_params({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


@pytest.mark.parametrize(
    ("algo", "hyper"),
    [
        ("fedavg", {"lr": 0.0}),
        ("fedavg", {"lr": float("nan")}),
        ("fedavg", {"batch_size": 0}),
        ("fedavg", {"epochs": 1.5}),
        ("fedavg", {"gamma": 0.5}),
        ("fedper", {"private_layers": 0}),
        ("pfedme", {"lam": -1.0}),
        ("pfedpara", {"gamma": 1.5}),
        ("apfl", {"alpha": 1.5}),
        ("per-fedavg", {"variant": "second order"}),
        ("fedprox", {"mu": -0.1}),
        ("scaffold", {"server_lr": 0.0}),
        ("feddyn", {"alpha": 0.0}),
        ("fedavgm", {"momentum": 1.0}),
        ("fedadam", {"beta1": 1.0}),
        ("fedadam", {"tau": 0.0}),
        ("fedyogi", {"beta2": -0.1}),
    ],
)
def test_hyper_parameters_are_checked(algo: str, hyper: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        METHODS[algo].check(hyper)


def test_split_follows_the_declaration() -> None:
    model = network()
    keep_private([model[2]])
    shared, private = split_parameters(model)
    assert list(shared) == ["0.weight", "0.bias"]
    assert list(private) == ["2.weight", "2.bias"]


def test_split_refuses_unknown_names_and_statistics_by_a_count() -> None:
    with pytest.raises(ValueError, match="layer '1' averages its statistics over all batches; give it a momentum"):
        split_parameters(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)))
    model = linear()
    model.private_parameters = ("nothing",)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="'nothing', which it does not have"):
        split_parameters(model)
