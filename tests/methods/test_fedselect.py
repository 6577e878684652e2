"""FedSelect against a transcription of its authors' loop in NumPy, and what it really sends."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from baselines.adapter import RoundContext
from benchmarks.federation import codec, privacy
from benchmarks.federation.registry import METHODS, build_trainer
from benchmarks.federation.settings import Settings
from tests.methods import test_personal
from tests.methods.test_personal import EPOCHS, SIZES, START, Vector, epochs, federate, network, samples, sgd
from tests.support import directory, killed_after, rows, run, same_findings

MATRICES = (slice(0, 12), slice(16, 28))


def grown(mask: Vector, theta: Vector, before: Vector, p: float, limit: float) -> Vector:
    """The authors' get_mask_from_delta, with a mask that grows."""
    new = mask.copy()
    for where in MATRICES:
        if mask[where].mean() > limit:
            continue
        moves = np.abs(theta - before)[where]
        found = np.sort(moves[~mask[where]])
        new[where] |= moves >= found[np.round((1 - p) * found.size).astype(int)]
    return new


def test_fedselect_is_its_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """After rounds 3, 5 and 7 a client has 6, 9 and 9 of the 12 numbers of each weight for itself."""
    rounds, p, limit = 8, 0.5, 0.5
    monkeypatch.setattr(test_personal, "ROUNDS", rounds)
    w, own, before = START, [START] * 3, [START] * 3
    masks = came = [np.zeros(len(START), bool)] * 3
    seen = []
    for number in range(rounds):
        sums, counts = np.zeros(len(START)), np.zeros(len(START))
        next_masks = []
        for client, mask in enumerate(masks):
            theta = np.where(came[client], own[client], w)
            shuffles = iter(epochs(client, number, EPOCHS * (1 + mask.any())))
            for _ in range(EPOCHS):
                for moving in (mask, ~mask) if mask.any() else (~mask,):
                    theta = sgd(theta, [next(shuffles)], moving)
            own[client] = theta
            sums += SIZES[client] * ~mask * theta
            counts += SIZES[client] * ~mask
            if number and number % 2 == 0:
                next_masks.append(grown(mask, theta, before[client], p, limit))
                before[client] = theta
            else:
                next_masks.append(mask)
        came, masks = masks, next_masks
        seen.append([int(mask.sum()) for mask in masks])
        w = np.where(counts > 0, sums / np.maximum(counts, 1), w)
    assert seen == [[0] * 3] * 2 + [[12] * 3] * 2 + [[18] * 3] * 4
    assert (masks[0] != masks[1]).any()
    server, judged = federate("fedselect", select_every=2, personal_rate=p, personal_limit=limit)
    np.testing.assert_allclose(server, w, atol=1e-12)
    for client in range(3):
        np.testing.assert_allclose(judged[client], own[client], atol=1e-12)


def test_a_number_that_nobody_sends_stays() -> None:
    trainer, server = (METHODS["fedselect"].build(network()) for _ in range(2))
    server = server.make_aggregator(3)
    before = server.get_model_params()
    trainer.sent["0.weight"][0, 0] = 0
    trainer.fit(samples(0), RoundContext(0, 0, 0))
    new = server.aggregate([(10.0, trainer.get_model_params())])
    assert new.keys() == before.keys()
    assert new["0.weight"][0, 0] == before["0.weight"][0, 0]
    assert (new["0.weight"] != before["0.weight"]).sum() == 11


def test_what_is_marked_travels_beside_a_bit_for_each_mark() -> None:
    stream = torch.Generator().manual_seed(0)
    sent = (torch.rand(3, 5, generator=stream) > 0.4).float()
    params = {"w": torch.randn(3, 5, generator=stream) * sent, "b": torch.randn(4, generator=stream), "m": sent}
    flat = codec.flatten(params)
    packed = codec.pack(flat, None, params, "32", None, (), {"m": "w"})
    shared = int(sent.sum())
    assert packed["parameters"] == shared + 4
    assert packed["tensors"].numel() == 2 + 4 * (shared + 4)  # bytes: 15 bits, and float32
    assert torch.equal(codec.unpack(packed["tensors"], None, params, "32", None, (), {"m": "w"}), flat)
    with pytest.raises(ValueError, match=f"expected {4 * (shared + 4)} bytes of a packed update, got"):
        codec.unpack(packed["tensors"][:-1], None, params, "32", None, (), {"m": "w"})


JOB = (
    *("--algo", "fedselect", "--set", "fedselect.select_every=1", "--rounds", "4", "--clients", "3"),
    *("--clients-per-round", "2", "--fraction", "0.1", "--epochs", "1", "--checkpoint-every", "1"),
)
PARAMETERS, WEIGHTS = 203_530, 203_264


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    done = run(*JOB, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_a_client_sends_what_is_not_its_own(alone: Path) -> None:
    ledger = rows(directory(alone, "fedselect") / "ledger.csv")
    assert {int(row["parameters"]) for row in ledger if row["direction"] == "down"} == {PARAMETERS}
    last = {}
    for row in ledger:
        if row["direction"] == "up":
            count, size = int(row["parameters"]), int(row["bytes"])
            assert 0 <= size - 4 * count - WEIGHTS // 8 <= 512  # the header
            last[int(row["client"])] = count
    assert min(last.values()) < PARAMETERS
    folder = directory(alone, "fedselect") / "checkpoint" / "round-000004"
    for path in folder.glob("client-*.safetensors"):
        count, state = last.pop(int(path.stem.partition("-")[2])), load_file(path)
        personal = sum(int((tensor == 0).sum()) for name, tensor in state.items() if name.startswith("sent."))
        assert count == PARAMETERS - personal
    assert not last


@pytest.mark.parametrize("packed", [{"codec": "sign"}, {"quantize": "8"}])
def test_it_is_refused_beside_what_packs_updates(packed: dict[str, str]) -> None:
    settings = Settings(algo="fedselect", model="mlp", hyper=METHODS["fedselect"].complete({}), **packed)
    store = SimpleNamespace(input_shape=(28, 28), classes=range(10), mean=[0.5], std=[0.5], task="image")
    with pytest.raises(ValueError, match="clients leave numbers out of what they send already; leave it out"):
        build_trainer(settings, store)


def test_it_promises_no_privacy() -> None:
    settings = Settings(algo="fedselect", hyper=METHODS["fedselect"].complete({}), dp_clip=1.0)
    with pytest.raises(ValueError, match="--dp-clip: clients say which numbers they leave out, and that is not"):
        privacy.check(settings, METHODS["fedselect"].build(network()), SIZES)


@pytest.mark.slow
def test_any_number_of_ranks_and_a_kill_in_between_give_the_same_bits(alone: Path, tmp_path: Path) -> None:
    assert run(*JOB, "--out", str(tmp_path), ranks=3, before=killed_after(2)).returncode != 0
    again = run(*JOB, "--out", str(tmp_path), ranks=2)
    assert (again.returncode, again.stderr) == (0, "")
    same_findings(directory(tmp_path, "fedselect"), directory(alone, "fedselect"))
