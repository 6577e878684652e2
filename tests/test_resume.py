"""Jobs that were killed and go on with ``--resume``, to the bits of one that nothing stopped."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.jobs import DOWN_WITHIN, alive, directory, family, run, same_findings, start, wait_for_round, wait_until

RESUMABLE = (
    *("--algo", "pfedpara", "pfedme", "--rounds", "12", "--epochs", "1"),
    *("--clients-per-round", "6", "--checkpoint-every", "1"),
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    done = run(*RESUMABLE, "--out", str(out), ranks=2)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job left behind that was killed in the middle of its first run."""
    out = tmp_path_factory.mktemp("killed")
    job = start(*RESUMABLE, "--out", str(out), ranks=3)
    wait_for_round(job, directory(out, "pfedpara") / "rounds.csv", 3)
    processes = family(job)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    assert wait_until(lambda: not alive(processes, out), DOWN_WITHIN), alive(processes, out)
    return out


def test_an_unfinished_run_has_no_summary(killed: Path) -> None:
    assert (directory(killed, "pfedpara") / "rounds.csv").exists()
    assert not list(killed.rglob("summary.json"))


def resume(out: Path, uninterrupted: Path) -> str:
    """Goes on with a run and compares it with the one that nothing stopped. Returns what it said on standard error."""
    done = run(*RESUMABLE, "--resume", "--out", str(out), ranks=2)
    assert done.returncode == 0, done.stderr
    for algo in ("pfedpara", "pfedme"):
        same_findings(directory(out, algo), directory(uninterrupted, algo))
    return done.stderr


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(killed: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert resume(shutil.copytree(killed, tmp_path / "out"), uninterrupted) == ""


def test_a_run_killed_before_its_summary_gets_it(uninterrupted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    for found in list(out.rglob("summary.json")):
        found.unlink()
    assert resume(out, uninterrupted) == ""


@pytest.mark.slow
@pytest.mark.parametrize("torn", ["client-?.safetensors", "shared.*", "server.json"])
def test_a_torn_checkpoint_gives_way_to_the_one_before(
    killed: Path, uninterrupted: Path, tmp_path: Path, torn: str
) -> None:
    out = shutil.copytree(killed, tmp_path / "out")
    victim = next(max((directory(out, "pfedpara") / "checkpoint").glob("round-??????")).glob(torn))
    before = sorted(victim.parent.parent.glob("round-??????"))[-2]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    (sentence,) = resume(out, uninterrupted).splitlines()
    for fact in (str(victim.parent), victim.name, f"from round {int(before.name[6:])}"):
        assert fact in sentence
