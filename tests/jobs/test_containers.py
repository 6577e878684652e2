"""What containers withhold: system calls that a seccomp profile denies, and shared memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, command, summary

# Sends 15 million parameters to each rank and back, then says how much of /dev/shm is in use.
SEND = """
import os, time
time.sleep(float(os.environ.get("LATE", 0)) * (os.environ["MPI_LOCALRANKID"] == "0"))
from benchmarks.runtime.launch import launch
group = launch(lambda: None)
import numpy as np
comm = group.comm
mine, theirs = np.full(60_000_000, comm.rank, np.uint8), np.empty(60_000_000, np.uint8)
for rank in range(1, comm.size):
    if comm.rank == 0:
        comm.Send(mine, rank)
        comm.Recv(theirs, rank)
        assert (theirs == rank).all()
    elif comm.rank == rank:
        comm.Recv(theirs, 0)
        comm.Send(mine, 0)
        assert not theirs.any()
comm.Barrier()
memory = os.statvfs("/dev/shm")
if comm.rank == 0:
    print(1 - memory.f_bfree / memory.f_blocks)
group.leave()
"""
SMALL = 'mount -t tmpfs -o size="$0" none /dev/shm && exec "$@"'


def send(ranks: int) -> list[str]:
    return ["mpirun", "-np", str(ranks), sys.executable, "-c", SEND]


def denied(code: str, calls: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "denied.py"), code, calls, *words],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def with_memory(size: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``words`` where ``/dev/shm`` has so many bytes."""
    words = ("unshare", "-rm", "sh", "-c", SMALL, size, *words)
    return subprocess.run(words, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=240)


may_deny = denied("EPERM", "kcmp", "true").returncode == 0
may_mount = with_memory("1m", "true").returncode == 0
needs_seccomp = pytest.mark.skipif(not may_deny, reason="needs seccomp filters")
needs_mounts = pytest.mark.skipif(not may_mount, reason="needs mount namespaces")


@needs_seccomp
@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    "calls",
    [
        "process_vm_readv,process_vm_writev,ptrace,kcmp,memfd_create,userfaultfd",
        "process_vm_readv,process_vm_writev,ptrace,kcmp,memfd_create,userfaultfd,pidfd_open",
    ],
    ids=["all but the fork's", "all"],
)
@pytest.mark.slow
def test_a_job_ends_well_where_calls_are_denied(tmp_path: Path, code: str, calls: str) -> None:
    words = command("--algo", "fedavg", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path), ranks=3)
    done = denied(code, calls, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["rounds"] == 1


@needs_seccomp
@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
def test_large_messages_arrive_where_no_rank_may_read_another(code: str) -> None:
    done = denied(code, "process_vm_readv,process_vm_writev", *send(3))
    assert (done.returncode, done.stderr) == (0, "")


@needs_mounts
def test_large_messages_of_eleven_ranks_leave_a_small_dev_shm_free() -> None:
    done = with_memory("64m", *send(11))
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 0.3


@needs_mounts
def test_what_the_other_ranks_took_before_the_first_one_looked_is_not_held_against_them() -> None:
    done = with_memory("700k", *send(4), LATE="1")
    assert (done.returncode, done.stderr) == (0, "")


@needs_mounts
def test_no_rank_touches_memory_that_is_not_there_before_the_first_one_looked() -> None:
    done = with_memory("400k", *send(4), LATE="1")
    assert done.returncode == 1  # not SIGBUS's
    assert "0.4 MB are free" in done.stderr


@needs_mounts
@pytest.mark.slow
def test_33_ranks_fit_in_dockers_dev_shm(tmp_path: Path) -> None:
    options = ("--algo", "fedavg", "--clients", "32", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path))
    done = with_memory("64m", *command(*options, ranks=33))
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["rounds"] == 1


@needs_mounts
def test_a_dev_shm_that_is_too_small_is_refused_in_one_sentence() -> None:
    done = with_memory("400k", *send(4))
    assert done.returncode != 0
    assert re.fullmatch(
        r"error: 4 ranks on one host need 0\.6 MB in /dev/shm, and 0\.4 MB are free there: "
        r"take fewer ranks, or start the container with a larger --shm-size\n",
        done.stderr,
    )
