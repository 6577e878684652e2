"""Machines and shells that are a little odd: a job runs there as anywhere, and says nothing about it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, command, summary

LONG = "x" * 180
# What is put before a job's command: a program, and a shell's lines before its last, `exec "$@"`. What goes together is
# tried together; a word in braces is replaced.
SHELLS = {
    "no name, no network, HOME and checkout read-only, TMPDIR long": (
        "unshare -rmnu",
        f"""hostname nowhere.invalid
        mount -t tmpfs -o ro none /mnt && export HOME=/mnt
        mount --bind {{root}} {{root}} && mount -o remount,bind,ro {{root}}
        mkdir -p {{out}}/{LONG} && export TMPDIR={{out}}/{LONG}""",
    ),
    "HOME unset, LC_ALL=C, umask 077, 64 open files, TMPDIR missing": (
        "",
        "unset HOME; export LC_ALL=C TMPDIR={out}/none; umask 077; ulimit -n 64",
    ),
    "one core": (f"taskset -c {min(os.sched_getaffinity(0))}", ""),
}


def start(before: str, line: str, out: Path, root: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = command("--algo", "fedavg", "--rounds", "1", "--epochs", "1", "--out", str(out), ranks=2)
    words = [str(root / word) if word == "benchmarks/run.py" else word for word in words]
    shell = [*before.split(), "sh", "-c", f'set -e\n{line.format(root=root, out=out)}\nexec "$@"', "sh"]
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
def test_a_job_runs_from_a_path_with_spaces_and_accents_and_from_another_folder(tmp_path: Path) -> None:
    root = tmp_path / "an été of code"
    for package in ("baselines", "benchmarks", "data_partitions", "pfedpara"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    done = start("", "", Path("les résultats"), root, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path / "les résultats", "fedavg")["rounds"] == 1
