"""The federated optimizers against NumPy transcriptions of the papers' algorithms, in float64, and real jobs."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Params, Trainer
from baselines.fedopt import FedAdamAggregator, FedAdamHyper, FedYogiAggregator
from benchmarks.federation.registry import find_method
from pfedpara.parameterize import split_parameters
from pfedpara.streams import stream_state
from tests.support import directory, run, same_findings, start, summary, wait_for_round

Vector = np.ndarray

SIZES = (5, 9, 7, 12)  # samples of the four registered clients
ROUNDS = ((0, 1, 2), (1, 2, 3), (0, 2, 3))  # three of them in each round
LR, EPOCHS, BATCH, CLIP = 0.3, 2, 4, 0.6
COMMON = {"lr": LR, "epochs": EPOCHS, "batch_size": BATCH, "clip_norm": CLIP}
WEIGHTS = ("dense", "fedpara", "lowrank", "pfedpara")


def data(client: int) -> TensorDataset:
    stream = torch.Generator().manual_seed(client)
    y = torch.randint(0, 3, (SIZES[client],), generator=stream)
    return TensorDataset(torch.randn(len(y), 12, generator=stream, dtype=torch.float64) + y[:, None], y)


def build(algo: str, weights: str, **hyper: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return find_method(algo, weights).build(model, **COMMON | hyper)


class Outcome(NamedTuple):
    sent: Params  # what the server would send next
    server_state: Params
    private_states: list[Params]  # of each client


def federate(
    algo: str,
    weights: str,
    samples: Callable[[int], TensorDataset] = data,
    rounds: tuple[tuple[int, ...], ...] = ROUNDS,
    **hyper: Any,
) -> Outcome:
    """Runs our method. A server made afresh for each round shows that its state, like a client's, is whole."""
    trainer = build(algo, weights, **hyper)
    states = [trainer.get_private_state()] * len(SIZES)
    server = build(algo, weights, **hyper).make_aggregator(len(SIZES))
    for number, chosen in enumerate(rounds):
        updates: list[tuple[float, Params]] = []
        for client in chosen:
            trainer.set_private_state(states[client])
            trainer.set_model_params(server.get_model_params())
            trainer.fit(samples(client), RoundContext(0, client, number))
            states[client] = trainer.get_private_state()
            updates.append((len(samples(client)), trainer.get_model_params()))
        server.set_model_params(server.aggregate(updates))
        before, server = server, build(algo, weights, **hyper).make_aggregator(len(SIZES))
        server.set_model_params(before.get_model_params())
        server.set_server_state(before.get_server_state())
    return Outcome(server.get_model_params(), server.get_server_state(), states)


# The papers' algorithms, on flat vectors: w the shared parameters, p a client's private ones


class Problem:
    """The clients' losses as functions of w and p, and the batches that each client draws."""

    def __init__(self, weights: str) -> None:
        self.model = build("fedavg", weights).model
        self.shared, self.private = (list(group.values()) for group in split_parameters(self.model))
        self.names = [list(group) for group in split_parameters(self.model)]
        self.w = flat(self.shared)
        self.p = [flat(self.private)] * len(SIZES)

    def gradient(self, w: Vector, p: Vector, x: Tensor, y: Tensor) -> tuple[Vector, Vector]:
        """Returns the gradients by w and by p, together clipped to the norm CLIP."""
        for group, vector in ((self.shared, w), (self.private, p)):
            nn.utils.vector_to_parameters(torch.from_numpy(vector), group)
        loss = -self.model(x).log_softmax(dim=1)[range(len(y)), y].mean()
        found = torch.autograd.grad(loss, [*self.shared, *self.private])
        gw, gp = flat(found[: len(self.shared)]), flat(found[len(self.shared) :])
        scale = min(1.0, CLIP / np.sqrt(gw @ gw + gp @ gp))
        return scale * gw, scale * gp

    def batches(self, client: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = data(client).tensors
        torch.set_rng_state(stream_state("training", 0, client, number))
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(y)).split(BATCH):
                yield x[batch], y[batch]

    def sgd(
        self, client: int, number: int, w: Vector, pull: float = 0.0, push: Vector | float = 0.0
    ) -> tuple[Vector, int]:
        """Trains p, and from w a local y by g(y) + pull · (y − w) + push. Returns y and the number of steps."""
        y, steps = w, 0
        for batch in self.batches(client, number):
            gw, gp = self.gradient(y, self.p[client], *batch)
            y, self.p[client] = y - LR * (gw + pull * (y - w) + push), self.p[client] - LR * gp
            steps += 1
        return y, steps

    def vector(self, tensors: Params, prefix: str = "", private: bool = False) -> Vector:
        return flat([tensors[prefix + name] for name in self.names[private]])


def flat(tensors: Any) -> Vector:
    return np.concatenate([np.empty(0), *(tensor.detach().numpy().ravel() for tensor in tensors)])


def by_samples(vectors: dict[int, Vector]) -> Vector:
    return sum(SIZES[k] * v for k, v in vectors.items()) / sum(SIZES[k] for k in vectors)


def fedprox(problem: Problem, outcome: Outcome, mu: float) -> Vector:
    w = problem.w
    for t, chosen in enumerate(ROUNDS):
        w = by_samples({k: problem.sgd(k, t, w, pull=mu)[0] for k in chosen})
    return w


def scaffold(problem: Problem, outcome: Outcome, server_lr: float) -> Vector:
    x, c = problem.w, np.zeros_like(problem.w)
    own = [c] * len(SIZES)
    for t, chosen in enumerate(ROUNDS):
        dy, dc = [], []
        for i in chosen:
            y, steps = problem.sgd(i, t, x, push=c - own[i])
            plus = own[i] - c + (x - y) / (steps * LR)
            dy.append(y - x)
            dc.append(plus - own[i])
            own[i] = plus
        x, c = x + server_lr * np.mean(dy, axis=0), c + len(chosen) / len(SIZES) * np.mean(dc, axis=0)
    np.testing.assert_allclose(problem.vector(outcome.sent, "control."), c, atol=1e-10)
    for i, state in enumerate(outcome.private_states):
        np.testing.assert_allclose(problem.vector(state, "own_control."), own[i], atol=1e-10)
    return x


def feddyn(problem: Problem, outcome: Outcome, alpha: float) -> Vector:
    theta, h = problem.w, np.zeros_like(problem.w)
    memory = [h] * len(SIZES)
    for t, chosen in enumerate(ROUNDS):
        local = {}
        for k in chosen:
            local[k], _ = problem.sgd(k, t, theta, pull=alpha, push=-memory[k])
            memory[k] = memory[k] - alpha * (local[k] - theta)
        h = h - alpha / len(SIZES) * sum(v - theta for v in local.values())
        theta = sum(local.values()) / len(chosen) - h / alpha
    np.testing.assert_allclose(problem.vector(outcome.server_state), h, atol=1e-10)
    for k, state in enumerate(outcome.private_states):
        np.testing.assert_allclose(problem.vector(state, "memory."), memory[k], atol=1e-10)
    return theta


def fedavgm(problem: Problem, outcome: Outcome, server_lr: float, momentum: float) -> Vector:
    w, v = problem.w, np.zeros_like(problem.w)
    for t, chosen in enumerate(ROUNDS):
        v = momentum * v + by_samples({k: problem.sgd(k, t, w)[0] - w for k in chosen})
        w = w + server_lr * v
    return w


def adaptive(
    problem: Problem, outcome: Outcome, yogi: bool, server_lr: float, beta1: float, beta2: float, tau: float
) -> Vector:
    x, m, v = problem.w, np.zeros_like(problem.w), np.full_like(problem.w, tau**2)
    for t, chosen in enumerate(ROUNDS):
        delta = by_samples({k: problem.sgd(k, t, x)[0] - x for k in chosen})
        m = beta1 * m + (1 - beta1) * delta
        yogis = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        v = yogis if yogi else beta2 * v + (1 - beta2) * delta**2
        x = x + server_lr * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(problem.vector(outcome.server_state, "v."), v, atol=1e-10)
    return x


def fedadam(problem: Problem, outcome: Outcome, **hyper: float) -> Vector:
    return adaptive(problem, outcome, False, **hyper)


def fedyogi(problem: Problem, outcome: Outcome, **hyper: float) -> Vector:
    return adaptive(problem, outcome, True, **hyper)


def pfedme(problem: Problem, outcome: Outcome, personal_lr: float, lam: float, steps: int, beta: float) -> Vector:
    w, theta = problem.w, [problem.w] * len(SIZES)
    for t, chosen in enumerate(ROUNDS):
        local = []
        for i in chosen:
            own, theta[i] = w, w
            for batch in problem.batches(i, t):
                for _ in range(steps):
                    gw, gp = problem.gradient(theta[i], problem.p[i], *batch)
                    theta[i] = theta[i] - personal_lr * (gw + lam * (theta[i] - own))
                    problem.p[i] = problem.p[i] - personal_lr * gp
                own = own - LR * lam * (own - theta[i])
            local.append(own)
        w = (1 - beta) * w + beta * np.mean(local, axis=0)
    for i, state in enumerate(outcome.private_states):
        np.testing.assert_allclose(problem.vector(state), theta[i], atol=1e-10)
    return w


TRANSCRIPTIONS: list[tuple[Callable[..., Vector], dict[str, Any]]] = [
    (fedprox, {"mu": 0.7}),
    (scaffold, {"server_lr": 0.8}),
    (feddyn, {"alpha": 0.4}),
    (fedavgm, {"server_lr": 0.7, "momentum": 0.8}),
    (fedadam, {"server_lr": 0.1, "beta1": 0.8, "beta2": 0.7, "tau": 0.05}),
    (fedyogi, {"server_lr": 0.1, "beta1": 0.8, "beta2": 0.7, "tau": 0.05}),
    (pfedme, {"personal_lr": 0.1, "lam": 2.0, "steps": 3, "beta": 0.6}),
]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("algorithm", "hyper"), TRANSCRIPTIONS, ids=[each[0].__name__ for each in TRANSCRIPTIONS])
def test_three_rounds_of_three_among_four_clients(
    algorithm: Callable[..., Vector], hyper: dict[str, Any], weights: str
) -> None:
    """On any weights the method acts on what is shared, and private parameters are trained by plain SGD and stay."""
    outcome, problem = federate(algorithm.__name__, weights, **hyper), Problem(weights)
    expected = algorithm(problem, outcome, **hyper)
    np.testing.assert_allclose(problem.vector(outcome.sent), expected, atol=1e-10)
    assert np.abs(expected - problem.w).max() > 0.01  # it did move
    assert (weights == "pfedpara") == bool(problem.private)
    for client, state in enumerate(outcome.private_states):
        np.testing.assert_allclose(problem.vector(state, private=True), problem.p[client], atol=1e-10)


# Limits


def assert_same(one: Outcome, other: Outcome, atol: float) -> None:
    """Shared and private parameters are the same, but for ``atol``; the states that only one method has are not."""
    for ours, theirs in zip((one.sent, *one.private_states), (other.sent, *other.private_states), strict=True):
        assert theirs.keys() <= ours.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=atol)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_fedprox_without_its_term_is_fedavg(weights: str) -> None:
    assert_same(federate("fedprox", weights, mu=0.0), federate("fedavg", weights), atol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_fedavgm_without_momentum_is_fedavg(weights: str) -> None:
    assert_same(federate("fedavgm", weights, momentum=0.0, server_lr=1.0), federate("fedavg", weights), atol=1e-12)


@pytest.mark.parametrize("weights", ["dense", "fedpara", "lowrank"])
def test_scaffold_with_equal_clients_is_fedavg(weights: str) -> None:
    """All clients have the same samples, in one batch, and take part: c and all c_i stay the same."""
    everybody = ((0, 1, 2, 3),) * 3
    ours, fedavg = (
        federate(algo, weights, samples=lambda client: data(1), rounds=everybody, batch_size=SIZES[1])
        for algo in ("scaffold", "fedavg")
    )
    assert any(tensor.abs().max() > 0.01 for name, tensor in ours.sent.items() if name.startswith("control."))
    assert_same(ours, fedavg, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_feddyn_s_limit_is_fedavg_s_clients_and_a_server_that_repeats_all_moves(weights: str) -> None:
    """α → 0: θ^t = mean of θ_k + Σ over rounds so far of |P| / m · (mean of θ_k − θ^{t−1})."""
    outcome, problem = federate("feddyn", weights, alpha=1e-9), Problem(weights)
    theta, moves = problem.w, np.zeros_like(problem.w)
    for t, chosen in enumerate(ROUNDS):
        mean = np.mean([problem.sgd(k, t, theta)[0] for k in chosen], axis=0)
        moves = moves + len(chosen) / len(SIZES) * (mean - theta)
        theta = mean + moves
    np.testing.assert_allclose(problem.vector(outcome.sent), theta, atol=1e-6)


@pytest.mark.parametrize(
    ("Aggregator", "second_moment"),
    [
        (FedAdamAggregator, [0.75 * 0.16 + 0.25 * 0.09, 0.75 * 0.16 + 0.25 * 0.25]),
        (FedYogiAggregator, [0.16 - 0.25 * 0.09, 0.16 + 0.25 * 0.25]),  # Δ² below τ² lowers v, above raises it
    ],
)
def test_the_first_step_in_closed_form(Aggregator: type[FedAdamAggregator], second_moment: list[float]) -> None:
    """Without bias correction: η (1 − β1) Δ / (√v + τ), from Δ = 0.3 and −0.5, τ = 0.4, β2 = 0.75."""
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(model.weight)
    hyper = FedAdamHyper(server_lr=2.0, beta1=0.9, beta2=0.75, tau=0.4)
    clients = [torch.tensor([[1.1, 0.2]], dtype=torch.float64), torch.tensor([[1.5, 0.8]], dtype=torch.float64)]
    found = Aggregator(model, hyper, 2).aggregate([(1, {"weight": clients[0]}), (1, {"weight": clients[1]})])
    step = 2.0 * 0.1 * np.array([0.3, -0.5]) / (np.sqrt(second_moment) + 0.4)
    np.testing.assert_allclose(found["weight"][0], 1 + step, atol=1e-12)


# Real jobs

STATEFUL = ("scaffold", "feddyn", "fedadam")
JOB = ("--clients-per-round", "6", "--epochs", "1", "--checkpoint-every", "1")


@pytest.mark.slow
def test_a_job_sends_control_variates_and_gives_the_same_bits_on_any_ranks(tmp_path: Path) -> None:
    options = ("--algo", "fedavg", *STATEFUL, "--parameterization", "dense", "pfedpara", "--rounds", "2", *JOB)
    for ranks in (1, 3):
        done = run(*options, "--out", str(tmp_path / str(ranks)), ranks=ranks)
        assert (done.returncode, done.stderr) == (0, "")
    for weights in ("", "-pfedpara"):
        for algo in STATEFUL:
            same_findings(*(directory(tmp_path / ranks, algo + weights) for ranks in ("1", "3")))
        labels = {"fedavg": weights.removeprefix("-") or "fedavg"} | {algo: algo + weights for algo in STATEFUL}
        sent = {algo: summary(tmp_path / "3", label)["transmitted"] for algo, label in labels.items()}
        for way in ("parameters_up", "parameters_down"):
            assert sent["scaffold"][way] == 2 * sent["fedavg"][way] > 0
            assert sent["feddyn"][way] == sent["fedadam"][way] == sent["fedavg"][way]


@pytest.mark.slow
@pytest.mark.parametrize("algo", STATEFUL)
def test_a_killed_job_resumes_with_all_its_state(tmp_path: Path, algo: str) -> None:
    options = ("--algo", algo, "--rounds", "6", *JOB)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*options, "--out", str(whole), ranks=2).returncode == 0
    job = start(*options, "--out", str(killed), ranks=2)
    wait_for_round(job, directory(killed, algo) / "rounds.csv", 2)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    assert not (directory(killed, algo) / "summary.json").exists()
    assert run(*options, "--resume", "--out", str(killed), ranks=3).returncode == 0
    same_findings(directory(killed, algo), directory(whole, algo))
