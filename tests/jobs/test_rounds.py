"""Who takes part in a round, and who is absent."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.federation.participation import draw_faults
from benchmarks.federation.settings import Settings
from benchmarks.runtime.worker import pick_device
from tests.support import run, summary


def test_the_ranks_of_a_host_take_its_gpus_in_turn() -> None:
    assert [pick_device("cuda", local_rank, 2) for local_rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert pick_device("cpu", 3, 0) == "cpu"


def settings(**options: float) -> Settings:
    return Settings(**{"out": Path("runs"), "seed": 4} | options)


SAMPLES = dict.fromkeys(range(100), 50)


def test_nobody_is_absent_unless_asked_for() -> None:
    assert draw_faults(settings(), 1, SAMPLES) == ([], [])
    assert draw_faults(settings(dropout=1), 1, SAMPLES) == (list(SAMPLES), [])


def test_a_client_is_absent_in_a_round_whoever_else_takes_part() -> None:
    dropped, _ = draw_faults(settings(dropout=0.3), 7, SAMPLES)
    assert 15 < len(dropped) < 45
    assert draw_faults(settings(dropout=0.3), 7, dict.fromkeys(dropped, 9)) == (dropped, [])
    assert draw_faults(settings(dropout=0.3), 8, SAMPLES)[0] != dropped
    assert draw_faults(settings(dropout=0.3, seed=5), 7, SAMPLES)[0] != dropped


def test_late_is_who_takes_longer_than_the_deadline() -> None:
    samples = {0: 10, 1: 20, 2: 30, 3: 41, 4: 60}  # the median takes 30
    assert draw_faults(settings(deadline=1.5), 1, samples) == ([], [4])
    assert draw_faults(settings(deadline=1.3), 1, samples) == ([], [3, 4])
    # A quarter is slowed down by U(1, 10): the median is not, and 7 in 9 of them are above three times it.
    _, late = draw_faults(settings(stragglers=0.25, deadline=3), 1, dict.fromkeys(range(4000), 50))
    assert len(late) / 4000 == pytest.approx(0.25 * 7 / 9, abs=0.02)


def test_who_fails_is_not_late_as_well() -> None:
    dropped, late = draw_faults(settings(dropout=0.5, stragglers=0.5, deadline=1), 1, SAMPLES)
    assert dropped
    assert late
    assert not {*dropped} & {*late}


@pytest.mark.parametrize("options", [{"dropout": 1.1}, {"stragglers": 0.5}, {"deadline": -1}, {"dropout": np.nan}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        settings(**options)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_rounds_in_which_nobody_answers_end_however_many_they_are(tmp_path: Path, ranks: int) -> None:
    rounds = ("--rounds", "700", "--eval-every", "0", "--checkpoint-every", "0")
    done = run("--algo", "local", "--dropout", "1", *rounds, "--out", str(tmp_path), ranks=ranks)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "local")["absent"] == {"dropped": 7000, "late": 0}
