"""FedLMT and pFedLMT against transcriptions of their authors' loops in NumPy, on a network 3-8-3."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.federation.registry import METHODS, find_method
from tests.methods import test_personal
from tests.methods.test_personal import EPOCHS, LR, ROUNDS, SIZES, Batch, Vector, epochs, federate, flat

CUTS = np.cumsum([8, 16, 6, 24])  # of b, X (8, 2), Y (3, 2), and the dense head V (3, 8) before its c
CUSTOM = np.arange(57) >= CUTS[2]  # V, c


def network(norm: object = None) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def gradient(theta: Vector, batch: Batch, decay: float) -> Vector:
    """Of the cross-entropy and λ ‖X Yᵀ‖²_F."""
    x, y = batch
    b, X, Y, V, c = np.split(theta, CUTS)
    X, Y, V = X.reshape(8, 2), Y.reshape(3, 2), V.reshape(3, 8)
    h = np.tanh(x @ Y @ X.T + b)  # (B, 8)
    p = np.exp(h @ V.T + c)
    delta = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
    inner = delta @ V * (1 - h * h)  # (B, 8)
    slope = inner.T @ x + 2 * decay * X @ Y.T  # (8, 3)
    return np.concatenate(
        [inner.sum(0), (slope @ Y).ravel(), (slope.T @ X).ravel(), (delta.T @ h).ravel(), delta.sum(0)]
    )


def mean(models: list[Vector]) -> Vector:
    return np.average(models, axis=0, weights=SIZES)


@pytest.mark.parametrize("decay", [0, 0.05])
def test_fedlmt_is_its_algorithm(monkeypatch: pytest.MonkeyPatch, decay: float) -> None:
    monkeypatch.setattr(test_personal, "network", network)
    start = w = flat(METHODS["fedlmt"].build(network()).model)
    for number in range(ROUNDS):
        models = []
        for client in range(3):
            theta = w
            for batch in (batch for epoch in epochs(client, number, EPOCHS) for batch in epoch):
                theta = theta - LR * gradient(theta, batch, decay)
            models.append(theta)
        w = mean(models)
    server, judged = federate("fedlmt", frobenius_decay=decay)
    np.testing.assert_allclose(server, w, atol=1e-12)
    np.testing.assert_allclose(judged[0], w, atol=1e-12)
    assert np.abs(w - start).max() > 0.01


def test_pfedlmt_is_its_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3, 3 and 4 steps the first 2 are the head's; the others are what all clients have in common."""
    monkeypatch.setattr(test_personal, "network", network)
    w = flat(METHODS["pfedlmt"].build(network()).model)
    own = [w] * 3
    for number in range(ROUNDS):
        models = []
        for client in range(3):
            theta = np.where(CUSTOM, own[client], w)
            (work,) = epochs(client, number, 1)
            for step, batch in enumerate(work):
                theta = theta - LR * (CUSTOM if step < 2 else ~CUSTOM) * gradient(theta, batch, 0.05)
            own[client] = theta
            models.append(theta)
        w = mean(models)
    server, judged = federate("pfedlmt", frobenius_decay=0.05, epochs=1)
    np.testing.assert_allclose(server[~CUSTOM], w[~CUSTOM], atol=1e-12)
    for client in range(3):
        np.testing.assert_allclose(judged[client], np.where(CUSTOM, own[client], w), atol=1e-12)
    assert np.abs(own[0] - own[1])[CUSTOM].max() > 0.01


def test_what_travels_and_what_is_refused() -> None:
    travelling = {algo: METHODS[algo].build(network()).travelling for algo in ("fedlmt", "pfedlmt")}
    assert {algo: sum(t.numel() for t in tensors.values()) for algo, tensors in travelling.items()} == {
        "fedlmt": 57,
        "pfedlmt": 30,
    }
    with pytest.raises(ValueError, match="private_layers must be below the model's 2 layers, got 2"):
        METHODS["pfedlmt"].build(network(), private_layers=2)
    with pytest.raises(ValueError, match="fedlmt is on lowrank weights of its own; take --algo fedavg for dense ones"):
        find_method("fedlmt", "dense")
    with pytest.raises(ValueError, match="leaves no weight to factor"):
        METHODS["pfedlmt"].build(network(), ["0"])
