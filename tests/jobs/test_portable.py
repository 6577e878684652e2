"""A job that has to do without what only Linux has, as on macOS: same bits, by another way.

Nobody has run it on a Mac. This hides from our code what a Mac lacks.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, directory, run, same_findings

# The libraries that ask for the system are imported first: they are Linux's here.
LIKE_A_MAC = """
import ctypes, multiprocessing, os, socket, subprocess, sys, time
import h5py, mpi4py, numpy, psutil, torch
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
sys.platform = "darwin"
multiprocessing.context._default_context._default_context = multiprocessing.get_context("spawn")
del os.pidfd_open, os.sched_getaffinity, socket.SOCK_SEQPACKET, time.CLOCK_BOOTTIME
find = ctypes.CDLL.__getattr__
def lack(self, name):
    if name in ("mallopt", "on_exit", "prctl", "process_vm_readv"):
        raise AttributeError(name)
    return find(self, name)
ctypes.CDLL.__getattr__ = lack
def look(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc", "/sys", "/dev/shm")):
        frame = sys._getframe(1)
        while frame and not frame.f_globals.get("__name__", "").startswith(("psutil", "benchmarks", "data_partitions")):
            frame = frame.f_back
        if frame and not frame.f_globals["__name__"].startswith("psutil"):
            raise FileNotFoundError(2, "No such file", arguments[0])
sys.addaudithook(look)
"""


def test_launch_is_imported_where_nothing_is_linux() -> None:
    code = f"{LIKE_A_MAC}\nfrom benchmarks.runtime.launch import launch\nlaunch(lambda: None).leave()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_job_without_what_only_linux_has_gives_the_same_bits(tmp_path: Path) -> None:
    options = ("--algo", "pfedpara", "--rounds", "2", "--epochs", "1")
    code = f"{LIKE_A_MAC}\nfrom benchmarks import run\nrun.main()"
    words = [
        *("mpirun", "-np", "3", sys.executable, "-c", code),
        *options,
        "--out",
        str(tmp_path / "mac"),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stderr) == (0, "")
    assert run(*options, "--out", str(tmp_path / "linux"), ranks=3).returncode == 0
    same_findings(*(directory(tmp_path / name, "pfedpara") for name in ("mac", "linux")))
