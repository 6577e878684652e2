"""pFedPara trains at the corners of the range that its defaults must stand: rates 0.01–0.1, small batches, any γ."""

from pathlib import Path

import pytest

from tests.jobs import run, summary


@pytest.mark.slow
@pytest.mark.parametrize("gamma", ["0.1", "0.9"])
@pytest.mark.parametrize("batch", ["10", "32"])
@pytest.mark.parametrize(("lr", "reached"), [("0.01", 0.7), ("0.1", 0.85)])
def test_no_run_diverges_with_the_defaults(tmp_path: Path, lr: str, reached: float, batch: str, gamma: str) -> None:
    options = ("--lr", lr, "--batch-size", batch, "--gamma", gamma, "--rounds", "3", "--eval-every", "0")
    done = run("--algo", "pfedpara", *options, "--out", str(tmp_path), ranks=3)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path, "pfedpara")
    assert "diverged" not in found
    assert found["accuracy"]["mean"] > reached
