"""An mpirun that is not of the MPI library that mpi4py uses: one sentence that says which to call."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, command, summary

JOIN = """
from benchmarks.runtime.launch import launch
group = launch(lambda: None)
print(group.comm.size)
group.leave()
"""
HERE = Path(sys.executable).with_name("mpirun")
needs_open_mpi = pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs Open MPI as Debian packs it")
needs_mpich = pytest.mark.skipif(not HERE.exists(), reason="needs the mpirun of the wheel mpich")


def join(*launcher: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Starts processes that do nothing but join each other, and print how many they are."""
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = [*launcher, sys.executable, "-c", JOIN]
    return subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | allowed | env,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall("^error: .*", done.stderr, re.MULTILINE)


@needs_open_mpi
@needs_mpich
def test_open_mpis_launcher_is_told_from_mpichs() -> None:
    done = join("mpirun.openmpi", "--oversubscribe", "-np", "3")
    assert done.returncode == 1
    assert sentences(done) == [
        f"error: this was started by Open MPI's mpirun, but mpi4py uses MPICH: call {HERE}",
    ]
    assert "unsupported PMI version" not in done.stderr
    assert "Traceback" not in done.stderr


@needs_open_mpi
@needs_mpich
def test_mpichs_launcher_is_told_from_open_mpis() -> None:
    done = join(str(HERE), "-np", "3", MPI4PY_LIBMPI="libmpi.so.40")
    assert done.returncode == 1
    said = "this was started by MPICH's mpirun, but mpi4py uses Open MPI: call the mpirun of Open MPI"
    assert done.stderr == f"error: {said}\n"


@needs_open_mpi
def test_open_mpis_launcher_runs_open_mpis_library() -> None:
    done = join("mpirun.openmpi", "--oversubscribe", "-np", "3", MPI4PY_LIBMPI="libmpi.so.40")
    said = done.stdout.replace("\n", "")  # a line and its end may arrive apart, between those of other ranks
    assert (done.returncode, said, sentences(done)) == (0, "333", [])


@pytest.mark.skipif(not shutil.which("mpirun.mpich"), reason="needs MPICH as Debian packs it")
@pytest.mark.slow
def test_debians_mpich_launches_a_job(tmp_path: Path) -> None:
    words = command("--algo", "fedavg", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path), ranks=3)
    done = subprocess.run(["mpirun.mpich", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["rounds"] == 1


@needs_mpich
@pytest.mark.parametrize(
    ("said", "env"),
    [
        (
            "this was started by Open MPI's mpirun, but mpi4py uses MPICH",
            {"OMPI_COMM_WORLD_SIZE": "11", "PMIX_NAMESPACE": "1@1", "PMIX_RANK": "0"},
        ),
        ("this was started by a launcher that speaks PMIx, but mpi4py uses MPICH", {"PMIX_NAMESPACE": "slurm.1.0"}),
        (
            "each of the 11 processes that were started is a job of its own",
            {"SLURM_STEP_NUM_TASKS": "11", "SLURM_PROCID": "3"},
        ),
    ],
    ids=["Open MPI", "PMIx", "worlds of one"],
)
def test_what_a_launcher_says_of_itself_is_compared_with_the_library(said: str, env: dict[str, str]) -> None:
    done = join(**env)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {said}: call {HERE}\n")


@pytest.mark.parametrize("env", [{}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}], ids=["alone", "one task"])
def test_a_process_that_was_started_alone_is_a_job(env: dict[str, str]) -> None:
    done = join(**env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
