"""Machines and shells that are a little odd: a job runs there as anywhere, and says nothing about it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, command, summary

LONG = "x" * 180
# What is put before a job's command: a shell's line before its last, `exec "$@"`; a word in braces is replaced.
SHELLS = {
    "no name": ("unshare -ru", "hostname nowhere.invalid"),
    "no network": ("unshare -rn", "true"),
    "checkout read-only": ("unshare -rm", "mount --bind {root} {root} && mount -o remount,bind,ro {root}"),
    "HOME unset": ("", "unset HOME"),
    "HOME read-only": ("unshare -rm", "mount -t tmpfs -o ro none /mnt && export HOME=/mnt"),
    "LC_ALL=C": ("", "export LC_ALL=C"),
    "umask 077": ("", "umask 077"),
    "64 open files": ("", "ulimit -n 64"),
    "TMPDIR missing": ("", "export TMPDIR={out}/none"),
    "TMPDIR long": ("", f"mkdir -p {{out}}/{LONG} && export TMPDIR={{out}}/{LONG}"),
    "one core": (f"taskset -c {min(os.sched_getaffinity(0))}", "true"),
}


def start(before: str, line: str, out: Path, root: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = command("--algo", "fedavg", "--rounds", "1", "--epochs", "1", "--out", str(out), ranks=2)
    words = [str(root / word) if word == "benchmarks/run.py" else word for word in words]
    shell = [*before.split(), "sh", "-c", f'{line.format(root=root, out=out)} && exec "$@"', "sh"]
    return subprocess.run(
        [*shell, *words], cwd=cwd, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL
    )


def allowed(before: str) -> bool:
    return subprocess.run([*before.split(), "true"], capture_output=True).returncode == 0 if before else True


@pytest.mark.parametrize("machine", SHELLS)
@pytest.mark.slow
def test_a_job_runs_on_an_odd_machine(tmp_path: Path, machine: str) -> None:
    before, line = SHELLS[machine]
    if not allowed(before):
        pytest.skip(f"needs {before}")
    done = start(before, line, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["rounds"] == 1


@pytest.mark.slow
def test_a_job_runs_from_a_path_with_spaces_and_accents(tmp_path: Path) -> None:
    root = tmp_path / "an été of code"
    for package in ("baselines", "benchmarks", "data_partitions", "pfedpara"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    done = start("", "true", root / "les résultats", root, root)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(root / "les résultats", "fedavg")["rounds"] == 1


@pytest.mark.slow
def test_a_job_runs_from_another_folder(tmp_path: Path) -> None:
    done = start("", "true", Path("results"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path / "results", "fedavg")["rounds"] == 1
