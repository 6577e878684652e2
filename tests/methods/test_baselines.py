"""The methods on numbers worked out by hand or by a few lines of NumPy, in float64."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.base import Aggregator, DivergedError, Trainer, evaluate
from baselines.fedavg import FedAvgTrainer
from baselines.fedper import FedPerTrainer
from baselines.local import LocalTrainer
from baselines.pfedme import PFedMeAggregator, PFedMeTrainer
from benchmarks.federation.registry import METHODS
from pfedpara.sharing import keep_private, split_parameters
from pfedpara.streams import stream_state

CPU = torch.device("cpu")


def args(**hyper: Any) -> SimpleNamespace:
    return SimpleNamespace(random_seed=0, round_idx=0, **hyper)


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
    return METHODS[algo](network(norm=algo == "fedbn"), args(epochs=1))


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
    trainer = FedAvgTrainer(linear(), args(lr=0.2, epochs=1, clip_norm=0.0))
    trainer.train(ONE, CPU, trainer.args)
    params = trainer.get_model_params()
    np.testing.assert_allclose(params["weight"], -0.2 * GRADIENT, atol=1e-12)
    np.testing.assert_allclose(params["bias"], [0.1, -0.1], atol=1e-12)


def test_learning_rate_decays_by_round() -> None:
    trainer = FedAvgTrainer(linear(), args(lr=0.2, lr_decay=0.5, epochs=1, clip_norm=0.0))
    trainer.args.round_idx = 2
    trainer.train(ONE, CPU, trainer.args)
    np.testing.assert_allclose(trainer.get_model_params()["bias"], [0.025, -0.025], atol=1e-12)


def test_clipping_scales_the_whole_gradient_to_the_norm() -> None:
    # ‖(weight, bias)‖² = 2·(1/4 + 1) + 2·1/4 = 3
    trainer = FedAvgTrainer(linear(), args(lr=1.0, epochs=1, clip_norm=0.3))
    trainer.train(ONE, CPU, trainer.args)
    np.testing.assert_allclose(trainer.get_model_params()["weight"], -GRADIENT * 0.3 / np.sqrt(3), atol=1e-12)


def test_clipping_leaves_small_gradients_alone() -> None:
    trainer = FedAvgTrainer(linear(), args(lr=1.0, epochs=1, clip_norm=2.0))
    trainer.train(ONE, CPU, trainer.args)
    np.testing.assert_allclose(trainer.get_model_params()["weight"], -GRADIENT, atol=1e-12)


def test_aggregation_weighs_by_samples() -> None:
    aggregator = Aggregator(linear(), args())
    mean = aggregator.aggregate([(1, full(1.0)), (3, full(5.0))])
    np.testing.assert_allclose(mean["weight"], np.full((2, 2), 4.0))


def full(value: float) -> dict[str, Tensor]:
    return {
        "weight": torch.full((2, 2), value, dtype=torch.float64),
        "bias": torch.full((2,), value, dtype=torch.float64),
    }


def test_pfedme_server_mixes_the_plain_mean_by_beta() -> None:
    aggregator = PFedMeAggregator(linear(), args(beta=0.25))
    aggregator.set_model_params(full(8.0))
    mixed = aggregator.aggregate([(1, full(1.0)), (3, full(5.0))])
    np.testing.assert_allclose(mixed["bias"], [0.75 * 8 + 0.25 * 3] * 2)


def test_pfedme_follows_algorithm_1() -> None:
    """Two batches of one sample, three inner steps each, against a transcription in NumPy."""
    hyper = {"lr": 0.05, "personal_lr": 0.1, "lam": 4.0, "steps": 3, "beta": 1.0, "epochs": 2, "clip_norm": 0.0}
    trainer = PFedMeTrainer(linear(), args(**hyper))
    start = {"weight": torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64), "bias": full(0.5)["bias"]}
    trainer.set_model_params(start)
    trainer.train(ONE, CPU, trainer.args)

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
    trainer = PFedMeTrainer(linear(), args(lr=0.05, personal_lr=0.1, epochs=1))
    trainer.train(ONE, CPU, trainer.args)
    theta = linear()
    theta.load_state_dict(trainer.get_private_state())
    assert trainer.test(ONE, CPU, trainer.args) == evaluate(theta, ONE)


def test_fedper_keeps_the_last_layers() -> None:
    trainer = FedPerTrainer(network(), args())
    assert sum(tensor.numel() for tensor in trainer.get_model_params().values()) == 784 * 256 + 256
    assert set(trainer.get_private_state()) == {"2.weight", "2.bias"}


def test_fedper_needs_a_layer_to_share() -> None:
    with pytest.raises(ValueError, match="private_layers must be below the model's 2 layers, got 2"):
        FedPerTrainer(network(), args(private_layers=2))


def test_local_shares_nothing() -> None:
    trainer = LocalTrainer(network(), args())
    assert trainer.get_model_params() == {}
    assert trainer.aggregator_class(trainer.model, trainer.args).aggregate([(3, {}), (4, {})]) == {}


def test_pfedpara_sends_a_third() -> None:
    trainer = METHODS["pfedpara"](network(), args(gamma=0.5))
    assert sum(tensor.numel() for tensor in trainer.get_model_params().values()) == 59_304 + 266


def digits(n: int = 70) -> TensorDataset:
    stream = torch.Generator().manual_seed(5)
    return TensorDataset(torch.rand(n, 784, generator=stream), torch.randint(0, 10, (n,), generator=stream))


@pytest.mark.parametrize("algo", METHODS)
def test_evaluation_has_no_side_effects(algo: str) -> None:
    trainer, data = trainer_of(algo), digits()
    trainer.update_dataset(data, data, len(data))
    trainer.train(data, CPU, trainer.args)
    before = trainer.get_model_params(), trainer.get_private_state()
    stream = torch.get_rng_state()
    trainer.test(data, CPU, trainer.args)
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
        trainer.set_id(client)
        trainer.set_private_state(state)
        trainer.set_model_params(start)
        trainer.train(digits(), CPU, trainer.args)
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
    trainer.train(digits(), CPU, trainer.args)
    assert all(torch.equal(taken[name], kept[name]) for name in kept)


def test_a_clients_stream_follows_from_purpose_seed_client_and_round() -> None:
    first = {}
    for purpose, *key in product(("training", "deployment"), range(2), range(3), range(3)):
        trainer = trainer_of("fedavg")
        trainer.id, (trainer.args.random_seed, trainer.args.round_idx) = key[1], (key[0], key[2])
        trainer.begin_stream(purpose, trainer.args)
        assert torch.equal(torch.get_rng_state(), stream_state(purpose, *key))
        first[purpose, *key] = torch.rand(()).item()
    assert len(set(first.values())) == len(first) == 2 * 2 * 3 * 3


def test_divergence_is_told_with_the_learning_rate() -> None:
    trainer = FedAvgTrainer(network(), args(lr=1e30, clip_norm=0.0, epochs=2))
    with pytest.raises(DivergedError, match="learning rate 1e"):
        trainer.train(digits(), CPU, trainer.args)


def test_wrong_tensors_are_refused() -> None:
    trainer = FedAvgTrainer(linear(), args())
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
        METHODS[algo].hyper_class(**hyper)


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
