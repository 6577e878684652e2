"""Factored models train wherever the dense one does: the corners of the range that the defaults must stand."""

from pathlib import Path

import pytest

from baselines.base import Hyper
from benchmarks.perf.stability import CLIP_NORMS, GUESS, Trial, build, describe, shuffled_digits, train
from pfedpara.hadamard import Method
from tests.support import run, summary


def test_what_is_said_of_a_start_names_what_it_is_compared_with() -> None:
    nan = float("nan")
    ours = [Trial("ours", 0, 1, 0.5, lr, accuracy) for lr, accuracy in ((0.1, 0.9), (0.3, nan), (1.0, nan))]
    dense = [
        trial._replace(start="dense", accuracy=accuracy) for trial, accuracy in zip(ours, (0.9, 0.8, nan), strict=True)
    ]
    assert (
        describe(ours + dense, "ours", 0)
        == "ours      clip 0: best accuracy 0.900; 1 of 3 diverged where dense did not"
    )
    assert describe(ours + dense, "dense", 0) == "dense     clip 0: best accuracy 0.900; 1 of 3 diverged"
    assert describe(ours, "ours", 0).endswith("2 of 3 diverged (no dense run to compare with: --starts lacks it)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "batch", "gamma", "rounds", "reached"),
    [("0.01", "32", "0.9", "6", 0.7), ("0.1", "32", "0.1", "4", 0.85), ("0.1", "10", "0.9", "3", 0.85)],
)
def test_no_run_diverges_with_the_defaults(
    tmp_path: Path, lr: str, batch: str, gamma: str, rounds: str, reached: float
) -> None:
    options = ("--lr", lr, "--batch-size", batch, "--gamma", gamma, "--rounds", rounds, "--eval-every", "0")
    done = run("--algo", "pfedpara", *options, "--out", str(tmp_path), ranks=3)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path, "pfedpara")
    assert "diverged" not in found
    assert found["accuracy"]["mean"] > reached


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("method", ["fedpara", "pfedpara"])
def test_clipping_holds_the_largest_rate_of_the_map(method: Method, depth: int) -> None:
    _, clip_norm = CLIP_NORMS
    assert clip_norm == Hyper().clip_norm  # the map is of what every trainer does
    data = shuffled_digits()
    for gamma in (0.1, 0.9):
        assert train(build(depth, "ours", method, gamma, 0), 1.0, clip_norm, 400, data, 0) > GUESS
