"""What is on the disk already: kept, gone on with or run anew, by one job at a time, never mixed with other data."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.federation import command_line, lock, options, planning
from data_partitions import open_store
from tests.support import ROOT, directory, rows, run, snapshot, start, summary, wait_for_round

TINY = ("--algo", "local", "--rounds", "1", "--epochs", "1")
LONG = ("--algo", "pfedme", "--rounds", "200", "--epochs", "1", "--fraction", "0.3", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    done = run(*TINY, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    return out


@pytest.fixture
def finished(tiny: Path, tmp_path: Path) -> Path:
    """The folder of a small job that has ended well."""
    return shutil.copytree(tiny, tmp_path / "out")


# The same command again


@pytest.mark.parametrize("resume", [(), pytest.param(("--resume",), marks=pytest.mark.slow)])
def test_what_is_finished_stays_and_is_named_and_what_is_new_runs(finished: Path, resume: tuple[str, ...]) -> None:
    before = snapshot(directory(finished, "local"))
    done = run(*TINY, "--seed", "0", "1", *resume, "--out", str(finished))
    assert (done.returncode, done.stderr) == (0, "")
    kept, ran = directory(finished, "local"), directory(finished, "local", seed=1)
    assert f"finished before and kept (--overwrite runs anew):\n  {kept}\n" in done.stdout
    assert f"\nresults in {ran}; next:\n" in done.stdout
    assert (done.stdout.count(str(kept)), done.stdout.count(str(ran))) == (1, 1)
    assert snapshot(directory(finished, "local")) == before
    assert summary(finished, "local", seed=1)["rounds"] == 1


def test_overwrite_runs_anew_what_is_there(finished: Path) -> None:
    """Also another experiment, but no file that is not a run's."""
    folder = directory(finished, "local")
    (folder / "notes").mkdir()
    (folder / "notes" / "of the first run.txt").touch()
    done = run(*TINY[:2], "--rounds", "2", "--epochs", "1", "--overwrite", "--out", str(finished))
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished before" not in done.stdout
    assert not (folder / "notes").exists()
    assert [row["round"] for row in rows(folder / "rounds.csv")] == ["1", "2"]
    strange = directory(finished, "local", seed=1)
    strange.mkdir()
    (strange / "diary.txt").touch()
    with pytest.raises(options.UsageError, match=re.escape(f"{strange} holds files that are not a run's")):
        planning.plan(command_line.parser().parse_args([*TINY, "--seed", "1", "--overwrite", "--out", str(finished)]))
    assert (strange / "diary.txt").exists()


def test_overwrite_clears_what_a_link_leads_to(finished: Path, tmp_path: Path) -> None:
    folder = directory(finished, "local").rename(tmp_path / "elsewhere")
    directory(finished, "local").symlink_to(folder)
    due, kept = planning.plan(command_line.parser().parse_args([*TINY, "--overwrite", "--out", str(finished)]))
    assert (len(due), kept) == (1, [])
    assert {path.name for path in folder.iterdir()} == {lock.NAME}


def test_one_name_for_one_experiment(tmp_path: Path) -> None:
    """Another way to write a partition, a seed or a path is no other run."""
    np.savez(tmp_path / "a.npz", x=np.zeros((60, 2, 2), np.uint8), y=np.arange(60) % 2)
    words = ["--dataset", f"npz:{tmp_path}/./a.npz", "--clients", "2", "--out", str(tmp_path / "out")]
    words += ["--partition", "dirichlet:0.5", "dirichlet:.50", "dirichlet:5e-1", "--seed", "0", "00", "1"]
    found = options.settings_of(command_line.parser().parse_args(words))
    assert [(s.dataset, s.partition, s.seed) for s in found] == [
        (f"npz:{tmp_path}/a.npz", "dirichlet:0.5", seed) for seed in (0, 1)
    ]
    assert found[0].directory == tmp_path / "out" / "a-dirichlet:0.5" / "pfedpara" / "seed0"


# Other data under the same name


def samples(path: Path, first: int) -> None:
    x = np.arange(60 * 4, dtype=np.uint8).reshape(60, 2, 2)
    x[0, 0, 0] = first
    np.savez(path, x=x, y=np.arange(60) % 2)


def test_a_run_on_other_data_is_not_taken_up(tmp_path: Path) -> None:
    samples(tmp_path / "a.npz", 1)
    words = [*TINY, "--dataset", f"npz:{tmp_path}/a.npz", "--clients", "2", "--partition", "iid"]
    words += ["--out", str(tmp_path / "out")]
    assert run(*words).returncode == 0
    folder = tmp_path / "out" / "a-iid" / "local" / "seed0"
    found = json.loads((folder / "summary.json").read_text())
    with open_store(next((tmp_path / "out" / "data").glob("*iid*.h5"))) as store:
        assert found["partition_sha256"] == store.sha256
        assert found["samples_sha256"] == store.recipe["samples_sha256"]
        samples_of_all = int(store.sizes("train").sum())
    hyper = yaml.safe_load((folder / "config.yaml").read_text())["hyper"]
    gradients = found["rounds"] * hyper["epochs"] * samples_of_all
    assert found["work"]["gradients"] == {"training": gradients, "adaptation": 0}
    assert int(rows(folder / "rounds.csv")[-1]["gradients"]) == gradients
    provenance = found["provenance"]
    assert provenance["origins"]["epochs"] == "given"
    assert provenance["origins"]["clip_norm"] == "default"
    assert provenance["tuning"] is None  # not on these data
    assert provenance["command"].endswith(shlex.join(words))
    assert (provenance["workers"], provenance["machine"]["cores"]) == (1, os.cpu_count())
    samples(tmp_path / "a.npz", 2)
    for ended in (True, False):
        if not ended:
            (folder / "summary.json").unlink()
        before = snapshot(folder)
        with pytest.raises(options.UsageError) as refused:
            planning.plan(command_line.parser().parse_args(words))
        old = yaml.safe_load((folder / "config.yaml").read_text())["partition_sha256"]
        assert old == found["partition_sha256"]
        for fact in (str(folder), "other data", f"partition_sha256: {old} there", "--overwrite"):
            assert fact in str(refused.value)
        assert snapshot(folder) == before


# Two jobs


def holder(folder: Path) -> subprocess.Popen[str]:
    """Starts a process that locks ``folder``, and waits until it has."""
    script = (
        "import sys; from pathlib import Path; from benchmarks.federation import lock; lock.hold(Path(sys.argv[1]))"
    )
    script += "; print('held', flush=True); sys.stdin.read(); lock.release(Path(sys.argv[1]))"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_a_lock_names_who_holds_it_and_ends_with_the_process(tmp_path: Path) -> None:
    other = holder(tmp_path)
    with pytest.raises(BlockingIOError) as refused:
        lock.hold(tmp_path)
    assert refused.value.filename == str(tmp_path)
    assert f"host {socket.gethostname()}, process {other.pid}, since {time.strftime('%Y-')}" in str(refused.value)
    other.kill()
    other.communicate()
    assert (tmp_path / lock.NAME).exists()
    lock.hold(tmp_path)
    lock.release(tmp_path)
    assert not (tmp_path / lock.NAME).exists()


def test_a_lock_is_taken_by_one_of_many(tmp_path: Path) -> None:
    """Each adds 1 to a number again and again while it holds the lock, which it removes."""
    script = """
import sys
from pathlib import Path
from benchmarks.federation import lock

folder, done = Path(sys.argv[1]), 0
number = folder / "number"
while done < 50:
    try:
        lock.hold(folder)
    except BlockingIOError:
        continue
    number.write_text(str(int(number.read_text()) + 1))
    lock.release(folder)
    done += 1
"""
    (tmp_path / "number").write_text("0")
    jobs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    assert [job.wait(timeout=120) for job in jobs] == [0] * 4
    assert (tmp_path / "number").read_text() == "200"


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear diary")
    (tmp_path / lock.NAME).symlink_to(tmp_path / "letter")
    with pytest.raises(OSError, match="lock"):
        lock.hold(tmp_path)
    assert (tmp_path / "letter").read_text() == "dear diary"


def test_a_second_job_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    """Neither what the first one writes nor what the second was to run beside it."""
    first = start(*LONG, "--out", str(tmp_path), ranks=2)
    folder = directory(tmp_path, "pfedme")
    try:
        wait_for_round(first, folder / "rounds.csv", 3)
        words = [*LONG, "--seed", "7", "0", "--out", str(tmp_path)]
        done = run(*words, ranks=2)
        assert (done.returncode, done.stdout) == (2, "")
        with pytest.raises(options.UsageError) as refused:
            planning.plan(command_line.parser().parse_args([*words, "--overwrite"]))
        for said in (done.stderr, str(refused.value)):
            (sentence,) = said.splitlines()
            assert str(folder) in sentence
            assert re.search(rf"host {re.escape(socket.gethostname())}, process \d+, since \d{{4}}-", sentence)
        assert not [path for path in directory(tmp_path, "pfedme", seed=7).rglob("*") if path.is_file()]
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate()
    numbers = [int(row["round"]) for row in rows(folder / "rounds.csv")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_job_goes_on_where_a_killed_one_left_its_lock(finished: Path) -> None:
    folder = directory(finished, "local")
    (folder / "summary.json").unlink()
    other = holder(folder)
    other.kill()
    other.communicate()
    assert run(*TINY, "--out", str(finished)).returncode == 0
    assert (folder / "summary.json").exists()
    assert not (folder / lock.NAME).exists()
