"""Attacks on real runs: the control that must succeed, what they assume against what is sent, and what is refused."""

import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import attack, run_experiment
from benchmarks.federation.registry import build_trainer
from benchmarks.federation.settings import Settings
from benchmarks.federation.suites import UsageError
from benchmarks.privacy import inversion, measures, membership
from benchmarks.privacy.subject import Subject, check


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of short runs, by method."""
    out = tmp_path_factory.mktemp("runs")
    algos = ["fedavg", "fedper", "lg-fedavg", "fedpara", "pfedpara"]
    short = {"clients": 3, "rounds": 1, "epochs": 1, "fraction": 0.1, "eval_every": 0, "lr": 0.1}
    run_experiment(algo=algos, out=str(out), **short)
    return {algo: out / "mnist5k-dirichlet:0.5" / algo / "seed0" for algo in algos}


def subject(folder: Path) -> Subject:
    return Subject(folder, Path("data"))


def test_control_the_attack_on_fedavg_with_batch_1_succeeds(runs: dict[str, Path]) -> None:
    """Without it, a failure on another method would say nothing."""
    found = subject(runs["fedavg"])
    batches = found.draw(2, 1, seed=0)
    pictures, labels = inversion.invert(found.target(batches, 1, first=True), "cosine", "start", 100, 0)
    for picture, label, each in zip(pictures, labels, batches, strict=True):
        assert measures.psnr(picture, each.pictures) > 30
        assert label == each.y


@pytest.mark.parametrize("algo", ["fedavg", "fedper", "lg-fedavg", "fedpara", "pfedpara"])
def test_the_attack_knows_what_a_step_does(runs: dict[str, Path], algo: str) -> None:
    """With the true pictures, labels and private tensors, the update is the one that the client's own trainer sends."""
    found = subject(runs[algo])
    batches = found.draw(2, 3, seed=1)
    target = found.target(batches, 1, first=True)  # in the first round, the private tensors' start is the truth
    assert target.clip_norm == 1
    for number, each in enumerate(batches):
        made = inversion.change(target, target.private, each.pictures, F.one_hot(each.y, 10).float())
        assert made.keys() == found.trainer.shared.keys()
        for name, change in made.items():
            torch.testing.assert_close(change, target.updates[name][number], rtol=1e-3, atol=1e-6)
    assert (target.head is None) == (algo == "fedper")
    if algo in ("fedper", "lg-fedavg", "pfedpara"):  # later, it is not
        later = found.target(batches, 1)
        made = inversion.change(later, later.private, batches[0].pictures, F.one_hot(batches[0].y, 10).float())
        assert any(not torch.allclose(change, later.updates[name][0], rtol=1e-2) for name, change in made.items())


def test_attacks_are_seeded_and_private_tensors_move_where_they_may(runs: dict[str, Path]) -> None:
    found = subject(runs["pfedpara"])
    target = found.target(found.draw(2, 1, seed=0), 1)
    first, again, other = (inversion.invert(target, "dlg", "start", 3, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    moved = inversion.invert(target, "dlg", "optimised", 3, 0)[0]
    assert not torch.equal(first, moved)
    start = found.trainer.get_private_state()
    assert all(torch.equal(tensor, found.private_start[name]) for name, tensor in target.private.items())
    assert start.keys() == target.private.keys()


def test_labels_are_read_from_the_bias() -> None:
    # One sample of class 2: the probabilities less one where it is, times -η.
    assert inversion.read_labels(torch.tensor([-0.05, -0.02, 0.09, -0.02]), 1) == [2]
    # Four samples, two of class 0, one of 1 and one of 3, at probabilities of a quarter each.
    gained = torch.tensor([2 / 4, 1 / 4, 0, 1 / 4]) - 0.25
    assert inversion.read_labels(gained, 1) == [0]
    # Far from a guess: three samples, shares (2/3, 1/3, 0), all of the probability on class 2.
    assert sorted(inversion.read_labels(torch.tensor([2 / 3, 1 / 3, -1.0]), 3)) == [0, 0, 1]


def test_measures_by_hand() -> None:
    truth = torch.zeros(2, 2, 2)
    truth[1] = 1
    assert measures.psnr(truth + 0.1, truth) == pytest.approx(20)
    assert measures.psnr(truth, truth) == pytest.approx(100)
    near = torch.stack([truth[1] - 0.2, truth[0] + 0.1])  # in the other order
    assert torch.equal(measures.align(near, truth), near.flip(0))
    assert measures.recovered(torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 2, 9])) == 0.5
    edges = torch.tensor([[[0.0, 1.0], [0.0, 0.5]]])  # down: 0, 0.5; across: 1, 0.5
    assert inversion.total_variation(edges) == pytest.approx(0.25 + 0.75)
    seen, made = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 0.0])}
    flat = torch.zeros(1, 2, 2)
    assert inversion.distance("dlg", seen, made, flat) == pytest.approx(16 / 25)
    assert inversion.distance("cosine", seen, made, flat) == pytest.approx(1 - 9 / 15)
    assert inversion.distance("cosine", seen, {"w": 2 * seen["w"]}, edges) == pytest.approx(inversion.SMOOTHNESS)


def test_members_by_hand() -> None:
    clients = [
        membership.Scores(np.array([4.0, 3.0]), np.array([1.0])),
        membership.Scores(np.array([0.0]), np.array([2.0])),
    ]
    # Of six pairs of a member and another, 4 and 3 beat both others, 0 none; and they pass where no other does.
    assert membership.roc(clients) == (pytest.approx(4 / 6), pytest.approx(2 / 3))
    first, again = (membership.judge(clients, 0) for _ in range(2))
    assert first == again
    assert first[0].low <= first[0].value <= first[0].high


def test_members_are_those_that_a_client_trained_on(runs: dict[str, Path]) -> None:
    found = subject(runs["fedavg"])
    scores = found.membership()
    train, *others = (found.store.sizes(split) for split in ("train", "validation", "test"))
    assert [len(each.members) for each in scores["loss threshold"]] == train.tolist()
    assert [len(each.others) for each in scores["likelihood ratio"]] == sum(others).tolist()
    data = torch.utils.data.TensorDataset(*map(torch.from_numpy, found.store.samples(0, "train")))
    sent = found.send(0, data, found.hyper.epochs)
    before, after = found.losses(found.shared, data), found.losses(sent, data)
    np.testing.assert_array_equal(scores["likelihood ratio"][0].members, before - after)
    np.testing.assert_array_equal(scores["loss threshold"][0].members, -after)
    assert after.mean() < before.mean()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algo": "scaffold"}, "scaffold: there is no attack on scaffold; take a run of fedavg, fedper"),
        ({"model": "cnn-bn"}, "fedavg: cnn-bn has BatchNorm, whose running statistics travel too"),
        (
            {"codec": "sign"},
            "fedavg-sign: the attack reads plain SGD's steps, sent as they are; take a run",
        ),
        ({"optimizer": "adam"}, "take a run with --optimizer sgd, not adam"),
        ({"task": "text"}, "fedavg: mnist5k holds text of shape (28, 28); the attack takes pictures of at least 7 × 7"),
    ],
)
def test_runs_that_no_attack_is_for(runs: dict[str, Path], options: dict[str, str], said: str) -> None:
    known = subject(runs["fedavg"])
    hyper = {name: options.pop(name) for name in ("optimizer",) if name in options}
    task = options.pop("task", "image")
    settings = Settings(**{"algo": "fedavg", "hyper": hyper, **options})
    trainer = build_trainer(settings, known.store)
    with pytest.raises(UsageError) as refused:
        check(settings, trainer, SimpleNamespace(task=task, input_shape=known.store.input_shape))  # type: ignore[arg-type]
    assert said in str(refused.value)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["attack.py", *map(str, words)])
    attack.main()


@pytest.mark.parametrize("case", ["nowhere", "no checkpoint", "damaged", "large batch", "no number"])
def test_bad_input_is_answered_in_a_sentence(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    monkeypatch.setattr(measures, "check_installed", lambda: None)
    folder = tmp_path / "out" / "data" / "fedavg" / "seed0"
    words: list[object] = []
    if case != "nowhere":
        shutil.copytree(runs["fedavg"], folder)
    if case == "no checkpoint":
        shutil.rmtree(folder / "checkpoint")
    if case == "damaged":
        path = next((folder / "checkpoint").rglob("shared.safetensors"))
        path.write_bytes(path.read_bytes()[:-1])
    words += {"large batch": ["--batch", 64], "no number": ["--batches", "0"]}.get(case, [])
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, folder, *words)
    assert left.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    expected = {
        "nowhere": "config.yaml",
        "no checkpoint": "has no checkpoint of a finished run; run it, and keep its folder whole",
        "damaged": "shared.safetensors was changed or is not whole",
        "large batch": "--batch: a step of fedavg takes 32 samples, not 64",
        "no number": "a whole number above 0 is right, got 0",
    }
    assert sentence.startswith("error: ")
    assert expected[case] in sentence
    if case == "damaged":
        assert path.exists()  # an attack removes nothing


def test_the_command_shows_tables_and_pictures(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmetrics")
    picture = tmp_path / "pictures" / "attack.png"
    few = ("--batches", 3, "--iterations", 2, "--batch", 2, "--picture", picture)
    call(monkeypatch, runs["fedper"], runs["pfedpara"], runs["fedper"], *few)
    said = capsys.readouterr().out
    assert said.count("| `fedper` | a step |") == 2 * 4  # no idlg: the head does not travel
    assert said.count("| `pfedpara` | a round |") == 6
    assert said.count("| `pfedpara` | a step of the first round | start |") == 3
    assert said.count("| loss threshold |") == said.count("| likelihood ratio |") == 3
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ssim_of_equal_pictures_is_one() -> None:
    pytest.importorskip("torchmetrics")
    truth: Tensor = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    assert measures.ssim(truth, truth) == pytest.approx(1)
    assert measures.ssim(1 - truth, truth) < 0
    assert math.isclose(measures.ssim(truth[..., None].expand(2, 8, 8, 3), truth[..., None].expand(2, 8, 8, 3)), 1)
