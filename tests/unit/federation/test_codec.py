"""Quantized tensors: close, unbiased, small, and as they were where nothing is rounded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from benchmarks.federation.codec import dequantize, known, nbytes, pack, quantize, random_stream, unpack
from benchmarks.federation.registry import METHODS
from tests.support import directory, rows, run, summary

LEVELS = {"4": 7, "8": 127, "16": 32767}
FORMS = (*LEVELS, "float16")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)


def round_trip(values: np.ndarray, form: str, sizes: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    sizes = sizes or (len(values),)
    return dequantize(quantize(values, sizes, form, random_stream("up", seed)), sizes, form)


def step(values: np.ndarray, form: str) -> np.ndarray:
    """The width of the grid at each of ``values``."""
    largest = np.abs(values.astype(float)).max(initial=0)
    if form in LEVELS:
        return np.full(len(values), largest / LEVELS[form])
    share = np.abs(values.astype(float)) / (largest or 1)
    return largest * np.spacing(share.astype(np.float16)).astype(float)


@given(values=ARRAYS, form=st.sampled_from(FORMS), seed=st.integers(0, 9))
@example(values=np.float32([1e-45, -3e-45, 0]), form="8", seed=0)
@example(values=np.float32([3.4e38, -3.4e38, 1]), form="float16", seed=0)
def test_no_value_moves_by_more_than_a_step_of_the_grid(values: np.ndarray, form: str, seed: int) -> None:
    arrived = round_trip(values, form, seed=seed)
    assert (arrived.dtype, arrived.shape) == (np.float32, values.shape)
    rounding = np.spacing(np.abs(values).max(initial=0))  # a float32 holds the point of the grid
    assert (np.abs(arrived.astype(float) - values) <= step(values, form) + rounding).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_over_draws_is_the_value(form: str) -> None:
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    draws = np.stack([round_trip(values, form, seed=seed) for seed in range(2000)])
    error = draws.mean(axis=0, dtype=float) - values
    # Hoeffding: a draw spans one step, so the mean is off by more than this with a chance of 2·exp(−2·3²) each.
    assert (np.abs(error) < 3 * step(values, form) / np.sqrt(len(draws)) + 1e-7).all()
    assert (draws.std(axis=0) > 0).mean() > 0.8  # and it is drawn, not rounded to the nearest


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_on_the_grid_stays(form: str) -> None:
    for values in ([0, 0, 0], [0.3, 0.3, 0.3], [-2.5, 0, 2.5], [1e-45, 0, -1e-45], [-3e38], []):
        assert round_trip(np.float32(values), form).tolist() == np.float32(values).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_that_is_not_finite_arrives_as_nan_and_the_others_as_ever(form: str, bad: float) -> None:
    values = np.float32([1, bad, 2, 4, -4])
    arrived = round_trip(values, form, sizes=(3, 2))
    assert np.isnan(arrived[:3]).all()
    assert arrived[3:].tolist() == [4, -4]


def test_four_bits_by_hand() -> None:
    # a = 7, so k = x: 0, 7, -7 and 3 become 7, 14, 0 and 10; a fifth value leaves half a byte.
    packed = quantize(np.float32([0, 7, -7, 3, 1]), (5,), "4", random_stream("up", 0))
    assert packed.tolist() == [*np.float32(7).tobytes(), 0x7E, 0x0A, 0x80]


@pytest.mark.parametrize(("form", "share"), [("4", 0.13), ("8", 0.26), ("16", 0.51), ("float16", 0.51)])
def test_bytes_of_the_mlp(form: str, share: float) -> None:
    sizes = (784 * 256, 256, 2560, 10)
    packed = quantize(np.ones(sum(sizes), np.float32), sizes, form, random_stream("up", 0))
    assert packed.nbytes == sum(nbytes(size, form) for size in sizes) <= share * 4 * sum(sizes)


@pytest.mark.parametrize("form", FORMS)
def test_a_payload_of_another_length_is_refused(form: str) -> None:
    packed = quantize(np.ones(5, np.float32), (5,), form, random_stream("up", 0))
    with pytest.raises(ValueError, match="7 quantized parameters"):
        dequantize(packed, (5, 2), form)


@given(values=ARRAYS.filter(len))
def test_at_32_bits_nothing_changes_and_a_reference_plays_no_part(values: np.ndarray) -> None:
    flat, like = torch.from_numpy(values), {"w": torch.zeros(len(values))}
    sent = pack(flat, torch.ones(len(values)), like, "32", random_stream("up", 0))
    assert sent == {"tensors": flat}
    assert torch.equal(unpack(sent["tensors"], torch.ones(len(values)), like, "32"), flat)


def test_the_update_is_what_is_quantized() -> None:
    like, received = {"a": torch.zeros(2, 2), "b": torch.zeros(1)}, torch.tensor([100.0, 100, 100, 100, 5])
    trained = received + torch.tensor([1.0, -1, 0, 1, 0])  # on the grid of the update, far from that of the values
    sent = pack(trained, received, like, "4", random_stream("up", 0))
    assert sent["parameters"] == 5
    assert torch.equal(unpack(sent["tensors"], received, like, "4"), trained)


def test_each_message_has_a_stream_of_its_own() -> None:
    keys = [(way, 0, client, number) for way in ("up", "down") for client in range(3) for number in range(1, 4)]
    first = {random_stream(*key).random() for key in keys} | {
        random_stream("down", 0, number).random() for number in (1, 2)
    }
    assert len(first) == len(keys) + 2


# Jobs

BOTH = ("fedavg", "local")
LABELS = {"8": "{}-8bit-downfloat16", "32": "{}-downfloat16"}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """The same job on 1 and on 3 ranks."""
    out = {ranks: tmp_path_factory.mktemp("quantized") for ranks in (1, 3)}
    options = ("--rounds", "2", "--epochs", "1", "--clients-per-round", "6", "--quantize", *LABELS)
    for ranks, folder in out.items():
        done = run("--algo", *BOTH, *options, "--quantize-down", "float16", "--out", str(folder), ranks=ranks)
        assert (done.returncode, done.stderr) == (0, "")
    return out


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_bits(quantized: dict[int, Any]) -> None:
    for algo in BOTH:
        for form, label in LABELS.items():
            one, three = (summary(out, label.format(algo)) for out in quantized.values())
            for key in ("shared_sha256", "accuracy", "transmitted"):
                assert one[key] == three[key], (algo, form, key)


def test_bytes_fall_and_parameters_stay(quantized: dict[int, Any]) -> None:
    for algo, parameters in {"fedavg": 203_530, "local": 0}.items():
        for form, label in LABELS.items():
            s = summary(quantized[1], label.format(algo))
            assert s["parameters_per_client_round"] == {"up": parameters, "down": parameters}
            full = 4 * parameters * 6 * 2
            for way, share in {"up": int(form) / 32 + 0.01, "down": 0.51}.items():
                sent = s["transmitted"][f"bytes_{way}"]
                assert (share - 0.02) * full <= sent <= share * full
        entries = rows(directory(quantized[1], LABELS["8"].format(algo)) / "ledger.csv")
        assert {int(entry["parameters"]) for entry in entries} == ({parameters} - {0})


def test_quantizing_hardly_changes_what_is_learnt(quantized: dict[int, Any]) -> None:
    exact, eight = (summary(quantized[1], LABELS[form].format("fedavg")) for form in ("32", "8"))
    assert eight["accuracy"]["mean"] == pytest.approx(exact["accuracy"]["mean"], abs=0.02)
    assert eight["shared_sha256"] != exact["shared_sha256"]


def test_a_difference_is_quantized_on_a_grid_of_its_own() -> None:
    model = torch.nn.Linear(2, 1)
    trainer = METHODS["scaffold"].build(model)
    like = trainer.get_model_params()
    received = torch.tensor([100.0, 100, 5, 300, 300, 300])  # weight, bias, and the server's c of both
    update = torch.tensor([101.0, 99, 6, 1, -1, 2])  # the new weight and bias, and Δc_i
    beforehand = known(received, like, trainer.differences)
    sent = pack(update, beforehand, like, "4", random_stream("up", 0))
    assert torch.equal(unpack(sent["tensors"], beforehand, like, "4"), update)


# What both sides keep, after many rounds

SMALL = ("--fraction", "0.1", "--clients", "4", "--epochs", "1", "--eval-every", "0")


def kept(out: Path, label: str, part: str) -> dict[str, np.ndarray]:
    """The tensors of one part of the newest checkpoint, empty where it has none."""
    newest = max((directory(out, label) / "checkpoint").glob("round-??????"))
    path = newest / f"{part}.safetensors"
    return load_file(path) if path.exists() else {}


@pytest.mark.slow
def test_the_server_s_control_variate_stays_the_mean_of_the_clients(tmp_path: Path) -> None:
    options = ("--rounds", "30", "--clients-per-round", "2", "--quantize", "4", "8", "--quantize-down", "8", *SMALL)
    done = run("--algo", "scaffold", "feddyn", *options, "--out", str(tmp_path), ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    for algo, part, own in (("scaffold", "shared", "own_control."), ("feddyn", "server", "memory.")):
        for bits in (4, 8):
            label = f"{algo}-{bits}bit-down8bit"
            of_server, *clients = (kept(tmp_path, label, p) for p in (part, *(f"client-{k}" for k in range(4))))
            for name in (name.removeprefix(own) for name in clients[0] if name.startswith(own)):
                mean = sum(client.get(own + name, 0) for client in clients) / 4
                found = of_server[name if algo == "feddyn" else f"control.{name}"]
                assert np.abs(found).max() > 0
                assert np.abs(found - mean).max() < 2e-5 * np.abs(mean).max(), (label, name)


@pytest.mark.slow
def test_a_server_counts_moves_from_what_the_clients_received(tmp_path: Path) -> None:
    """One client, one round, 4 bits down: it trains from Q(x) to y. FedAvg's new model is y, or Q(x) without rate.

    With one client and no memory yet, all but FedDyn and pFedMe train it to the same y.
    """
    chosen = {
        "q": ("fedavg.lr=1e-30", "pfedme.beta=1"),
        "y": (
            *("fedavgm.server_lr=0.7", "fedavgm.momentum=0.8", "scaffold.server_lr=0.6", "feddyn.alpha=0.4"),
            *("fedadam.server_lr=0.1", "fedadam.beta1=0.8", "fedadam.beta2=0.7", "fedadam.tau=0.05"),
            *("fedyogi.server_lr=0.1", "fedyogi.beta1=0.8", "fedyogi.beta2=0.7", "fedyogi.tau=0.05", "pfedme.beta=0.5"),
        ),
    }
    lr, options = ("--lr", "0.1"), ("--rounds", "1", "--clients-per-round", "1", "--quantize-down", "4", *SMALL)
    for name, own in chosen.items():
        algos = dict.fromkeys(["fedavg", *(choice.partition(".")[0] for choice in own)])
        done = run("--algo", *algos, *options, *lr, "--set", *own, "--out", str(tmp_path / name), ranks=2)
        assert (done.returncode, done.stderr) == (0, "")

    def shared(algo: str, out: str = "y", part: str = "shared") -> np.ndarray:
        tensors = kept(tmp_path / out, f"{algo}-down4bit", part)
        return np.concatenate([t.ravel() for name, t in tensors.items() if "control." not in name])

    q, y = shared("fedavg", "q"), shared("fedavg")
    delta = y - q
    second = {"fedadam": 0.7 * 0.05**2 + 0.3 * delta**2}
    second["fedyogi"] = 0.05**2 - 0.3 * delta**2 * np.sign(0.05**2 - delta**2)
    expected = {algo: q + 0.1 * 0.2 * delta / (np.sqrt(v) + 0.05) for algo, v in second.items()}
    expected |= {"fedavgm": q + 0.7 * delta, "scaffold": q + 0.6 * delta, "pfedme": (q + shared("pfedme", "q")) / 2}
    for algo, values in expected.items():
        np.testing.assert_allclose(shared(algo), values, atol=1e-6, err_msg=algo)
        assert np.abs(values - q).max() > 1e-3
    h = shared("feddyn", part="server")  # h = −α/4 (θ_k − Q(x)), and the new model is θ_k − h / α
    np.testing.assert_allclose(h, -0.4 / 4 * (shared("feddyn") + h / 0.4 - q), atol=1e-6)
