"""SpaFL against a transcription of its authors' algorithm in NumPy, and what it keeps and refuses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.spafl import Mask
from benchmarks.federation.registry import METHODS, find_method
from tests.methods.test_personal import (
    EPOCHS,
    LR,
    START,
    Batch,
    Vector,
    build,
    deep,
    epochs,
    gradient,
    network,
    samples,
)

torch.set_num_threads(1)
MATRICES = ((slice(0, 12), 4, 3), (slice(16, 28), 3, 4))  # of θ, with outputs and inputs


def used(theta: Vector, tau: Vector) -> list[Vector]:
    """p of both layers, where ``tau`` (7,) has four thresholds and three."""
    matrices = (np.abs(theta[where].reshape(rows, columns)) for where, rows, columns in MATRICES)
    return [np.mean(W, 1) > t for W, t in zip(matrices, np.split(tau, [4]), strict=True)]


def composed(theta: Vector, tau: Vector) -> Vector:
    found = theta.copy()
    for p, (where, _, columns) in zip(used(theta, tau), MATRICES, strict=True):
        found[where] *= np.repeat(p, columns)
    return found


def revived(theta: Vector, tau: Vector) -> Vector:
    return np.concatenate([t * p.any() for t, p in zip(np.split(tau, [4]), used(theta, tau), strict=True)])


def step(theta: Vector, tau: Vector, batch: Batch, alpha: float) -> tuple[Vector, Vector]:
    """By the chain rule: ∂(w_ij p_i) has ∂p_i = sgn(w) / n of each weight of the row, and −1 of the threshold."""
    slope, of_tau = gradient(composed(theta, tau), batch), []
    for p, (where, rows, columns) in zip(used(theta, tau), MATRICES, strict=True):
        W, G = theta[where].reshape(rows, columns), slope[where].reshape(rows, columns)
        of_p = (G * W).sum(1)
        slope[where] = (G * p[:, None] + of_p[:, None] * np.sign(W) / columns).ravel()
        of_tau.append(-of_p)
    return theta - LR * slope, tau - LR * (np.concatenate(of_tau) - alpha * np.exp(-tau))


@pytest.mark.parametrize("alpha", [0.15, 0.45])  # with the latter all of a layer is pruned now and then
def test_spafl_is_its_algorithm(alpha: float) -> None:
    """The second client misses the second round of three, so that its next makes up for two moves of τ."""
    takes_part = [(0, 1, 2), (0, 2), (0, 1, 2)]
    shared, theta, tau, before = np.zeros(7), [START] * 3, [np.zeros(7)] * 3, [np.zeros(7)] * 3
    seen: list[float] = []  # how much of a layer is used
    for number, clients in enumerate(takes_part):
        for client in clients:
            w, t, move = theta[client].copy(), shared, shared - before[client]
            for (where, rows, columns), moved in zip(MATRICES, np.split(move, [4]), strict=True):
                W = w[where].reshape(rows, columns)
                w[where] = (W - (moved * np.sign(W.sum(1)) / columns)[:, None]).ravel()
            before[client], t = shared, revived(w, t)
            for batch in (batch for epoch in epochs(client, number, EPOCHS) for batch in epoch):
                w, t = step(w, t, batch, alpha)
                seen += [float(p.mean()) for p in used(w, t)]
                t = revived(w, t)
            theta[client], tau[client] = w, t
        shared = np.mean([tau[client] for client in clients], axis=0)

    trainer, server = (build("spafl", alpha=alpha) for _ in range(2))
    aggregator = server.make_aggregator(3)
    states, judged = [trainer.get_private_state()] * 3, [START] * 3
    for number, clients in enumerate(takes_part):
        updates = []
        for client in clients:
            trainer.set_private_state(states[client])
            trainer.set_model_params(aggregator.get_model_params())
            trainer.fit(samples(client), RoundContext(0, client, number))
            states[client] = trainer.get_private_state()
            updates.append((10.0 + client, trainer.get_model_params()))
            with trainer.deployed(samples(client), RoundContext(0, client, number)) as model:
                judged[client] = flat(model)
        aggregator.set_model_params(aggregator.aggregate(updates))
    np.testing.assert_allclose(torch.cat([*aggregator.get_model_params().values()]).numpy(), shared, atol=1e-9)
    for client in range(3):
        np.testing.assert_allclose(judged[client], composed(theta[client], tau[client]), atol=1e-9)
    assert any(0 < share < 1 for share in seen)
    assert (0 in seen) == (alpha == 0.45)


def flat(model: nn.Module) -> Vector:
    tensors = [tensor for layer in (model[0], model[2]) for tensor in (layer.weight, layer.bias)]  # type: ignore[index]
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def test_a_kernel_is_pruned_by_filters() -> None:
    """Two filters of 1 × 2 × 2, of mean sizes 0.1 and 1; n is k² = 4."""
    kernel = torch.tensor([[0.1, -0.1, 0.1, -0.1], [1.0, 1, 1, -1]]).view(2, 1, 2, 2)
    mask = Mask(kernel)
    with torch.no_grad():
        mask.threshold.fill_(0.5)
    torch.testing.assert_close(mask(kernel), kernel * torch.tensor([0.0, 1]).view(2, 1, 1, 1), rtol=0, atol=0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2))
    trainer = METHODS["spafl"].build(model, epochs=1, lr=1e-12)
    with torch.no_grad():
        trainer.masked[0][0].copy_(kernel)
    trainer.set_model_params({name: torch.full_like(tau, 0.04) for name, tau in trainer.shared.items()})
    data = TensorDataset(torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    trainer.fit(data, RoundContext(0, 0, 0))
    torch.testing.assert_close(trainer.masked[0][0].detach()[1], kernel[1] - 0.01)  # 0.04 / 4
    torch.testing.assert_close(trainer.masked[0][0].detach()[0], kernel[0])  # it sums to 0


def test_only_thresholds_travel() -> None:
    trainer = METHODS["spafl"].build(network())
    assert [tuple(tensor.shape) for tensor in trainer.get_model_params().values()] == [(4,), (3,)]
    assert sum(tensor.numel() for tensor in trainer.get_private_state().values()) == len(START) + 7


def test_what_spafl_needs_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="not its factors; take --parameterization dense"):
        find_method("spafl", "lowrank").build(deep())
    with pytest.raises(ValueError, match="no layer is a Linear or a Conv2d"):
        METHODS["spafl"].build(nn.Sequential(nn.PReLU()))
