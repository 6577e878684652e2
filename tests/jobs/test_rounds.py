"""Who takes part in a round, who trains whom, and who is absent."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.federation.participation import draw_faults
from benchmarks.federation.settings import Settings
from benchmarks.runtime.server import balance, place
from benchmarks.runtime.worker import pick_device
from tests.support import run, summary

SIZES = st.dictionaries(st.integers(0, 50), st.integers(0, 500), max_size=30)
WORKERS = range(1, 4)


def test_the_ranks_of_a_host_take_its_gpus_in_turn() -> None:
    assert [pick_device("cuda", local_rank, 2) for local_rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert pick_device("cpu", 3, 0) == "cpu"


def loads(sizes: dict[int, int], clients: dict[int, list[int]]) -> list[int]:
    return [sum(sizes[client] for client in own) for own in clients.values()]


def test_the_largest_client_goes_first_to_the_idlest_worker() -> None:
    sizes = {0: 2, 1: 7, 2: 5, 3: 4, 4: 4}
    assert place(sizes, {}, [1, 2], 0) == ({1: [1, 4], 2: [2, 3, 0]}, 11)


def test_a_client_stays_where_its_state_is_unless_that_costs_time() -> None:
    sizes = {0: 10, 1: 10, 2: 10, 3: 10}
    assert balance(sizes, {0: 2, 1: 2, 2: 1, 3: 1}, [1, 2]) == {1: [2, 3], 2: [0, 1]}
    assert balance(sizes, {0: 1, 1: 1, 2: 1, 3: 2}, [1, 2]) == {1: [0, 1], 2: [2, 3]}


@given(SIZES, st.data())
def test_each_client_is_trained_once_and_no_worker_by_more_than_one_client_above_the_mean(
    sizes: dict[int, int], data: st.DataObject
) -> None:
    home = data.draw(st.dictionaries(st.sampled_from(sorted(sizes)), st.sampled_from(WORKERS))) if sizes else {}
    clients = balance(sizes, home, WORKERS)
    assert Counter(client for own in clients.values() for client in own) == Counter(list(sizes))
    assert max(loads(sizes, clients)) <= sum(sizes.values()) / len(WORKERS) + max(sizes.values(), default=0)


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
