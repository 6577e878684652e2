"""FedPAC against a transcription of its authors' algorithm in NumPy, its program, and what travels."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from baselines.adapter import RoundContext
from baselines.fedpac import combine
from benchmarks.federation.registry import METHODS
from tests.methods.test_personal import (
    BODY,
    EPOCHS,
    HEAD,
    LR,
    SIZES,
    START,
    Batch,
    Vector,
    build,
    epochs,
    flat,
    gradient,
    network,
    samples,
    sgd,
)
from tests.support import refusal

torch.set_num_threads(1)
LAM = 3.0


def features(theta: Vector, x: Vector) -> Vector:
    return np.tanh(x @ theta[:12].reshape(4, 3).T + theta[12:16])


def describe(theta: Vector, client: int) -> tuple[Vector, Vector, float]:
    """As the authors' loops have it: the classes' means, their samples, and V."""
    x, y = (tensor.numpy() for tensor in samples(client).tensors)
    f, means, counts, v = features(theta, x), np.zeros((3, 4)), np.zeros(3), 0.0
    for k in range(3):
        of_k = f[y == k]
        if len(of_k):
            share, counts[k] = len(of_k) / len(y), len(of_k)
            means[k] = of_k.mean(0)
            v += share * np.trace(of_k.T @ of_k / len(of_k)) - share**2 * (means[k] @ means[k])
    return means, counts, v / len(y)


def program(i: int, h: list[Vector], v: list[float]) -> Vector:
    """The least αᵀPα on the simplex, among the stationary points of all sets of clients."""
    P = np.diag(v) + np.array([[np.sum((h[i] - a) * (h[i] - b)) for b in h] for a in h])
    best: Vector = np.eye(len(h))[0]
    for size in range(1, len(h) + 1):
        for some in map(list, combinations(range(len(h)), size)):
            alpha = np.zeros(len(h))
            alpha[some] = np.linalg.solve(P[np.ix_(some, some)], np.ones(size))
            alpha /= alpha.sum()
            if alpha.min() >= 0 and alpha @ P @ alpha < best @ P @ best:
                best = alpha
    best = best * (best > 1e-3)
    return best / best.sum()


def test_the_heads_program_is_solved() -> None:
    stream = np.random.default_rng(0)
    for spread in (0.01, 0.1, 1.0):
        h, v = spread * stream.normal(size=(5, 12)), stream.uniform(0.001, 0.1, 5)
        np.testing.assert_allclose(combine(h, v), [program(i, list(h), list(v)) for i in range(5)], atol=1e-9)
    np.testing.assert_allclose(combine(np.ones((2, 3)), np.array([1.0, 3.0])), [[0.75, 0.25]] * 2)
    assert np.isfinite(combine(np.zeros((3, 2)), np.zeros(3))).all()


def test_fedpac_is_its_algorithm() -> None:
    """The second client misses the second round of three, and its head of the first one waits for it."""
    takes_part = [(0, 1, 2), (0, 2), (0, 1, 2)]
    phi, heads, judged = START, [START] * 3, [START] * 3
    known: dict[int, Vector] = {}
    mixed: list[Vector] = []
    for number, clients in enumerate(takes_part):
        h, v, sent, trained = [], [], [], []
        for client in clients:
            theta = np.where(HEAD, heads[client], phi)
            local, counts, variance = describe(theta, client)
            h.append(local * counts[:, None] / counts.sum())
            v.append(variance)
            work = epochs(client, number, 1 + EPOCHS)
            theta = sgd(theta, work[:1], where=HEAD)
            goal = np.stack([known.get(k, local[k]) for k in range(3)])
            for batch in (batch for epoch in work[1:] for batch in epoch):
                theta = theta - LR * BODY * (gradient(theta, batch) + bool(number) * pull(theta, batch, goal))
            trained.append(theta)
            sent.append(describe(theta, client)[:2])
            judged[client] = theta
        sizes = [SIZES[client] for client in clients]
        phi = np.average(trained, axis=0, weights=sizes)
        known = {}
        for k in range(3):
            if total := sum(counts[k] for _, counts in sent):
                known[k] = sum(counts[k] * means[k] for means, counts in sent) / total
        for place, client in enumerate(clients):
            mixed.append(program(place, h, v))
            heads[client] = np.average(trained, axis=0, weights=mixed[-1])
    assert any(0.01 < weight < 0.99 for alpha in mixed for weight in alpha)
    assert np.ptp([head[HEAD] for head in heads], axis=0).max() > 0.01

    trainer, server = (build("fedpac", lam=LAM) for _ in range(2))
    aggregator = server.make_aggregator(3)
    found: list[Any] = [None] * 3
    for number, clients in enumerate(takes_part):
        updates = []
        for client in clients:
            trainer.set_model_params(aggregator.get_model_params() | aggregator.for_client(client))
            trainer.fit(samples(client), RoundContext(0, client, number))
            found[client] = flat(trainer.model)
            updates.append((float(SIZES[client]), trainer.get_model_params()))
            aggregator.note(client, updates[-1][1])
        aggregator.set_model_params(aggregator.aggregate(updates))
    np.testing.assert_allclose(flat(server.model)[BODY], phi[BODY], atol=1e-9)
    np.testing.assert_allclose(flat(server.model)[HEAD], START[HEAD])  # what a newcomer gets
    for client in range(3):
        np.testing.assert_allclose(found[client], judged[client], atol=1e-9)
        own = torch.cat([tensor.flatten() for tensor in aggregator.for_client(client).values()])
        np.testing.assert_allclose(own, heads[client][HEAD], atol=1e-9)


def pull(theta: Vector, batch: Batch, goal: Vector) -> Vector:
    """∇ of λ · mean (f − c_y)²."""
    (x, y), found = batch, np.zeros_like(theta)
    f = features(theta, x)
    inner = LAM * 2 * (f - goal[y]) / f.size * (1 - f * f)
    found[:16] = np.concatenate([(inner.T @ x).ravel(), inner.sum(0)])
    return found


def test_a_class_that_nobody_has_has_no_centroid() -> None:
    server = METHODS["fedpac"].build(network()).make_aggregator(2)
    trainer = METHODS["fedpac"].build(network(), epochs=1)
    x, y = samples(0).tensors
    trainer.fit(torch.utils.data.TensorDataset(x[y != 1], y[y != 1]), RoundContext(0, 0, 0))
    server.note(1, trainer.get_model_params())
    new = server.aggregate([(1.0, trainer.get_model_params())])
    assert new["centroids_known"].tolist() == [1, 0, 1]
    assert not new["centroids"][1].any()
    torch.testing.assert_close(server.for_client(1)["2.weight"], trainer.model[2].weight.detach())


def test_what_fedpac_needs_is_a_sentence(tmp_path: Path) -> None:
    for model, sentence in (
        (nn.Sequential(nn.Linear(3, 3), nn.PReLU()), "the last layer is a PReLU"),
        (nn.Linear(3, 3), "no layer is before the last one"),
    ):
        with pytest.raises(ValueError, match=sentence):
            METHODS["fedpac"].build(model)
    trainer = METHODS["fedpac"].build(network(), epochs=1)
    trainer.fit(samples(0), RoundContext(0, 0, 0))
    with pytest.raises(ValueError, match="whose updates these are is not known"):
        trainer.make_aggregator(2).aggregate([(1.0, trainer.get_model_params())])
    words = ("--algo", "fedpac", "--clients", "2", "--runtime", "fedml")
    assert "fedpac sends each a head of its own; take --runtime own" in refusal(tmp_path, *words)
