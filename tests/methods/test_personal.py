"""The personal baselines against transcriptions of their papers' algorithms in NumPy, and in their limits."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext, evaluate
from baselines.base import Trainer, copy_of
from benchmarks.federation.registry import METHODS, find_method
from pfedpara.parameterize import parameterize
from pfedpara.sharing import keep_private, layers, split_parameters
from pfedpara.streams import stream_state
from tests.support import directory, killed_after, refusal, run, same_findings

torch.set_num_threads(1)
NEW = ("ditto", "fedrep", "lg-fedavg", "apfl", "fedbabu", "per-fedavg", "fedbn", "fedavg-ft")
SIZES, BATCH, EPOCHS, LR, ROUNDS = (10, 12, 14), 4, 2, 0.3, 2
Vector = np.ndarray
Batch = tuple[Vector, Vector]


# Three clients of a network 3-4-3, in float64


def network(norm: type[nn.Module] | None = None) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), *([norm(4)] if norm else []), nn.Tanh(), nn.Linear(4, 3)).double()


def samples(client: int) -> TensorDataset:
    stream = torch.Generator().manual_seed(client)
    y = torch.randint(0, 3, (SIZES[client],), generator=stream)
    x = torch.randn(SIZES[client], 3, generator=stream, dtype=torch.float64) + y[:, None] * (client + 1) / 2
    return TensorDataset(x, y)


def build(algo: str, norm: type[nn.Module] | None = None, **hyper: Any) -> Trainer:
    chosen = {"lr": LR, "epochs": EPOCHS, "batch_size": BATCH, "clip_norm": 0.0} | hyper
    return METHODS[algo].build(network(norm), **chosen)


def flat(model: nn.Module) -> Vector:
    """The tensors of the model end to end, parameters first."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    return torch.cat([t.detach().flatten() for t in tensors]).numpy()


def federate(algo: str, norm: type[nn.Module] | None = None, **hyper: Any) -> tuple[Vector, list[Vector]]:
    """Runs ROUNDS rounds. Returns the server's model, and the one that each client is judged on."""
    trainer, server = build(algo, norm, **hyper), build(algo, norm, **hyper)
    aggregator = server.make_aggregator(3)
    states = [trainer.get_private_state()] * 3

    def take_up(client: int) -> None:
        trainer.set_private_state(states[client])
        trainer.set_model_params(aggregator.get_model_params())

    for number in range(ROUNDS):
        updates, judged = [], []
        for client in range(3):
            take_up(client)
            context = RoundContext(0, client, number)
            trainer.fit(samples(client), context)
            states[client] = trainer.get_private_state()
            updates.append((SIZES[client], trainer.get_model_params()))
            with trainer.deployed(samples(client), context) as model:
                judged.append(flat(model))
        aggregator.set_model_params(aggregator.aggregate(updates))
    for client in range(3) if trainer.judged_on == "received" else ():
        take_up(client)
        with trainer.deployed(samples(client), RoundContext(0, client, ROUNDS - 1)) as model:
            judged[client] = flat(model)
    return flat(server.model), judged


# The same in NumPy: θ = (W1, b1, W2, b2) end to end, with the gradient of its cross-entropy by the chain rule

START = flat(network())
BODY = np.arange(len(START)) < 16  # W1, b1
HEAD = ~BODY
ALL = BODY | HEAD


def gradient(theta: Vector, batch: Batch) -> Vector:
    x, y = batch
    W1, b1, W2, b2 = theta[:12].reshape(4, 3), theta[12:16], theta[16:28].reshape(3, 4), theta[28:]
    h = np.tanh(x @ W1.T + b1)  # (B, 4)
    p = np.exp(h @ W2.T + b2)  # (B, 3)
    delta = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
    inner = delta @ W2 * (1 - h * h)  # (B, 4)
    return np.concatenate([(inner.T @ x).ravel(), inner.sum(0), (delta.T @ h).ravel(), delta.sum(0)])


def epochs(client: int, number: int, count: int, purpose: str = "training") -> list[list[Batch]]:
    """The batches of ``count`` epochs that the client's stream gives in a round."""
    x, y = (tensor.numpy() for tensor in samples(client).tensors)
    torch.set_rng_state(stream_state(purpose, 0, client, number))
    shuffles = (torch.randperm(len(y)).numpy() for _ in range(count))
    return [[(x[b], y[b]) for b in np.split(s, range(BATCH, len(y), BATCH))] for s in shuffles]


def sgd(
    theta: Vector, work: list[list[Batch]], where: Vector = ALL, pull: Callable[[Vector], Any] = lambda v: 0
) -> Vector:
    for batch in (batch for epoch in work for batch in epoch):
        theta = theta - LR * where * (gradient(theta, batch) + pull(theta))
    return theta


def mean(models: list[Vector]) -> Vector:
    return np.average(models, axis=0, weights=SIZES)


def rounds() -> Iterator[tuple[int, list[list[list[Batch]]]]]:
    """Each round's number, and what each client's epochs are made of."""
    return ((t, [epochs(k, t, EPOCHS) for k in range(3)]) for t in range(ROUNDS))


def check(found: tuple[Vector, list[Vector]], shared: Vector, judged: list[Vector], travels: Vector = ALL) -> None:
    np.testing.assert_allclose(found[0][travels], shared[travels], atol=1e-9)
    for ours, theirs in zip(found[1], judged, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert np.abs(shared - START)[travels].max() > 0.01  # something was learned


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_ditto_follows_algorithm_1(lam: float) -> None:
    w, v = START, [START] * 3
    for _, work in rounds():
        v = [sgd(v_k, own, pull=lambda u, w=w: lam * (u - w)) for v_k, own in zip(v, work, strict=True)]
        w = mean([sgd(w, own) for own in work])
    check(federate("ditto", lam=lam), w, v)


def test_fedrep_follows_algorithm_1() -> None:
    phi, own = START, [START] * 3
    for t, _ in rounds():
        for k in range(3):
            work = epochs(k, t, 3 + EPOCHS)
            theta = sgd(np.where(HEAD, own[k], phi), work[:3], where=HEAD)
            own[k] = sgd(theta, work[3:], where=BODY)
        phi = mean(own)
    check(federate("fedrep", head_epochs=3), phi, [np.where(HEAD, h, phi) for h in own], travels=BODY)


@pytest.mark.parametrize(("algo", "stays"), [("lg-fedavg", BODY), ("fedper", HEAD)])
def test_lg_fedavg_and_fedper_train_all_and_average_their_part(algo: str, stays: Vector) -> None:
    w, own = START, [START] * 3
    for _, work in rounds():
        own = [sgd(np.where(stays, own[k], w), work[k]) for k in range(3)]
        w = mean(own)
    judged = own if algo == "fedper" else [np.where(stays, theta, w) for theta in own]
    check(federate(algo), w, judged, travels=~stays)


@pytest.mark.parametrize(("alpha", "adaptive"), [(0.0, False), (0.4, False), (1.0, False), (0.4, True), (0.99, True)])
def test_apfl_follows_algorithm_1(alpha: float, adaptive: bool) -> None:
    w, v, a = START, [START + 0.0] * 3, [alpha] * 3
    for _, work in rounds():
        local = []
        for k in range(3):
            w_k = w
            for number, batch in enumerate(batch for epoch in work[k] for batch in epoch):
                at_mixture = gradient(a[k] * v[k] + (1 - a[k]) * w_k, batch)
                slope = (v[k] - w_k) @ at_mixture
                v[k] = v[k] - LR * a[k] * at_mixture
                w_k = w_k - LR * gradient(w_k, batch)
                if adaptive and number == 0:
                    a[k] = min(max(a[k] - LR * slope, 0), 1)
            local.append(w_k)
        w = mean(local)
    assert (len(set(a)) > 1) == adaptive  # the clients went apart
    assert (1 in a) == (alpha in (0.99, 1))  # where it ends on the edge
    judged = [a[k] * v[k] + (1 - a[k]) * local[k] for k in range(3)]
    check(federate("apfl", alpha=alpha, adaptive=adaptive), w, judged)


def test_fedbabu_follows_algorithm_1() -> None:
    w = START
    for _, work in rounds():
        w = mean([sgd(w, own, where=BODY) for own in work])
    np.testing.assert_allclose(w[HEAD], START[HEAD])
    check(
        federate("fedbabu", finetune_epochs=3),
        w,
        [sgd(w, epochs(k, ROUNDS - 1, 3, "deployment")) for k in range(3)],
        travels=BODY,
    )


@pytest.mark.parametrize("count", [0, 3])
def test_fedavg_ft_is_fedavg_and_then_sgd(count: int) -> None:
    w = START
    for _, work in rounds():
        w = mean([sgd(w, own) for own in work])
    judged = [sgd(w, epochs(k, ROUNDS - 1, count, "deployment")) for k in range(3)]
    check(federate("fedavg-ft", finetune_epochs=count), w, judged)


def hessian(theta: Vector, batch: Batch) -> Vector:
    """∇²f (31, 31), by torch."""

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        W1, b1, W2, b2 = (p.view(s) for p, s in zip(parameters.split([12, 4, 12, 3]), shapes, strict=True))
        return nn.functional.cross_entropy((torch.from_numpy(batch[0]) @ W1.T + b1).tanh() @ W2.T + b2, target)

    shapes, target = [(4, 3), (4,), (3, 4), (3,)], torch.from_numpy(batch[1])
    return torch.autograd.functional.hessian(loss, torch.from_numpy(theta)).numpy()


@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_per_fedavg_follows_algorithm_1_with_the_true_hessian(variant: str) -> None:
    inner, width, w = 0.2, {"fo": 2, "hf": 3}[variant], START
    for _, work in rounds():
        local = []
        for own in work:
            w_k = w
            for epoch in own:
                for first in range(0, len(epoch) - width + 1, width):
                    D, D1, *D2 = epoch[first : first + width]
                    g = gradient(w_k - inner * gradient(w_k, D), D1)
                    if D2:
                        g = g - inner * hessian(w_k, *D2) @ g
                    w_k = w_k - LR * g
            local.append(w_k)
        w = mean(local)
    judged = []
    for k in range(3):
        (batches,) = epochs(k, ROUNDS - 1, 1, "deployment")
        theta = w
        for batch in batches[:2]:
            theta = theta - inner * gradient(theta, batch)
        judged.append(theta)
    check(federate("per-fedavg", variant=variant, inner_lr=inner, adapt_steps=2, delta=1e-5), w, judged)


def test_per_fedavg_s_difference_errs_by_the_square_of_delta() -> None:
    exact, *coarse = (federate("per-fedavg", variant="hf", delta=delta)[0] for delta in (1e-5, 0.1, 0.2))
    errors = [np.abs(w - exact).max() for w in coarse]
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.2)


# Running statistics


def batch_norm_sgd(t: dict[str, torch.Tensor], work: list[list[Batch]]) -> dict[str, torch.Tensor]:
    """SGD on a network with BatchNorm written out, and its running statistics of momentum 0.1."""
    t = copy_of(t)
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    for x, y in (batch for epoch in work for batch in epoch):
        W1, b1, scale, shift, W2, b2 = parameters = [t[name].requires_grad_() for name in names]
        z = torch.from_numpy(x) @ W1.T + b1  # (B, 4)
        centred = z - z.mean(0)
        normal = centred / (centred.square().mean(0) + 1e-5).sqrt()
        logits = (normal * scale + shift).tanh() @ W2.T + b2
        loss = -logits.log_softmax(1)[range(len(y)), y].mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            t |= {n: p - LR * g for n, p, g in zip(names, parameters, gradients, strict=True)}
            unbiased = centred.square().sum(0) / (len(y) - 1)
            t["1.running_mean"] = 0.9 * t["1.running_mean"] + 0.1 * z.mean(0)
            t["1.running_var"] = 0.9 * t["1.running_var"] + 0.1 * unbiased
    return copy_of(t)


@pytest.mark.parametrize("algo", ["fedbn", "fedavg"])
def test_statistics_stay_with_fedbn_and_are_averaged_by_fedavg(algo: str) -> None:
    w = {n: t for n, t in network(nn.BatchNorm1d).state_dict().items() if t.is_floating_point()}
    own = [w] * 3
    stays = {name for name in w if name.startswith("1.")} if algo == "fedbn" else set()
    assert len(w) - len(stays) == (4 if algo == "fedbn" else 8)
    for _, work in rounds():
        trained = [batch_norm_sgd({n: (own[k] if n in stays else w)[n] for n in w}, work[k]) for k in range(3)]
        own = trained
        w = {n: sum(size * t[n] for size, t in zip(SIZES, own, strict=True)) / sum(SIZES) for n in w}
    server, judged = federate(algo, nn.BatchNorm1d)
    for k in range(3):
        expected = network(nn.BatchNorm1d)
        expected.load_state_dict({n: (own[k] if n in stays else w)[n] for n in w}, strict=False)
        np.testing.assert_allclose(judged[k], flat(expected), atol=1e-9)
    if algo == "fedavg":
        np.testing.assert_allclose(server, judged[0], atol=1e-9)


@pytest.mark.parametrize("algo", ["fedprox", "scaffold", "feddyn", "fedavgm", "fedadam", "fedyogi", "pfedme", "ditto"])
def test_no_optimizer_acts_on_statistics(algo: str) -> None:
    hyper = {"lr": 0.05, "batch_size": BATCH} | ({"beta": 0.5} if algo == "pfedme" else {})  # its mixture
    trainer, server = (build(algo, nn.BatchNorm1d, **hyper) for _ in range(2))
    aggregator = server.make_aggregator(3)
    updates = []
    for client in range(3):
        trainer.set_model_params(aggregator.get_model_params())
        trainer.fit(samples(client), RoundContext(0, client, 0))
        updates.append((1.0, trainer.get_model_params()))
    new = aggregator.aggregate(updates)
    start = network(nn.BatchNorm1d).state_dict()
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(new[name], sum(update[name] for _, update in updates) / 3)
        assert (new[name] - start[name]).abs().min() > 1e-3
        assert [sent for sent in (*new, *aggregator.get_server_state()) if name in sent] == [name]


def test_what_a_client_deploys_leaves_its_statistics_alone() -> None:
    trainer = build("fedavg-ft", nn.BatchNorm1d)
    before = flat(trainer.model)
    with trainer.deployed(samples(0), RoundContext(0, 0, 0)) as model:
        assert np.abs(flat(model) - before)[-8:].min() > 1e-3
    np.testing.assert_array_equal(flat(trainer.model), before)


def test_statistics_follow_their_module() -> None:
    model = network(nn.BatchNorm1d)
    assert [*split_parameters(model)[0]][2:6] == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    keep_private([model[1]])
    shared, private = split_parameters(model)
    assert list(private) == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert not shared.keys() & private.keys()


# Limits


def test_ditto_without_pull_is_local_training_beside_fedavg() -> None:
    w, v = federate("ditto", lam=0.0)
    np.testing.assert_array_equal(w, federate("fedavg")[0])
    np.testing.assert_array_equal(v, federate("local")[1])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_apfl_s_ends_are_fedavg_and_local_training(alpha: float) -> None:
    w, judged = federate("apfl", alpha=alpha)
    np.testing.assert_array_equal(w, federate("fedavg")[0])
    if alpha:
        np.testing.assert_array_equal(judged, federate("local")[1])
    else:
        np.testing.assert_allclose(mean(judged), w, atol=1e-12)


def test_fedrep_without_head_epochs_trains_fedbabu_s_body() -> None:
    np.testing.assert_array_equal(federate("fedrep", head_epochs=0)[0], federate("fedbabu")[0])


def test_fedavg_ft_without_fine_tuning_is_fedavg() -> None:
    for ours, theirs in zip(federate("fedavg-ft", finetune_epochs=0), federate("fedavg"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_per_fedavg_with_a_vanishing_inner_step_needs_no_hessian() -> None:
    tiny = {"inner_lr": 1e-12, "lr": LR}
    np.testing.assert_allclose(
        federate("per-fedavg", variant="hf", **tiny)[0],
        federate("per-fedavg", variant="hf", delta=1.0, **tiny)[0],
        atol=1e-9,
    )


# Layers, dense and factored

WEIGHTS = ("dense", "fedpara", "lowrank", "pfedpara")


def deep(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 24),
        *([nn.GroupNorm(2, 24)] if norm else []),
        nn.ReLU(),
        nn.Linear(24, 24),
        nn.Linear(24, 24, bias=False),
    )


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_factored_layer_is_one_layer_with_all_its_factors(weights: str) -> None:
    plain = deep()
    model = parameterize(deep(), weights, 0.5) if weights != "dense" else deep()
    found = layers(model)
    assert [layer[0] for layer in found] == [model[0], model[2], model[3]]
    held = [{id(p) for part in layer for p in part.parameters(recurse=False)} for layer in found]
    assert held == [{id(p) for p in layer.parameters()} for layer in (model[0], model[2], model[3])]
    assert len(layers(plain)) == 3


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("algo", "private"), [("fedper", "3."), ("fedrep", "3."), ("fedbabu", "3."), ("lg-fedavg", "0.")]
)
def test_whole_layers_stay(algo: str, private: str, weights: str) -> None:
    trainer = find_method(algo, weights).build(deep())
    assert not [name for name in trainer.get_model_params() if name.startswith(private)]
    others = [name for name in trainer.get_private_state() if not name.startswith(private)]
    assert bool(others) == (weights == "pfedpara")
    with pytest.raises(ValueError, match="private_layers must be below the model's 3 layers, got 3"):
        find_method(algo, weights).build(deep(), private_layers=3)


def test_fedper_keeps_as_many_layers_as_asked_for() -> None:
    assert list(METHODS["fedper"].build(deep(), private_layers=2).get_model_params()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("algo", NEW)
def test_every_method_trains_on_every_weight_or_says_why_not(algo: str, weights: str) -> None:
    method, hyper = find_method(algo, weights), {"batch_size": 8, "epochs": 2, "lr": 0.05}
    if weights == "pfedpara" and algo in ("ditto", "apfl"):
        with pytest.raises(ValueError, match="cannot be private in parts; take --parameterization dense, fedpara"):
            method.build(deep(), **hyper)
        return
    trainer = method.build(deep(norm=algo == "fedbn"), **hyper)
    data = TensorDataset(torch.randn(40, 24), torch.arange(40) % 24)

    def loss(number: int) -> float:
        with trainer.deployed(data, RoundContext(0, 0, number)) as model:
            return evaluate(model, data)["test_loss"]

    sent, kept = trainer.get_model_params(), trainer.get_private_state()
    before = loss(0)
    for number in range(3):
        trainer.fit(data, RoundContext(0, 0, number))
    assert loss(2) < before
    now = trainer.get_model_params() | trainer.get_private_state()
    still = {name for name, tensor in (sent | kept).items() if torch.equal(tensor, now[name])}
    if algo == "fedbabu":
        assert still == {n for n in kept if n.startswith("3.")}  # the head, whole
    else:
        assert still <= {"alpha"}


# Bad input


@pytest.mark.parametrize(("variant", "least"), [("fo", 33), ("hf", 65)])
def test_per_fedavg_needs_several_batches(variant: str, least: int) -> None:
    trainer = build("per-fedavg", variant=variant, batch_size=32)
    trainer.check_client(least)
    with pytest.raises(ValueError, match=f"hence at least {least} at batch size 32"):
        trainer.check_client(least - 1)
    with pytest.raises(ValueError, match=f"a client has 10 training samples, but a step of {variant} takes"):
        trainer.fit(samples(0), RoundContext(0, 0, 0))


def test_methods_that_a_model_does_not_suit() -> None:
    with pytest.raises(ValueError, match="no norm layer to keep private"):
        build("fedbn")
    with pytest.raises(ValueError, match="no norm layer to keep private"):
        build("fedbn", lambda width: nn.LayerNorm(width, elementwise_affine=False))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a mixture of two models has no running statistics"):
        build("apfl", nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param(("--algo", "per-fedavg", "--batch-size", "400"), "takes 2 batches", marks=pytest.mark.slow),
        pytest.param(("--algo", "fedbn"), "fedbn: the model has no norm layer", marks=pytest.mark.slow),
        pytest.param(
            ("--algo", "apfl", "--set", "alpha=1.5"), "less than or equal to 1, got '1.5'", marks=pytest.mark.slow
        ),
        pytest.param(("--algo", "ditto", "--parameterization", "pfedpara"), "private in parts", marks=pytest.mark.slow),
        pytest.param(("--algo", "lg-fedavg", "--set", "private_layers=2"), "2 layers, got 2", marks=pytest.mark.slow),
    ],
)
def test_nonsense_is_refused_before_any_rank_trains(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    assert sentence in refusal(tmp_path, *options)


# Real jobs

JOB = (
    "--rounds",
    "3",
    "--epochs",
    "1",
    "--clients",
    "4",
    "--clients-per-round",
    "3",
    "--checkpoint-every",
    "1",
    "--eval-every",
    "0",
)
CASES = {"ditto": (), "fedbn": ("--model", "cnn-bn", "--fraction", "0.1")}


@pytest.mark.slow
@pytest.mark.parametrize("algo", CASES)
def test_any_number_of_ranks_and_a_kill_in_between_give_the_same_bits(algo: str, tmp_path: Path) -> None:
    options = ("--algo", algo, *CASES[algo], *JOB)
    for name, ranks in (("alone", 1), ("spread", 3)):
        assert run(*options, "--out", str(tmp_path / name), ranks=ranks).returncode == 0
    same_findings(directory(tmp_path / "spread", algo), directory(tmp_path / "alone", algo))
    out = tmp_path / "killed"
    assert run(*options, "--out", str(out), ranks=3, before=killed_after(2)).returncode != 0
    assert not list(out.rglob("summary.json"))
    again = run(*options, "--out", str(out), "--resume", ranks=2)
    assert (again.returncode, again.stderr) == (0, "")
    same_findings(directory(out, algo), directory(tmp_path / "alone", algo))
    shutil.rmtree(out)
