"""Updates of which a part travels: by hand, as laws, and in jobs that stop and go on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import Tensor, nn

from benchmarks.federation.codec import add_waiting, feedback, keep_waiting, pack, random_stream, unpack
from benchmarks.federation.compress import CODECS, parse
from benchmarks.federation.registry import METHODS
from benchmarks.federation.settings import Settings
from tests.support import directory, killed_after, rows, run, same_findings, summary

SPECS = ("topk:0.2", "topk:0.01", "randk:0.2", "sign", "powersgd:2")
LIKE = {"matrix": torch.zeros(9, 11), "bias": torch.zeros(9), "kernel": torch.zeros(4, 6, 3, 3)}
N = sum(tensor.numel() for tensor in LIKE.values())


def normal(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def sent(v: Tensor, w: Tensor, spec: str, seed: int = 0, like: dict[str, Tensor] = LIKE) -> tuple[Tensor, int, int]:
    """Returns what arrives of ``v``, and in how many bytes and parameters."""
    packed = pack(v, w, like, spec, random_stream("up", seed), like)
    arrived = unpack(packed["tensors"], w, like, spec, random_stream("up", seed), like)
    return arrived, packed["tensors"].nbytes, packed["parameters"]


def test_top_k_by_hand() -> None:
    like, w = {"w": torch.zeros(5)}, torch.tensor([10.0, 10, 10, 10, 10])
    v = torch.tensor([10.0, 13, 9, 7, 13])  # moved by 0, 3, −1, −3, 3: the first of the equal ones go
    packed = pack(v, w, like, "topk:0.4", random_stream("up", 0), like)
    assert packed["tensors"].tolist() == [0b01010000, *np.float32([13, 7]).tobytes()]  # 2 of 5: a bit for each
    assert packed["parameters"] == 2
    assert sent(v, w, "topk:0.4", like=like)[0].tolist() == [10, 13, 10, 7, 10]
    long = {"w": torch.zeros(100)}
    one = pack(torch.arange(100.0), torch.zeros(100), long, "topk:0.01", random_stream("up", 0), long)
    assert one["tensors"].tolist() == [*np.uint32([99]).tobytes(), *np.float32([99]).tobytes()]  # its number


def test_signs_by_hand() -> None:
    like = {"a": torch.zeros(3), "b": torch.zeros(2)}
    v, w = torch.tensor([2.0, -4, 0, 5, 6]), torch.tensor([0.0, 0, 0, 6, 5])
    packed = pack(v, w, like, "sign", random_stream("up", 0), like)
    assert packed["tensors"].tolist() == [*np.float32([2, 1]).tobytes(), 0b01010000]
    assert sent(v, w, "sign", like=like) == (pytest.approx([2, -2, 2, 5, 6]), 9, 5)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.2, 0.9])
@pytest.mark.parametrize("name", ["topk", "randk"])
def test_as_many_values_as_the_share_says_arrive_as_they_are(name: str, share: float) -> None:
    v, w = normal(0), normal(1)
    arrived, size, count = sent(v, w, f"{name}:{share}")
    k = round(share * N)
    there = arrived == v
    assert (int(there.sum()), count) == (k, k)
    assert torch.equal(arrived[~there], w[~there])
    assert size == 4 * k + (0 if name == "randk" else min(4 * k, -(-N // 8)))
    if name == "topk":
        assert (v - w).abs()[there].min() >= (v - w).abs()[~there].max()
    else:
        assert not torch.equal(sent(v, w, f"{name}:{share}", seed=1)[0], arrived)


def test_random_places_are_each_as_likely() -> None:
    v, w = torch.ones(N), torch.zeros(N)
    hits = sum(sent(v, w, "randk:0.2", seed=seed)[0] for seed in range(600)) / 600
    assert (hits - 0.2).abs().max() < 5 * (0.2 * 0.8 / 600) ** 0.5


@pytest.mark.parametrize("spec", ["topk:1", "randk:1", "powersgd:9"])
def test_all_of_it_is_exact(spec: str) -> None:
    v, w = normal(0) * 1e-3, normal(1)
    arrived, size, count = sent(v, w, spec)
    assert torch.equal(arrived, v)
    assert (size, count) == (4 * N, N)


def test_a_matrix_of_that_rank_arrives_and_others_by_their_largest_directions() -> None:
    like = {"m": torch.zeros(20, 30)}
    low = (normal(0, 40).view(20, 2) @ normal(1, 60).view(2, 30)).flatten()
    arrived, size, count = sent(low, torch.zeros(600), "powersgd:2", like=like)
    torch.testing.assert_close(arrived, low, rtol=0, atol=1e-5)
    assert (size, count) == (4 * 2 * 50, 2 * 50)
    U, _, V = np.linalg.svd(normal(2, 600).view(20, 30).numpy())
    steep = (U * 0.5 ** np.arange(20)) @ V[:20]
    found = sent(torch.from_numpy(steep.astype(np.float32)).flatten(), torch.zeros(600), "powersgd:2", like=like)[0]
    best = (U[:, :2] * [1, 0.5]) @ V[:2]
    lost, least = (np.linalg.norm(each - steep) for each in (found.view(20, 30).numpy(), best))
    assert least <= lost < 1.1 * least


def test_what_powersgd_factors() -> None:
    _, _, count = sent(normal(0), normal(1), "powersgd:2")
    assert count == 2 * (9 + 11) + 9 + 2 * (4 + 54)  # a matrix, a vector that travels whole, a kernel (4, 6·3·3)


@given(seed=st.integers(0, 50), spec=st.sampled_from(SPECS))
def test_what_does_not_arrive_now_arrives_later(seed: int, spec: str) -> None:
    """Over any rounds, what arrived and what waits are together all that the client has moved."""
    waiting, w, moved = {name: torch.zeros_like(tensor) for name, tensor in LIKE.items()}, normal(seed), torch.zeros(N)
    start = w
    for number in range(4):
        move = normal(100 * seed + number)
        wanted = add_waiting(w + move, LIKE, waiting)
        arrived, _, _ = sent(wanted, w, spec, seed=number)
        keep_waiting(waiting, wanted - arrived, LIKE)
        w, moved = arrived, moved + move
    left = torch.cat([tensor.flatten() for tensor in waiting.values()])
    torch.testing.assert_close(w + left, start + moved, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "randk" not in spec])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_an_update_that_is_not_finite_arrives_as_such(spec: str, bad: float) -> None:
    v = normal(0)
    v[3] = bad
    assert not sent(v, normal(1), spec)[0].isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_payload_of_another_length_is_refused(spec: str) -> None:
    packed = pack(normal(0), normal(1), LIKE, spec, random_stream("up", 0), LIKE)["tensors"]
    for wrong in (packed[:-1], torch.cat([packed, packed[:4]])):
        with pytest.raises(ValueError, match="bytes of a packed update"):
            unpack(wrong, normal(1), LIKE, spec, random_stream("up", 0), LIKE)


@pytest.mark.parametrize(("spec", "size"), [("topk:0.01", 4), ("topk:0.2", -(-N // 8))])
def test_places_outside_the_model_are_refused(spec: str, size: int) -> None:
    packed = pack(normal(0), normal(1), LIKE, spec, random_stream("up", 0), LIKE)["tensors"].clone()
    packed[:size] = 255
    with pytest.raises(ValueError, match=f"of {N} in their order"):
        unpack(packed, normal(1), LIKE, spec, random_stream("up", 0), LIKE)


def test_running_statistics_travel_whole() -> None:
    trainer = METHODS["fedavg"].build(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    trainer.feedback = feedback(trainer, "sign")
    assert trainer.feedback.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    like = trainer.travelling
    v, w = normal(0, 27), normal(1, 27)  # 12 + 3 + 3 + 3, and running mean and variance
    packed = pack(v, w, like, "sign", random_stream("up", 0), trainer.feedback)
    arrived = unpack(packed["tensors"], w, like, "sign", random_stream("up", 0), trainer.feedback)
    assert torch.equal(arrived[21:], v[21:])
    assert not torch.equal(arrived[:21], v[:21])
    assert (packed["tensors"].nbytes, packed["parameters"]) == (4 * 4 + 3 + 4 * 6, 27)
    assert {f"feedback.{name}" for name in trainer.feedback} <= trainer.get_private_state().keys()


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("topk:1.5", "'topk:1.5' is not right; what follows topk: is the share of the parameters that travels"),
        ("randk:0", "above 0 and up to 1 for the whole model"),
        ("topk", "'topk' is not right"),
        ("topk:nan", "'topk:nan' is not right"),
        ("powersgd:0", "the rank of the factors, from 1 on"),
        ("powersgd:1.5", "'powersgd:1.5' is not right"),
        ("sign:1", "'sign:1' has a number, and sign takes none"),
        ("zip", "no 'zip'; there are topk, randk, sign, powersgd and none"),
    ],
)
def test_what_is_no_codec_is_refused(spec: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(spec)


def test_one_spelling_is_one_run() -> None:
    assert Settings(codec="topk:.010").label == "pfedpara-topk:0.01"
    assert Settings(codec="none") == Settings()
    with pytest.raises(ValueError, match="--codec sign and --quantize 8 both pack the uplink; take one of the two"):
        Settings(codec="sign", quantize="8")


# Jobs

SMALL = ("--rounds", "2", "--epochs", "1", "--fraction", "0.1", "--clients", "3", "--clients-per-round", "2")
CHOSEN = ("topk:0.01", "randk:0.01", "sign", "powersgd:2", "topk:1", "none")
JOB = ("--algo", "scaffold", "--codec", *CHOSEN, *SMALL, "--eval-every", "0", "--checkpoint-every", "1")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    out = {ranks: tmp_path_factory.mktemp("codecs") for ranks in (1, 3)}
    for ranks, folder in out.items():
        done = run(*JOB, "--out", str(folder), ranks=ranks)
        assert (done.returncode, done.stderr) == (0, "")
    return out


def label(spec: str, algo: str = "scaffold") -> str:
    return algo if spec == "none" else f"{algo}-{spec}"


def test_any_number_of_ranks_gives_the_same_bits(jobs: dict[int, Path]) -> None:
    for spec in CHOSEN:
        same_findings(directory(jobs[3], label(spec)), directory(jobs[1], label(spec)))


def test_what_travels_is_what_is_counted(jobs: dict[int, Path]) -> None:
    both = 2 * 203_530  # parameters and control variates
    k = round(0.01 * both)
    for spec, parameters, body in (
        ("topk:0.01", k, 8 * k),
        ("randk:0.01", k, 4 * k),
        ("sign", both, 4 * 8 + both // 8 + 1),
        ("powersgd:2", (factors := 2 * (2 * (784 + 256) + 256 + 2 * (256 + 10) + 10)), 4 * factors),
        ("topk:1", both, 4 * both),
    ):
        ups = [r for r in rows(directory(jobs[1], label(spec)) / "ledger.csv") if r["direction"] == "up"]
        assert {int(r["parameters"]) for r in ups} == {parameters}, spec
        assert {int(r["bytes"]) for r in ups} == {body + 256}, spec


def test_all_of_it_gives_what_no_codec_gives(jobs: dict[int, Path]) -> None:
    whole, plain, part = (summary(jobs[1], label(spec)) for spec in ("topk:1", "none", "topk:0.01"))
    assert whole["shared_sha256"] == plain["shared_sha256"] != part["shared_sha256"]
    assert whole["accuracy"] == plain["accuracy"]


def test_what_waits_is_in_the_checkpoint(jobs: dict[int, Path]) -> None:
    for spec in ("topk:0.01", "sign", "topk:1"):
        folder = directory(jobs[3], label(spec)) / "checkpoint" / "round-000002"
        for path in folder.glob("client-*.safetensors"):
            waiting = {name: t for name, t in load_file(path).items() if name.startswith("feedback.")}
            assert len(waiting) == 8  # four parameters, and their control variates
            assert any(t.any() for t in waiting.values()) == (spec != "topk:1")


@pytest.mark.slow
def test_feedback_survives_a_kill(jobs: dict[int, Path], tmp_path: Path) -> None:
    options = ("--algo", "scaffold", "--codec", "topk:0.01", *JOB[JOB.index(SMALL[0]) :], "--out", str(tmp_path))
    assert run(*options, ranks=3, before=killed_after(1)).returncode != 0
    again = run(*options, ranks=2)
    assert (again.returncode, again.stderr) == (0, "")
    same_findings(directory(tmp_path, label("topk:0.01")), directory(jobs[1], label("topk:0.01")))


def test_every_codec_is_named_in_the_help() -> None:
    said = f"{Settings.model_fields['codec'].description}"
    assert all(name in said for name in CODECS)
