"""Clients' private states: moved between ranks, kept in files, and the same bits wherever they are."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.runtime.states import StateFile
from tests.support import directory, run, same_findings, start, summary

FAULTS = ("--dropout", "0.2", "--stragglers", "0.3", "--deadline", "1.5")


MOVING = ("pfedpara", "pfedme", "local")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs methods with private states on so many ranks, and returns the folder; the same job only once."""

    @cache
    def ran(ranks: int, *options: str) -> Path:
        out = tmp_path_factory.mktemp("job")
        words = ("--algo", *MOVING, "--rounds", "5", "--epochs", "1", "--clients-per-round", "6", *options)
        done = run(*words, "--out", str(out), ranks=ranks)
        assert (done.returncode, done.stderr) == (0, "")
        return out

    return ran


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (3, (*FAULTS, "--state-dir")),
        *(pytest.param(3, options, marks=pytest.mark.slow) for options in ((), FAULTS, ("--state-dir",))),
        pytest.param(5, (*FAULTS, "--state-dir"), marks=pytest.mark.slow),
    ],
)
def test_moving_states_and_faults_change_no_bit(
    ended: Callable[..., Path], tmp_path: Path, ranks: int, options: tuple[str, ...]
) -> None:
    """Clients' states in files or in memory, moved between ranks or not."""
    in_files = "--state-dir" in options
    faults = tuple(option for option in options if option != "--state-dir")
    alone = ended(1, *faults)
    spread = ended(ranks, *faults, *("--state-dir", str(tmp_path / "states")) * in_files)
    for algo in MOVING:
        same_findings(directory(spread, algo), directory(alone, algo))
        assert summary(spread, algo)["moved"]["parameters"] > 0
        assert summary(alone, algo)["moved"] == {"parameters": 0, "bytes": 0}
    assert not list(tmp_path.glob("states/**/*.safetensors"))  # what is left is in the checkpoints


def test_states_come_back_from_the_slots_of_one_file(tmp_path: Path) -> None:
    states, kept = StateFile(tmp_path), {}
    stream = np.random.default_rng(0)
    for _ in range(200):
        client = int(stream.integers(12))
        if client in kept and stream.random() < 0.3:
            del states[client], kept[client]
        else:
            kept[client] = torch.from_numpy(stream.random((3, 5)))
            states[client] = {"p": kept[client], "q": kept[client].sum()}
    assert set(states) == set(kept)
    for client, tensor in kept.items():
        assert torch.equal(states[client]["p"], tensor)
        assert torch.equal(states[client]["q"], tensor.sum())
    assert states.get(12) is None
    assert StateFile(tmp_path).get(0) is None  # of another worker or job in the same folder
    assert not list(tmp_path.iterdir())
    assert os.fstat(states.file.fileno()).st_size <= 12 * states.size
    with pytest.raises(ValueError, match="client 3 has"):
        states[3] = {"p": torch.zeros(99)}


@pytest.mark.slow
def test_two_jobs_with_one_state_dir_do_not_meet(tmp_path: Path) -> None:
    words = ("--algo", "pfedme", "--rounds", "6", "--epochs", "1", "--clients-per-round", "6", "--lr")
    in_files = ("--state-dir", str(tmp_path / "states"))
    rates = ("0.01", "0.02")
    for job in [start(*words, lr, *in_files, "--out", str(tmp_path / lr), ranks=2) for lr in rates]:
        assert job.communicate()[1] == ""
    for lr in rates:
        assert run(*words, lr, "--out", str(tmp_path / "alone" / lr)).returncode == 0
        same_findings(directory(tmp_path / lr, "pfedme"), directory(tmp_path / "alone" / lr, "pfedme"))
    assert not list((tmp_path / "states").iterdir())
