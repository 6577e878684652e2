"""FedALA and FedDBE against transcriptions in NumPy, pooled training against training on all data, and all in jobs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from benchmarks.federation import command_line, options
from benchmarks.federation.registry import METHODS, build_trainer
from benchmarks.federation.summary import digest
from data_partitions import open_store
from pfedpara.streams import stream_seed, stream_state
from tests.methods import test_personal
from tests.methods.test_personal import (
    BATCH,
    EPOCHS,
    HEAD,
    LR,
    ROUNDS,
    START,
    Batch,
    Vector,
    epochs,
    federate,
    gradient,
    mean,
    network,
    samples,
    sgd,
)
from tests.support import directory, killed_after, refusal, rows, run, same_findings, summary

torch.set_num_threads(1)


def loss(theta: Vector, batch: Batch) -> float:
    x, y = batch
    W1, b1, W2, b2 = theta[:12].reshape(4, 3), theta[12:16], theta[16:28].reshape(3, 4), theta[28:]
    logits = np.tanh(x @ W1.T + b1) @ W2.T + b2
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]))


@pytest.mark.parametrize("threshold", [10, 0.004])
def test_fedala_is_its_algorithm(threshold: float) -> None:
    eta, longest = 2.0, []

    def mix(w: Vector, own: Vector, weight: Vector, client: int, first: bool) -> tuple[Vector, Vector]:
        """With the stream as it is: Θ̂, and the weights that were learned."""
        x, y = (tensor.numpy() for tensor in samples(client).tensors)
        chosen = torch.randperm(len(y)).numpy()[: int(0.8 * len(y))]
        batches = [(x[b], y[b]) for b in np.split(chosen, range(BATCH, len(chosen), BATCH))]
        move, losses = (w - own) * HEAD, []
        while True:
            seen = []
            for batch in batches:
                theta = w * ~HEAD + own * HEAD + move * weight
                seen.append(loss(theta, batch) * len(batch[1]))
                weight = np.clip(weight - eta * gradient(theta, batch) * move, 0, 1)
            losses.append(sum(seen) / len(chosen))
            if not first or (len(losses) > 10 and np.std(losses[-10:]) < threshold) or len(losses) == 100:
                break
        longest.append(len(losses))
        return w * ~HEAD + own * HEAD + move * weight, weight

    w, own, weights = START, [START] * 3, [np.ones_like(START)] * 3
    for number in range(ROUNDS):
        for client in range(3):
            theta = w
            torch.set_rng_state(stream_state("training", 0, client, number))
            if number:
                theta, weights[client] = mix(w, own[client], weights[client], client, first=number == 1)
            x, y = (tensor.numpy() for tensor in samples(client).tensors)
            for _ in range(EPOCHS):
                shuffle = torch.randperm(len(y)).numpy()
                work = [[(x[b], y[b]) for b in np.split(shuffle, range(BATCH, len(y), BATCH))]]
                theta = sgd(theta, work)
            own[client] = theta
        w = mean(own)
    server, judged = federate("fedala", weight_lr=eta, threshold=threshold)
    np.testing.assert_allclose(server, w, atol=1e-12)
    for client in range(3):
        torch.set_rng_state(stream_state("deployment", 0, client, ROUNDS - 1))
        expected, weight = mix(w, own[client], weights[client], client, first=False)
        np.testing.assert_allclose(judged[client], expected, atol=1e-12)
        assert 0 < np.mean(weight[HEAD]) < 1  # some was learned
    assert max(longest) == 11 if threshold == 10 else max(longest) > 11


def test_feddbe_is_its_algorithm() -> None:
    kappa, mu = 3.0, 0.7
    w, bias = START, [np.zeros(4)] * 3
    known: Any = None
    for number in range(ROUNDS):
        trained, means = [], []
        for client in range(3):
            theta, z, m = w, bias[client], np.zeros(4)
            for x, y in (batch for epoch in epochs(client, number, EPOCHS) for batch in epoch):
                W1, b1, W2, b2 = theta[:12].reshape(4, 3), theta[12:16], theta[16:28].reshape(3, 4), theta[28:]
                h = np.tanh(x @ W1.T + b1)
                p = np.exp((h + z) @ W2.T + b2)
                delta = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
                m = (1 - mu) * m + mu * h.mean(0)
                back = delta @ W2
                inner = (back + (0 if known is None else kappa * mu * (m - known) / 4 / len(y))) * (1 - h * h)
                slopes = [(inner.T @ x).ravel(), inner.sum(0), (delta.T @ (h + z)).ravel(), delta.sum(0)]
                theta = theta - LR * np.concatenate(slopes)
                z = z if known is None else z - LR * back.sum(0)
            bias[client] = z
            trained.append(theta)
            means.append(m)
        w = mean(trained)
        known = mean(means) if known is None else known
    server, judged = federate("feddbe", kappa=kappa, momentum=mu)
    np.testing.assert_allclose(server[:31], w, atol=1e-12)
    for client in range(3):
        np.testing.assert_allclose(judged[client], [*w, *bias[client]], atol=1e-12)
        assert np.abs(bias[client]).max() > 1e-3


def test_fedluar_is_its_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 5
    monkeypatch.setattr(test_personal, "ROUNDS", rounds)
    network()
    seed = int(torch.randint(1 << 62, ()))  # what the aggregator draws next
    matrices = [slice(0, 12), slice(16, 28)]
    w, recycled, seen = START, set(), []
    updates, scores = [np.zeros(12), np.zeros(12)], np.zeros(2)
    for number in range(rounds):
        new = mean([sgd(w, epochs(client, number, EPOCHS)) for client in range(3)])
        for place, where in enumerate(matrices):
            if place in recycled:
                new[where] = w[where] + updates[place]
            else:
                updates[place] = new[where] - w[where]
                scores[place] = np.linalg.norm(updates[place]) / np.linalg.norm(w[where])
        w = new
        stream = np.random.default_rng(stream_seed("recycled layers", seed, number))
        recycled = {int(stream.choice(2, 1, replace=False, p=1 / scores / (1 / scores).sum())[0])}
        seen.append(recycled)
    server, judged = federate("fedluar")
    np.testing.assert_allclose(server[:-2], w, atol=1e-12)
    np.testing.assert_allclose(judged[0], server)
    assert [place for place in range(2) if server[-2 + place]] == sorted(recycled)
    assert {0} in seen[:-1] or {1} in seen[:-1]


def test_fedluar_leaves_what_the_server_names_out() -> None:
    trainer = METHODS["fedluar"].build(network())
    names = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert trainer.changing(0).keys() == names
    trainer.set_model_params(trainer.get_model_params() | {"recycled": torch.tensor([1.0, 0])})
    assert trainer.changing(1).keys() == names - {"0.weight"}
    trainer.fit(samples(0), RoundContext(0, 0, 1))
    assert trainer.get_model_params().keys() == names - {"0.weight"}
    with pytest.raises(ValueError, match="recycled_layers must be below the 2 weights that the model shares, got 2"):
        METHODS["fedluar"].build(network(), recycled_layers=2)


def test_fedmud_is_its_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """W1 (4, 3) at ρ = 0.5: r = ⌈0.25 · 12 / 4⌉ = 1 and k = 2, so that Δ is the first 12 of 16 products."""
    rounds, magnitude = 3, 0.8
    monkeypatch.setattr(test_personal, "ROUNDS", rounds)
    network()
    seed = int(torch.randint(1 << 62, ()))

    def product(a: Vector, b: Vector) -> Vector:
        return np.array([a[i, m] * b[j, n] for i in (0, 1) for j in (0, 1) for m in (0, 1) for n in (0, 1)])[:12]

    def fixed(number: int) -> tuple[Vector, Vector]:
        stream = np.random.default_rng(stream_seed("fixed factors", seed, number, 0))
        first, second = (stream.uniform(-magnitude, magnitude, (1, 2, 2))[0] for _ in range(2))
        return first, second

    w = START  # W1 with its last update
    for number in range(1, rounds + 1):
        F, G = fixed(number)
        sent = []
        for client in range(3):
            left, right, rest = np.zeros((2, 2)), np.zeros((2, 2)), w[12:]
            for batch in (batch for epoch in epochs(client, number - 1, EPOCHS) for batch in epoch):
                theta = np.concatenate([w[:12] + product(F, right) + product(left, G), rest])
                slope = gradient(theta, batch)
                S = np.concatenate([slope[:12], np.zeros(4)]).reshape(2, 2, 2, 2)  # i, j, m, n
                left, right = (
                    left - LR * np.einsum("ijmn,jn->im", S, G),
                    right - LR * np.einsum("ijmn,im->jn", S, F),
                )
                rest = rest - LR * slope[12:]
            sent.append(np.concatenate([left.ravel(), right.ravel(), rest]))
        left, right, rest = np.split(mean(sent), [4, 8])
        update = product(F, right.reshape(2, 2)) + product(left.reshape(2, 2), G)
        w = np.concatenate([w[:12] + update, rest])
    monkeypatch.setattr(test_personal, "flat", lambda model: flat_of_composed(model))
    server, judged = federate("fedmud", ratio=0.5, magnitude=magnitude)
    np.testing.assert_allclose(server, w, atol=1e-12)
    np.testing.assert_allclose(judged[0], server, atol=1e-12)


def flat_of_composed(model: torch.nn.Module) -> Vector:
    tensors = [tensor for layer in (model[0], model[2]) for tensor in (layer.weight, layer.bias)]  # type: ignore[index]
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def test_fedmud_sends_the_share_that_it_says(tmp_path: Path) -> None:
    """The mlp's hidden weight has 200,704 numbers: r = 49, k = 8, and 2 · 49 · 8² = 6,272 travel, ρ = 1/32 of them."""
    sentence = refusal(tmp_path, "--algo", "fedmud", "--quantize-down", "8")
    assert "--quantize-down: clients add up what they receive" in sentence
    sentence = refusal(tmp_path, "--algo", "fedmud", "--parameterization", "lowrank")
    assert "take --parameterization dense" in sentence
    done = run("--algo", "fedmud", *JOB, "--out", str(tmp_path / "runs"))
    assert (done.returncode, done.stderr) == (0, "")
    sent = 6_272 + 256 + 2_560 + 10 + 1
    ledger = rows(directory(tmp_path / "runs", "fedmud") / "ledger.csv")
    assert {int(row["parameters"]) for row in ledger if row["direction"] == "up"} == {sent}
    down = {
        (int(row["round"]), int(row["client"])): int(row["parameters"]) for row in ledger if row["direction"] == "down"
    }
    there = {key for key, count in down.items() if count == sent}
    assert there == {key for key in down if (key[0] - 1, key[1]) in down}
    assert set(down.values()) == {sent, sent + 200_704}
    newest = directory(tmp_path / "runs", "fedmud") / "checkpoint" / "round-000003"
    of_server = load_file(newest / "shared.safetensors")
    for path in newest.glob("client-*.safetensors"):
        ((name, weight),) = load_file(path).items()  # what the client added up
        if (3, int(path.stem.partition("-")[2])) in down:
            assert np.array_equal(weight, of_server[name])


JOB = (
    *("--rounds", "3", "--clients", "3", "--clients-per-round", "2", "--fraction", "0.1", "--epochs", "1"),
    *("--batch-size", "16", "--eval-every", "0", "--checkpoint-every", "1"),
)
ALGOS = ("fedala", "feddbe", "fedluar", "fedmud", "fedpac", "spafl", "pooled")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    done = run("--algo", *ALGOS, *JOB, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_pooled_trains_one_model_on_everybody_s_samples(alone: Path) -> None:
    words = ["--algo", "pooled", *JOB, "--out", str(alone)]
    (settings,) = options.settings_of(command_line.parser().parse_args(words))
    with open_store(next((alone / "data").rglob("*clients3*.h5"))) as store:
        trainer = build_trainer(settings, store)
        parts = [store.samples(client, "train") for client in range(3)]
    data = TensorDataset(*(torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)))
    for number in range(3):
        trainer.fit(data, RoundContext(0, 0, number))
    found = summary(alone, "pooled")
    assert found["shared_sha256"] == digest(trainer.get_model_params())
    assert found["transmitted"]["parameters_up"] == 3 * 203_530  # of the one place that trains


def test_pooled_refuses_private_state(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, "--algo", "pooled", "--parameterization", "pfedpara")
    assert "so that none of it can be private; take --parameterization dense, fedpara or lowrank" in sentence


def test_feddbe_sends_the_features_mean(alone: Path) -> None:
    sent = summary(alone, "feddbe")["parameters_per_client_round"]
    assert sent == dict.fromkeys(("up", "down"), 203_530 + 256 + 1)


def test_fedpac_and_spafl_send_what_they_say(alone: Path) -> None:
    """Up h and ĉ (10, 256), the classes' samples and V; down c (10, 256) and which are known, and the head."""
    sent = summary(alone, "fedpac")["parameters_per_client_round"]
    assert sent == {"up": 203_530 + 2 * 2_560 + 10 + 1, "down": 203_530 + 2_560 + 10}
    assert summary(alone, "spafl")["parameters_per_client_round"] == dict.fromkeys(("up", "down"), 256 + 10)


def test_what_the_models_must_have() -> None:
    with pytest.raises(ValueError, match="the last layer is a PReLU"):
        METHODS["feddbe"].build(torch.nn.Sequential(torch.nn.PReLU()))
    with pytest.raises(ValueError, match="mixed_layers must be at most the model's 2 layers, got 3"):
        METHODS["fedala"].build(network(), mixed_layers=3)


@pytest.mark.slow
def test_any_number_of_ranks_and_a_kill_in_between_give_the_same_bits(alone: Path, tmp_path: Path) -> None:
    for algo in ALGOS:
        assert run("--algo", algo, *JOB, "--out", str(tmp_path), ranks=3, before=killed_after(2, algo)).returncode != 0
    again = run("--algo", *ALGOS, *JOB, "--out", str(tmp_path), ranks=2)
    assert (again.returncode, again.stderr) == (0, "")
    for algo in ALGOS:
        same_findings(directory(tmp_path, algo), directory(alone, algo))
