"""A job on two hosts: network namespaces, each with a name and an address of its own, joined by a virtual cable."""

import subprocess
from pathlib import Path

import pytest

from tests.support import DOWN_WITHIN, ROOT, alive, command, directory, family, run, summary, wait_for_round, wait_until

TWO_HOSTS = """
set -e
mount -t tmpfs none /run
ip netns add host1
ip netns add host2
ip link add eth1 netns host1 type veth peer name eth2 netns host2
for n in 1 2; do
    ip -n host$n addr add 10.77.0.$n/24 dev eth$n
    ip -n host$n link set eth$n up
    ip -n host$n link set lo up
done
exec ip netns exec host1 "$@"
"""
INSTEAD_OF_SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=host${1##*.}
shift
exec ip netns exec $host unshare -u sh -c "hostname $host; exec $*"
"""


def on_two_hosts(*words: str) -> list[str]:
    return ["unshare", "-rnm", "sh", "-c", TWO_HOSTS, "sh", *words]


may_have_hosts = subprocess.run(on_two_hosts("true"), capture_output=True).returncode == 0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not may_have_hosts, reason="needs network namespaces and iproute2")]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Starts a job with two ranks on each host; ``folder`` is the one that they share."""
    launcher = folder / "launch"
    launcher.write_text(INSTEAD_OF_SSH)
    launcher.chmod(0o755)
    words = command(*options, "--out", str(folder / "out"), ranks=4)
    words[1:1] = ["-launcher-exec", str(launcher), "-localhost", "10.77.0.1", "-hosts", "10.77.0.1,10.77.0.2"]
    words[1:1] = ["-ppn", "2", "-launcher", "ssh"]
    return subprocess.Popen(
        on_two_hosts(*words),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_hosts_give_the_same_bits(tmp_path: Path) -> None:
    options = ("--algo", "pfedpara", "--rounds", "2", "--epochs", "1")
    _, errors = (job := start(tmp_path, *options)).communicate(timeout=200)
    assert (job.returncode, errors) == (0, "")
    run(*options, "--out", str(tmp_path / "alone"))
    found, alone = (summary(tmp_path / name, "pfedpara") for name in ("out", "alone"))
    assert found["shared_sha256"] == alone["shared_sha256"]
    assert found["accuracy"] == alone["accuracy"]


def test_a_rank_killed_on_one_host_ends_the_job_on_both(tmp_path: Path) -> None:
    job = start(tmp_path, "--algo", "fedavg", "--rounds", "5000", "--epochs", "1")
    wait_for_round(job, directory(tmp_path / "out", "fedavg") / "rounds.csv", 1)
    processes = family(job)
    forked = [p for p in processes if p.name().startswith("python") and p.parent().name().startswith("python")]
    other = [p for p in forked if p.parent().environ()["PMI_RANK"] == "2"]  # the first process there; forks in order
    rank = max(other, key=lambda p: p.pid)
    rank.kill()
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert errors == "error: rank 3 was killed by SIGKILL\n"
    assert wait_until(lambda: not alive(processes, tmp_path / "out"), DOWN_WITHIN)
