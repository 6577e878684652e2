"""How the ranks of a job start and end: one import a host, and no end of any process that the others outlive."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import (
    DOWN_WITHIN,
    ROOT,
    alive,
    command,
    directory,
    family,
    run,
    start,
    summary,
    wait_for_round,
    wait_until,
)

ONE = ("--algo", "fedavg", "--rounds", "1", "--epochs", "1")
ENDLESS = ("--algo", "fedavg", "--rounds", "5000", "--epochs", "1")


def own_mount(size: str, folder: Path, words: list[str]) -> list[str]:
    """Returns a command that runs ``words`` where a file system of so many bytes is mounted on ``folder``."""
    return ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} none "$0" && exec "$@"', str(folder), *words]


may_mount = subprocess.run(own_mount("1m", Path("/mnt"), ["true"]), capture_output=True).returncode == 0
APART = """
trap : INT TERM
mount -t tmpfs none /tmp && mount -t tmpfs none /dev/shm
"$@" </dev/null
status=$?
read _
exit $status
"""


class Apart:
    """A job with ``/tmp`` and ``/dev/shm`` of its own, to be looked at until it is let go."""

    def __init__(self, *options: str, ranks: int, **env: str) -> None:
        self.out = Path("/tmp", secrets.token_hex(8))
        words = command(*options, "--out", str(self.out), ranks=ranks)
        self.job = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", APART, "sh", *words],
            cwd=ROOT,
            env=os.environ | env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def inside(self, path: Path) -> Path:
        return Path(f"/proc/{self.job.pid}/root", *path.parts[1:])

    def left(self) -> list[str]:
        """Returns the files that are there beside the results."""
        found = [*self.inside(Path("/tmp")).iterdir(), *self.inside(Path("/dev/shm")).iterdir()]
        return [path.name for path in found if path.name != self.out.name]

    def end(self) -> tuple[int, str]:
        """Returns mpirun's status and errors."""
        _, errors = self.job.communicate("go\n", timeout=60)
        return self.job.returncode, errors


apart = pytest.mark.skipif(
    not may_mount or any(Path(path).is_relative_to("/tmp") for path in (ROOT, sys.prefix)),
    reason="needs mount namespaces, and nothing of its own in /tmp",
)


def roles(job: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Returns the processes of a job on one host by what they do."""
    found: dict[str, psutil.Process] = {}
    for process in sorted(family(job), key=lambda process: process.pid):
        inside = process.environ()
        if process.name() in ("sh", "mpirun"):
            role = process.name()
        elif "PMI_RANK" not in inside:
            role = "proxy"
        elif process.parent() == found.get("proxy"):
            role = f"started {inside['PMI_RANK']}"
        elif process.parent() == found.get("started 0"):
            role = "watcher"
        else:
            role = f"rank {len([name for name in found if name.startswith('rank')])}"  # forked in the order of ranks
        found[role] = process
    return found


def test_one_process_a_host_imports_for_all(tmp_path: Path) -> None:
    job = start(*ENDLESS, "--out", str(tmp_path), ranks=11)
    wait_for_round(job, directory(tmp_path, "fedavg") / "rounds.csv", 1)
    who = roles(job)
    try:
        assert len(who) == 2 + 11 + 1 + 11
        assert {who[f"rank {rank}"].ppid() for rank in range(11)} == {who["watcher"].pid}
        waiting = [who[f"started {rank}"] for rank in range(11)]
        held = [who[f"rank {rank}"].memory_info().rss for rank in range(11)]
        assert 4 * max(process.memory_info().rss for process in waiting) < min(held)
        assert 2 * sum(process.memory_full_info().pss for process in who.values()) < sum(held)  # most is shared
        listening = {
            role: {c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
            for role, process in who.items()
        }
        assert set().union(*listening.values()) == listening["mpirun"]  # that one's is inherited
        assert all(process.num_threads() == 1 for process in (*waiting, who["watcher"]))
    finally:
        job.terminate()
        job.communicate()


HOST = socket.gethostname()
INTERRUPTED = "ended by SIGINT; the same command goes on from the last checkpoint"


@apart
@pytest.mark.parametrize(
    ("role", "signum", "said"),
    [
        ("rank 2", signal.SIGKILL, "rank 2 was killed by SIGKILL"),
        ("mpirun", signal.SIGTERM, "ended by SIGTERM"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("rank 0", signal.SIGKILL, "rank 0 was killed by SIGKILL"),
                ("rank 1", signal.SIGTERM, "rank 1 was killed by SIGTERM"),
                ("started 0", signal.SIGTERM, "ended by SIGTERM"),
                ("started 0", signal.SIGKILL, "the process that waited for rank 0 was killed"),
                ("started 2", signal.SIGKILL, "the process that waited for rank 2 was killed"),
                ("watcher", signal.SIGKILL, f"the process that watched the ranks on {HOST} was killed"),
                ("watcher", signal.SIGTERM, "ended by SIGTERM"),
                ("proxy", signal.SIGKILL, f"mpirun was killed, or its proxy on {HOST}"),
                ("mpirun", signal.SIGKILL, f"mpirun was killed, or its proxy on {HOST}"),
                ("mpirun", signal.SIGINT, INTERRUPTED),
                ("everybody", signal.SIGINT, INTERRUPTED),
            )
        ),
    ],
)
def test_whoever_remains_says_once_why_a_job_ends_and_nothing_stays(
    role: str, signum: signal.Signals, said: str
) -> None:
    started = time.monotonic()
    run_ = Apart(*ENDLESS, ranks=3)
    wait_for_round(run_.job, run_.inside(directory(run_.out, "fedavg") / "rounds.csv"), 1)
    who = roles(run_.job)
    shell = who.pop("sh")
    assert len(who) == 2 + 3 + 1 + 3
    ending = time.monotonic()
    if role == "everybody":
        os.killpg(run_.job.pid, signum)
    else:
        who[role].send_signal(signum)
    processes = [*who.values()]
    assert wait_until(lambda: set(alive(processes, run_.out)) <= {shell}, DOWN_WITHIN), alive(processes, run_.out)
    assert time.monotonic() - ending < 2 * (ending - started)
    assert run_.left() == []
    assert not list(run_.inside(run_.out).rglob("summary.json"))
    status, errors = run_.end()
    assert status != 0
    ours = [line for line in errors.splitlines() if not line.startswith(("[mpiexec@", "Killed"))]
    assert ours == [f"error: {said}"], errors


@apart
@pytest.mark.slow
@pytest.mark.parametrize("fork", ["0", "1"])
@pytest.mark.parametrize(("options", "status"), [(ONE, 0), (("--rounds", "none"), 2)], ids=["in order", "error"])
def test_nothing_stays_of_a_job(options: tuple[str, ...], status: int, fork: str) -> None:
    run_ = Apart(*options, ranks=3, PFL_FORK=fork)
    shell = psutil.Process(run_.job.pid)
    assert wait_until(lambda: any(child.name() == "mpirun" for child in shell.children()), 30)
    assert wait_until(lambda: not shell.children(), 150)
    assert wait_until(lambda: run_.left() == [], DOWN_WITHIN), run_.left()
    code, errors = run_.end()
    assert (code, errors.count("\n")) == (status, int(status > 0))


@pytest.mark.slow
def test_no_process_outlives_a_job_that_ends_while_it_starts(tmp_path: Path) -> None:
    for tenth in range(0, 40, 8):
        job = start(*ENDLESS, "--out", str(tmp_path), ranks=3)
        assert wait_until(lambda known=job: len(family(known)) == 2 + 3, 30)
        time.sleep(tenth / 10)
        processes = family(job)
        victim = processes[tenth // 8 % len(processes)]
        victim.kill()
        job.communicate(timeout=60)
        assert wait_until(lambda known=processes: not alive(known, tmp_path), DOWN_WITHIN), f"{victim} at {tenth}/10 s"
        assert job.returncode != 0


@pytest.mark.skipif(not may_mount, reason="needs mount namespaces")
@pytest.mark.slow
def test_a_full_disk_ends_the_job_in_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ("--algo", "pfedpara", "--rounds", "500", "--epochs", "1", "--checkpoint-every", "1", "--out", str(out))
    full = own_mount("8m", out, command(*options, ranks=3))
    done = subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: rank ")
    assert "No space left on device" in sentence
    assert wait_until(lambda: not alive([], out), DOWN_WITHIN)


def test_a_folder_of_a_job_that_was_killed_goes_with_the_next_job_and_no_other_does() -> None:
    def folder(pid: int) -> Path:
        born = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return Path(f"/tmp/pfedpara-{Path('/proc/self/ns/pid').stat().st_ino}-{pid}-{born}")

    with subprocess.Popen(["sleep", "60"]) as killed:
        folders = [folder(killed.pid), folder(os.getpid())]
        for each in folders:
            each.mkdir(0o700)
            (each / "word").touch()
        killed.kill()
    words = [sys.executable, "-c", "from benchmarks.runtime.launch import launch; launch(lambda: None).leave()"]
    try:
        assert subprocess.run(words, cwd=ROOT, timeout=60).returncode == 0
        assert [each.exists() for each in folders] == [False, True]
    finally:
        for each in folders:
            shutil.rmtree(each, ignore_errors=True)


NO_FORK = """
import os
from mpi4py import MPI

def refuse():
    if MPI.Is_initialized() and MPI.COMM_WORLD.rank:
        os.write(2, b"a worker forks\\n")
        os._exit(1)
os.register_at_fork(before=refuse)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fork", ["0", "1"])
def test_no_worker_forks_once_mpi_is_initialised(tmp_path: Path, fork: str) -> None:
    done = run(*ONE, "--out", str(tmp_path), ranks=3, before=NO_FORK, PFL_FORK=fork)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_fail_together_end_the_job_in_one_sentence() -> None:
    """As when a full disk fails a table and TensorBoard's own writer at once."""
    code = (
        "import threading; from benchmarks.runtime.launch import process\n"
        "process.fail_on_error(lambda: 'rank 0', False, process.explain); together = threading.Barrier(3)\n"
        "def write(): together.wait(); raise OSError('disk full')\n"
        "for _ in range(2): threading.Thread(target=write).start()\n"
        "write()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: rank 0: OSError: disk full\n")


def test_a_signal_while_a_process_fails_does_not_silence_it() -> None:
    code = (
        "import os, signal; from benchmarks.runtime.launch import process; process.fail_on_signal()\n"
        "first = process.take_the_word()\n"  # as far as a failure has got
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (128 + 15, "error: ended by SIGTERM\n")


def test_ranks_that_fail_together_end_the_job_in_one_sentence() -> None:
    """As when a full disk fails several workers' parts of a checkpoint at once."""
    code = (
        "from benchmarks.runtime.launch import launch; group = launch(lambda: None)\n"
        "group.comm.Barrier(); raise OSError('disk full')"
    )
    words = ["mpirun", "-np", "4", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"error: rank [0-3], start: OSError: disk full\n", done.stderr)


@pytest.mark.slow
def test_a_screen_that_takes_no_more_ends_the_job(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        words = command(*ENDLESS, "--out", str(tmp_path), ranks=3)
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    assert wait_until(lambda: not alive([], tmp_path), DOWN_WITHIN)


@pytest.mark.parametrize(("options", "status"), [(ONE, 0), (("--rounds", "none"), 2)], ids=["in order", "error"])
@pytest.mark.slow
def test_a_name_that_another_user_took_stops_and_silences_nobody(
    tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    taken.chmod(0o777)  # as good as another's
    take = (
        "from benchmarks import run; from benchmarks.runtime.launch import process; from pathlib import Path\n"
        f"process.STATE.folder = Path({str(taken)!r}); run.main()"
    )
    words = ["mpirun", "-np", "3", sys.executable, "-c", take, *options, "--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == int(status > 0), done.stderr
    assert list(taken.iterdir()) == []


def start_otherwise(how: str, out: Path) -> subprocess.CompletedProcess[str]:
    words, env = command(*ONE, "--out", str(out), ranks=3), dict(os.environ)
    if how == "unknown launcher":
        words[3:3] = ["env", "-u", "MPI_LOCALNRANKS"]
    elif how == "threads":
        env["OMP_NUM_THREADS"] = "2"
    elif how == "no fork":
        env["PFL_FORK"] = "0"
    elif how == "long TMPDIR":
        env["TMPDIR"] = str(out / ("x" * 200))
    elif how == "closed stdin":
        words = ["sh", "-c", 'exec "$@" <&-', "sh", *words]
    elif how == "no launcher":
        words = words[3:]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("usual")
    run(*ONE, "--out", str(out), ranks=3)
    return out


@pytest.mark.parametrize(
    "how", ["unknown launcher", "threads", "no fork", "long TMPDIR", "closed stdin", "no launcher"]
)
@pytest.mark.slow
def test_a_job_that_starts_otherwise_gives_the_same_bits(usual: Path, tmp_path: Path, how: str) -> None:
    done = start_otherwise(how, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["shared_sha256"] == summary(usual, "fedavg")["shared_sha256"]


@pytest.mark.slow
def test_mpirun_returns_0_each_time(tmp_path: Path) -> None:
    for time_ in range(2):
        done = run(*ONE, "--out", str(tmp_path / str(time_)), ranks=11)
        assert (done.returncode, done.stderr) == (0, "")
        shutil.rmtree(tmp_path / str(time_))


@pytest.mark.parametrize(
    ("stuck", "said"),
    [
        ("rank 2", r"error: rank 0, server, .*round \d+: TimeoutError: nothing from rank 2, client \d for 8\."),
        ("rank 0", r"error: rank [12], .*: TimeoutError: nothing from rank 0, the server, for [89]\."),
    ],
)
@pytest.mark.slow
def test_a_rank_that_is_stuck_ends_the_job(tmp_path: Path, stuck: str, said: str) -> None:
    job = start(*ENDLESS, "--eval-every", "0", "--comm-timeout", "8", "--out", str(tmp_path), ranks=3)
    assert job.stdout is not None
    while "[1/1]" not in job.stdout.readline():  # the experiment has not begun
        assert job.poll() is None
    who = roles(job)
    time.sleep(2)
    who[stuck].suspend()
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert re.match(said, errors)
    assert errors.count("\n") == 1
    assert wait_until(lambda: not alive([*who.values()], tmp_path), DOWN_WITHIN)


def test_a_job_that_trains_for_longer_than_the_timeout_goes_on(tmp_path: Path) -> None:
    done = run(*ONE, "--comm-timeout", "0.001", "--out", str(tmp_path), ranks=1)
    assert (done.returncode, done.stderr) == (0, "")
