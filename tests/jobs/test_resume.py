"""Jobs that were killed and go on with ``--resume``, to the bits of one that nothing stopped."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support import (
    DOWN_WITHIN,
    alive,
    directory,
    family,
    run,
    same_findings,
    start,
    summary,
    wait_for_round,
    wait_until,
)

RESUMABLE = (
    *("--algo", "pfedpara", "pfedme", "--rounds", "8", "--epochs", "1"),
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


def resume(out: Path, uninterrupted: Path) -> str:
    """Goes on with a run and compares it with the one that nothing stopped. Returns what it said on standard error."""
    done = run(*RESUMABLE, "--resume", "--out", str(out), ranks=2)
    assert done.returncode == 0, done.stderr
    for algo in ("pfedpara", "pfedme"):
        same_findings(directory(out, algo), directory(uninterrupted, algo))
    return done.stderr


def test_a_killed_run_has_no_summary_and_resumes_to_the_same_bits(
    killed: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    assert (directory(killed, "pfedpara") / "rounds.csv").exists()
    assert not list(killed.rglob("summary.json"))
    assert resume(shutil.copytree(killed, tmp_path / "out"), uninterrupted) == ""


@pytest.mark.slow
def test_a_run_killed_before_its_summary_gets_it(uninterrupted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    for found in list(out.rglob("summary.json")):
        found.unlink()
    assert resume(out, uninterrupted) == ""
    for algo in ("pfedpara", "pfedme"):
        first, both = (summary(folder, algo)["seconds"] for folder in (uninterrupted, out))
        assert (both["training"], both["evaluation"]) == (first["training"], first["evaluation"])
        assert both["startup"] > first["startup"]
        assert sum(both[part] for part in ("startup", "training", "evaluation")) <= both["total"]


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


@pytest.mark.slow
def test_a_table_that_lost_rows_gives_way_to_the_checkpoint_that_it_reaches(
    killed: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(killed, tmp_path / "out")
    table = directory(out, "pfedpara") / "clients.csv"
    newest = max((table.parent / "checkpoint").glob("round-??????"))
    number = int(newest.name[6:])
    lines = [line for line in table.read_text().splitlines(keepends=True) if not line.startswith(f"{number},")]
    table.write_text("".join(lines))
    (sentence,) = resume(out, uninterrupted).splitlines()
    for fact in (str(newest), "clients.csv", f"from round {number - 1}"):
        assert fact in sentence


@pytest.mark.parametrize(
    ("victim", "named"),
    [
        ("rounds.csv", "rounds.csv"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *((name, name) for name in ("clients.csv", "ledger.csv", "config.yaml", "events.out.tfevents.*")),
                ("checkpoint", "checkpoint/round-"),
                ("../seed0", ""),
            ]
        ),
    ],
)
def test_what_vanishes_during_a_run_ends_it_in_one_sentence(tmp_path: Path, victim: str, named: str) -> None:
    folder = directory(tmp_path, "fedavg")
    options = ("--algo", "fedavg", "--rounds", "5000", "--epochs", "1", "--checkpoint-every", "1")
    job = start(*options, "--out", str(tmp_path), ranks=2)
    wait_for_round(job, folder / "rounds.csv", 2)
    (path,) = folder.glob(victim)
    path.rename(tmp_path / "elsewhere")
    _, said = job.communicate(timeout=DOWN_WITHIN)
    assert job.returncode != 0
    (sentence,) = said.splitlines()
    assert "No such file" in sentence
    assert str(folder / named.partition("*")[0]) in sentence
    assert not path.exists()
