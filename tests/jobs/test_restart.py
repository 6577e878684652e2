"""Nothing is lost by a job that is killed at any moment or runs out of disk."""

import functools
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support import (
    DOWN_WITHIN,
    alive,
    directory,
    family,
    rows,
    run,
    same_findings,
    start,
    summary,
    wait_until,
)

EVERY = 3  # rounds between checkpoints
ROUNDS = 140  # more than ten lives reach on a quick machine
LONG = ("--algo", "pfedme", "--rounds", str(ROUNDS), "--epochs", "1", "--fraction", "0.3")
LONG += ("--checkpoint-every", str(EVERY), "--clients-per-round", "6", "--dropout", "0.2", "--deadline", "3")
LONG += ("--eval-every", "2")
SHORT = ("--algo", "pfedme", "--rounds", "6", "--epochs", "1", "--checkpoint-every", "1", "--clients-per-round", "6")


def newest_round(out: Path) -> int:
    """Returns the round of the newest checkpoint, 0 where there is none."""
    return max((int(folder.name[6:]) for folder in out.rglob("checkpoint/round-??????")), default=0)


def recorded(out: Path) -> int:
    """Returns the last round in rounds.csv."""
    table = directory(out, "pfedme") / "rounds.csv"
    return max((int(row["round"]) for row in rows(table)), default=0) if table.exists() else 0


def ended(job: subprocess.Popen[str], processes: list[psutil.Process], out: Path) -> bool:
    return job.poll() is not None and not alive(processes, out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_ten_random_moments_loses_only_the_rounds_since_its_checkpoint(tmp_path: Path) -> None:
    """One run, killed again and again: in start-up, in training, while it writes; mpirun, the server or a worker."""
    moments, out = random.Random(5), tmp_path / "killed"
    for life in range(10):
        kept = newest_round(out)
        assert recorded(out) - kept <= EVERY + 1
        job = start(*LONG, "--resume", "--out", str(out), ranks=3)
        if life % 5 == 0:
            time.sleep(moments.uniform(0, 4))  # before it trains, mostly
        else:
            goal = kept + moments.randint(1, 5)
            wait_until(lambda goal=goal, job=job: recorded(out) >= goal or job.poll() is not None, 60)
            time.sleep(moments.uniform(0, 0.1))
        assert job.poll() is None, job.communicate()
        processes = family(job)
        moments.choice(processes).send_signal(signal.SIGKILL)  # mpirun, its helper, the server or a worker
        assert wait_until(functools.partial(ended, job, processes, out), DOWN_WITHIN), alive(processes, out)
        job.communicate()
        assert newest_round(out) >= kept
    assert 10 < newest_round(out) < ROUNDS
    done = run(*LONG, "--resume", "--out", str(out), ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    whole = tmp_path / "whole"
    assert run(*LONG, "--out", str(whole), ranks=1).returncode == 0
    same_findings(directory(out, "pfedme"), directory(whole, "pfedme"))


# A full disk


LIMITED = """
import resource

planned = run.plan
def limited(*given):
    due = planned(*given)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
    return due
run.plan = limited
"""
"""From the moment that the server lets the others start: MPI's own shared memory are files too."""


@pytest.mark.slow
def test_a_full_disk_ends_the_job_in_one_sentence_and_it_goes_on_later(tmp_path: Path) -> None:
    """The server's files cannot grow beyond 300 kB: the first checkpoint's tensors hit that."""
    out = tmp_path / "out"
    assert run(*SHORT[:2], "--rounds", "1", "--epochs", "1", "--out", str(tmp_path / "first")).returncode == 0
    out.mkdir()
    shutil.copytree(tmp_path / "first" / "data", out / "data")  # the partition is there already
    done = run(*SHORT, "--out", str(out), ranks=2, before=LIMITED.format(size=300_000))
    assert done.returncode not in (0, None)
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert "File too large" in sentence
    assert str(out) in sentence
    done = run(*SHORT, "--resume", "--out", str(out), ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(out, "pfedme")["rounds"] == 6
