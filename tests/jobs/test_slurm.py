"""Jobs under Slurm, by the batch file in docs/runtime.md: the same bits, and what it takes to come to them."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm import MISSING, Cluster
from tests.support import ROOT, directory, rows, run, same_findings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"needs Slurm and munge (slurm-wlm): there is no {', '.join(MISSING)}"),
]
FOUR = ("--nodes=2", "--ntasks=4")
SHORT = ("--algo", "pfedpara", "--epochs", "1", "--clients-per-round", "6")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster: Cluster, out: Path, *options: str, seeds: str = "0", about: tuple[str, ...] = ()) -> str:
    """Submits the batch file of the docs. Returns the number of the job."""
    text = next(re.finditer(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs/runtime.md").read_text(), re.DOTALL))[1]
    (file := out.parent / "pfl.sbatch").write_text(text)
    words = ("sbatch", "--parsable", f"--array={seeds}", f"--output={out}-%a.log", *FOUR, *about)
    return cluster.call(*words, str(file), *options, "--out", str(out), cwd=ROOT)


def wait_for_round(cluster: Cluster, table: Path, number: int) -> None:
    cluster.wait_for(lambda: table.exists() and len(rows(table)) >= number, 300)


def start_again(cluster: Cluster, job: str) -> None:
    """Lets a job that was requeued start at once; Slurm has it wait for two minutes."""
    cluster.wait_for(lambda: cluster.state(f"{job}_0") == "PENDING", 120)
    cluster.call("scontrol", "update", f"JobId={job}_0", "StartTime=now")


def freeze(cluster: Cluster, node: str) -> list[psutil.Process]:
    """Stops all processes of a node at once, as if it were off, and returns them."""
    log, found = str(cluster.folder / f"slurmd-{node}.log"), []
    for process in psutil.process_iter():
        try:
            daemon = any(file.path == log for file in process.open_files())
            if daemon or process.environ().get("SLURMD_NODENAME") == node:
                process.send_signal(signal.SIGSTOP)
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_an_array_over_seeds_gives_the_bits_of_mpirun(cluster: Cluster, tmp_path: Path) -> None:
    options, out = (*SHORT, "--rounds", "2"), tmp_path / "out"
    job = submit(cluster, out, *options, seeds="0-1")
    cluster.wait_for(lambda: all(cluster.state(f"{job}_{seed}") == "COMPLETED" for seed in (0, 1)), 600)
    assert run(*options, "--seed", "0", "1", "--out", str(tmp_path / "alone"), ranks=2).returncode == 0
    for seed in (0, 1):
        same_findings(*(directory(tmp_path / name, "pfedpara", seed=seed) for name in ("out", "alone")))


def test_a_requeue_and_a_dead_node_change_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    options, out = (*SHORT, "--rounds", "40", "--checkpoint-every", "1"), tmp_path / "out"
    table = directory(out, "pfedpara") / "rounds.csv"
    job = submit(cluster, out, *options)
    wait_for_round(cluster, table, 3)
    cluster.call("scontrol", "requeue", f"{job}_0")
    start_again(cluster, job)
    wait_for_round(cluster, table, 8)
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", f"{job}_0")
    frozen = freeze(cluster, "s2")
    cluster.wait_for(lambda: cluster.states()["s2"].startswith("DOWN"), 120)
    for process in frozen:
        process.kill()
    cluster.begin_node("s2")
    start_again(cluster, job)
    cluster.wait_for(lambda: cluster.state(f"{job}_0") == "COMPLETED", 600)
    assert "Restarts=2" in cluster.call("scontrol", "show", "job", f"{job}_0")
    assert run(*options, "--out", str(tmp_path / "alone"), ranks=2).returncode == 0
    same_findings(*(directory(tmp_path / name, "pfedpara") for name in ("out", "alone")))


def test_a_time_limit_leaves_a_checkpoint_and_the_batch_file_asks_for_more_time(
    cluster: Cluster, tmp_path: Path
) -> None:
    options, out = (*SHORT, "--rounds", "100000", "--eval-every", "50", "--checkpoint-every", "5"), tmp_path / "out"
    folder = directory(out, "pfedpara")
    job = submit(cluster, out, *options, about=("--time=1", "--signal=B:USR2@1"))  # nobody traps it
    wait_for_round(cluster, folder / "rounds.csv", 1)
    cluster.wait_for(lambda: cluster.state(f"{job}_0") in ("TIMEOUT", "FAILED"), 300)
    assert list((folder / "checkpoint").glob("round-??????"))
    assert not (folder / "summary.json").exists()
    job = submit(cluster, out, *options)
    cluster.wait_for(lambda: cluster.state(f"{job}_0") == "RUNNING")
    cluster.wait_for(lambda: "[1/1]" in Path(f"{out}-0.log").read_text().rpartition("TIME LIMIT")[2], 300)
    cluster.call("scancel", "--batch", "--signal=USR1", f"{job}_0")  # as --signal sends it
    cluster.wait_for(lambda: "Restarts=1" in cluster.call("scontrol", "show", "job", f"{job}_0"), 60)
    cluster.call("scancel", f"{job}_0")
