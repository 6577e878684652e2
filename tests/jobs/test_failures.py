"""Jobs in which training, a client or a worker goes wrong: what diverged is recorded, the rest ends in one sentence."""

import re
import time
from pathlib import Path

import pytest

from tests.support import DOWN_WITHIN, alive, directory, rows, run, summary, wait_until

SHORT = ("--rounds", "2", "--epochs", "1")


def test_a_diverged_run_is_recorded_and_the_next_method_goes_on(tmp_path: Path) -> None:
    wild = ("--set", "fedavg.lr=1e30", "fedavg.clip_norm=0")
    done = run("--algo", "fedavg", "local", *SHORT, *wild, "--out", str(tmp_path), ranks=3)
    assert done.returncode == 0
    (sentence,) = done.stderr.splitlines()
    diverged = summary(tmp_path, "fedavg")["diverged"]
    for fact in ("fedavg", f"client {diverged['client']}", f"round {diverged['round']}", "1e+30"):
        assert fact in sentence
    assert (diverged["round"], diverged["lr"]) == (1, 1e30)
    assert summary(tmp_path, "fedavg")["accuracy"] is None
    assert "diverged" not in summary(tmp_path, "local")
    assert len(rows(directory(tmp_path, "local") / "rounds.csv")) == 2


BREAK = """
from baselines.fedavg import FedAvgTrainer

fit = FedAvgTrainer.fit
def broken(self, data, context):
    if (context.client, context.round) == (3, 1):
        raise RuntimeError("a wheel came off")
    return fit(self, data, context)
FedAvgTrainer.fit = broken
"""
"""Client 3 fails in round 2."""


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_failing_client_ends_the_job_in_one_sentence(tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "out"
    options = ("--algo", "pfedpara", "fedavg", *SHORT, "--out", str(out))
    done = run(*options, ranks=ranks, before=BREAK)
    assert wait_until(lambda: not alive([], out), DOWN_WITHIN)
    assert done.returncode != 0
    (sentence,) = done.stderr.splitlines()
    for fact in ("error: ", "client 3", "round 2", "a wheel came off"):
        assert fact in sentence
    assert re.search(r"\brank [0-3]\b", sentence)
    assert not list(out.rglob("summary.json"))


FORGE = """
from benchmarks.runtime.worker import Worker
from benchmarks.runtime.messages import Kind

send = Worker.send
def forged(self, kind, receiver, tensors=None, **params):
    if (kind, self.rank, params.get("round")) == (Kind.{kind}, 2, 2):
        {forgery}
    send(self, kind, receiver, tensors, **params)
Worker.send = forged
"""
"""Worker 2 lies in round 2."""


@pytest.mark.parametrize(
    ("forgery", "wrong"),
    [
        ("tensors = tensors[:-1]", "expected 203530 parameters, got 203529"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("params['round'] = 1", "for round 1 in round 2"),
                ("params['client'] = 99", "none was due from it for client 99"),
                ("params['samples'] += 1", "samples, not"),
                ("params['samples'] = '5'", "its samples is '5' instead of int"),
                ("kind = Kind.FINISH", "that is not its part"),
                ("kind = Kind.ABSENT", "none was due from it for client"),
                ("kind = 99", "there is no such type"),
            ]
        ),
    ],
)
def test_a_wrong_message_ends_the_job_and_names_its_sender(tmp_path: Path, forgery: str, wrong: str) -> None:
    out = tmp_path / "out"
    done = run(
        "--algo", "fedavg", *SHORT, "--out", str(out), ranks=3, before=FORGE.format(kind="UPDATE", forgery=forgery)
    )
    assert done.returncode != 0
    (sentence,) = done.stderr.splitlines()
    for fact in ("error: rank 0", "round 2", "worker 2 sent", wrong):
        assert fact in sentence
    assert not list(out.rglob("summary.json"))


@pytest.mark.slow
def test_results_of_a_wrong_form_end_the_job_and_name_their_sender(tmp_path: Path) -> None:
    before = FORGE.format(kind="RESULTS", forgery="params['received'] = {'0': 'good'}")
    done = run("--algo", "fedavg", *SHORT, "--out", str(tmp_path), ranks=3, before=before)
    assert done.returncode != 0
    (sentence,) = done.stderr.splitlines()
    assert "worker 2 sent RESULTS, but its received.0 is 'good': Input should be a valid number" in sentence


def test_an_update_that_is_not_finite_ends_the_run_as_diverged_and_names_its_client(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    forgery = f"tensors[7] = float('nan'); open({str(mark)!r}, 'a').write(str(params['client']) + ' ')"
    before = FORGE.format(kind="UPDATE", forgery=forgery)
    done = run("--algo", "fedavg", *SHORT, "--out", str(tmp_path), ranks=3, before=before)
    assert done.returncode == 0, done.stderr
    first = min(map(int, mark.read_text().split()))
    diverged = summary(tmp_path, "fedavg")["diverged"]
    assert (diverged["client"], diverged["round"]) == (first, 2)
    assert diverged["reason"] == "a parameter that it sent is not finite"
    assert f"client {first}, round 2" in done.stderr


@pytest.mark.slow
def test_a_global_model_that_leaves_the_finite_numbers_is_recorded(tmp_path: Path) -> None:
    options = ("--algo", "fedavgm", "--set", "server_lr=1e42", "--rounds", "2", "--epochs", "1")
    done = run(*options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    diverged = summary(tmp_path, "fedavgm")["diverged"]
    assert (diverged["client"], diverged["reason"]) == (None, "the new global model is not finite")
    assert "server" in done.stderr


BACKWARDS = """
import itertools, time
now, hours = time.time(), itertools.count()
time.time = lambda: now - 3600 * next(hours)
"""


def test_seconds_hold_where_the_wall_clock_goes_back(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("--algo", "fedavg", *SHORT, "--out", str(tmp_path), before=BACKWARDS)
    assert (done.returncode, done.stderr) == (0, "")
    seconds = summary(tmp_path, "fedavg")["seconds"]
    parts = [seconds[part] for part in ("startup", "training", "evaluation")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= seconds["total"] <= time.monotonic() - began
