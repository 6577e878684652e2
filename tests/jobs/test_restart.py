"""Nothing is lost: killed at any moment, out of disk, or given a checkpoint that somebody tampered with."""

import functools
import hashlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from benchmarks.federation import checkpoint
from benchmarks.federation.recorder import Extent
from tests.support import (
    DOWN_WITHIN,
    ROOT,
    alive,
    directory,
    family,
    figures_of,
    peak_memory,
    rows,
    run,
    same_findings,
    start,
    summary,
    wait_until,
)

EVERY = 3  # rounds between checkpoints
ROUNDS = 110
LONG = (
    "--algo",
    "pfedme",
    "--rounds",
    str(ROUNDS),
    "--epochs",
    "1",
    "--fraction",
    "0.3",
    "--checkpoint-every",
    str(EVERY),
)
LONG += ("--clients-per-round", "6", "--dropout", "0.2", "--deadline", "3", "--eval-every", "2")
SHORT = ("--algo", "pfedme", "--rounds", "6", "--epochs", "1", "--checkpoint-every", "1", "--clients-per-round", "6")


def newest_round(out: Path) -> int:
    """Returns the round of the newest checkpoint, 0 where there is none."""
    return max((int(folder.name[6:]) for folder in out.rglob("checkpoint/round-??????")), default=0)


def recorded(out: Path) -> int:
    """Returns the last round in rounds.csv."""
    table = directory(out, "pfedme") / "rounds.csv"
    return max((int(row["round"]) for row in rows(table)), default=0) if table.exists() else 0


def ended(job: subprocess.Popen[str], processes: list[psutil.Process], out: Path) -> bool:
    return job.poll() is not None and not alive(processes, out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_20_random_moments_loses_only_the_rounds_since_its_checkpoint(tmp_path: Path) -> None:
    """One run, killed again and again: in start-up, in training, while it writes; mpirun, the server or a worker."""
    moments, out = random.Random(5), tmp_path / "killed"
    for life in range(20):
        kept = newest_round(out)
        assert recorded(out) - kept <= EVERY + 1
        job = start(*LONG, "--resume", "--out", str(out), ranks=3)
        if life % 5 == 0:
            time.sleep(moments.uniform(0, 4))  # before it trains, mostly
        else:
            goal = kept + moments.randint(1, 7)
            wait_until(lambda goal=goal, job=job: recorded(out) >= goal or job.poll() is not None, 60)
            time.sleep(moments.uniform(0, 0.1))
        assert job.poll() is None, job.communicate()
        processes = family(job)
        moments.choice(processes).send_signal(signal.SIGKILL)  # mpirun, its helper, the server or a worker
        assert wait_until(functools.partial(ended, job, processes, out), DOWN_WITHIN), alive(processes, out)
        job.communicate()
        assert newest_round(out) >= kept
    assert 20 < newest_round(out) < ROUNDS
    done = run(*LONG, "--resume", "--out", str(out), ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    whole = tmp_path / "whole"
    assert run(*LONG, "--out", str(whole), ranks=1).returncode == 0
    same_findings(directory(out, "pfedme"), directory(whole, "pfedme"))


# A full disk


LIMITED = """
import resource

planned = run.plan
def limited():
    due = planned()
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
    return due
run.plan = limited
"""
"""From the moment that the server lets the others start: MPI's own shared memory are files too."""


@pytest.mark.slow
def test_a_full_disk_ends_the_job_in_one_sentence_and_it_goes_on_later(tmp_path: Path) -> None:
    """The server's files cannot grow beyond 300 kB: the first checkpoint's tensors hit that."""
    out = tmp_path / "out"
    assert run(*SHORT[:2], "--rounds", "1", "--epochs", "1", "--out", str(tmp_path / "first")).returncode == 0
    out.mkdir()
    shutil.copytree(tmp_path / "first" / "data", out / "data")  # the partition is there already
    done = run(*SHORT, "--out", str(out), ranks=2, before=LIMITED.format(size=300_000))
    assert done.returncode not in (0, None)
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert "File too large" in sentence
    assert str(out) in sentence
    done = run(*SHORT, "--resume", "--out", str(out), ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(out, "pfedme")["rounds"] == 6


# Hostile checkpoints


LIKE = {"p": torch.zeros(2)}
"""A client's private tensors."""


def write_checkpoint(directory: Path, number: int = 4) -> Path:
    (directory / "checkpoint").mkdir(exist_ok=True)
    folder = checkpoint.begin(directory, number)
    checkpoint.save_client(folder, 1, {"p": torch.tensor([1.0, 2.0])})
    record = {
        **{"round": number, "partition_sha256": "abc", "seen": [1], "received": {1: 0.5}, "seconds": {"training": 1.5}},
        **{"sent": {"bytes_up": 3}, "to_model": {"bytes": 3}, "moved": {"bytes_move": 0}, "absent": {"late": 0}},
        "figures": {1: figures_of(0.5, float("nan"), 20, 0.25)},
        "tables": {"rounds.csv": Extent(9, "9" * 64)},
    }
    checkpoint.commit(folder, {"w": torch.arange(6.0).reshape(2, 3)}, {}, record)
    return folder.with_suffix("")


def newest(directory: Path) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    return checkpoint.newest(directory, LIKE, lambda found: None)


def test_a_checkpoint_gives_back_what_went_in(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    found, refused = newest(tmp_path)
    assert refused == []
    assert found is not None
    assert found.folder == folder
    assert found.shared["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.server == {}
    record = found.record
    assert (record.round, record.seen, record.received, record.sent) == (4, [1], {1: 0.5}, {"bytes_up": 3})
    assert (record.figures[1]["accuracy"], record.figures[1]["samples"]) == (0.5, 20)
    assert record.tables == {"rounds.csv": Extent(9, "9" * 64)}
    assert record.states == {1: hashlib.sha256((folder / "client-1.safetensors").read_bytes()).hexdigest()}
    assert checkpoint.load_client(folder, 1, record.states[1], LIKE)["p"].tolist() == [1, 2]
    with pytest.raises(checkpoint.RefusedError, match=r"client-0\.safetensors: No such file"):
        checkpoint.load_client(folder, 0, record.states[1], LIKE)
    with pytest.raises(checkpoint.RefusedError, match=r"client-1\.safetensors was changed"):
        checkpoint.load_client(folder, 1, "0" * 64, LIKE)
    for like in ({"p": torch.zeros(3)}, {"q": torch.zeros(2)}, {"p": torch.zeros(2, dtype=torch.int64)}, {}):
        with pytest.raises(checkpoint.RefusedError, match="not the private tensors"):
            checkpoint.load_client(folder, 1, record.states[1], like)


def test_a_checkpoint_after_a_million_rounds_is_found(tmp_path: Path) -> None:
    for number in (999_998, 999_999, 1_000_000):
        write_checkpoint(tmp_path, number)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["round-1000000", "round-999999"]
    found, _ = newest(tmp_path)
    assert found is not None
    assert found.record.round == 1_000_000


def test_a_checkpoint_does_not_bring_its_vanished_folder_back(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="round-000004"):
        checkpoint.begin(tmp_path / "run", 4)
    assert not (tmp_path / "run").exists()


def test_each_flipped_bit_of_the_servers_record_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path) / "server.json"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(checkpoint.RefusedError):
            checkpoint._read_record(path)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for number in (2, 4, 6):
        write_checkpoint(tmp_path, number)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["round-000004", "round-000006"]


def change(**fields: object) -> Callable[[Path], None]:
    """As somebody would who knows the digest."""

    def edit(folder: Path) -> None:
        path = folder / "server.json"
        record = json.loads(path.read_text()) | fields
        del record["sha256"]
        record["sha256"] = hashlib.sha256(json.dumps(record).encode()).hexdigest()
        path.write_text(json.dumps(record))

    return edit


def truncate(folder: Path) -> None:
    path = folder / "server.json"
    path.write_bytes(path.read_bytes()[:-9])


def forget_version(folder: Path) -> None:
    record = json.loads((folder / "server.json").read_text())
    del record["version"]
    (folder / "server.json").write_text(json.dumps(record))


def not_tensors(folder: Path) -> None:
    """The digest is right, but the header claims 2^62 bytes."""
    replace(folder / "shared.safetensors", (1 << 62).to_bytes(8, "little") + b"{}")


def other_tensors(folder: Path) -> None:
    replace(folder / "client-1.safetensors", save({"p": torch.zeros(3)}))


def replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    digests = json.loads((path.parent / "server.json").read_text())["files"]
    change(files=digests | {path.name: hashlib.sha256(content).hexdigest()})(path.parent)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change(version=2), "it has version 2, this program reads 3"),
        (forget_version, "it has version 1, this program reads 3"),
        (change(version=4), "it has version 4, this program reads 3"),
        (change(round=99), "it says that it was written after round 99"),
        (change(round=-1), "round"),
        (change(round="4"), "round"),
        (change(seen=[-1]), "seen"),
        (change(figures={"1": {"accuracy": "high"}}), "figures"),
        (change(files={"../../../etc/passwd": "0"}), "files"),
        (change(files={"/etc/passwd": "0"}), "files"),
        (change(files={}), "shared.safetensors was changed or is not whole"),
        (change(command="rm"), "command"),
        (truncate, "server.json is not whole"),
        (lambda folder: (folder / "server.json").write_text("[" * 10**6), "server.json is not whole"),
        (lambda folder: (folder / "server.json").write_text('{"version":' + "9" * 10**6 + "}"), "server.json"),
        (lambda folder: (folder / "server.json").unlink(), "No such file"),
        (lambda folder: (folder / "client-1.safetensors").unlink(), "client-1.safetensors: No such file"),
        (lambda folder: (folder / "shared.safetensors").write_bytes(b"\x80\x04."), "shared.safetensors was changed"),
        (not_tensors, "not tensors"),
        (other_tensors, "client-1.safetensors: these are not the private tensors"),
    ],
)
def test_a_checkpoint_is_refused_with_its_reason_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    before, after = write_checkpoint(tmp_path, 4), write_checkpoint(tmp_path, 6)
    damage(after)
    found, (sentence,) = newest(tmp_path)
    assert found is not None
    assert found.folder == before
    assert str(after) in sentence
    assert reason in sentence
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 1000
    assert not after.exists()


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_a_checkpoint_can_do_harm(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is changed in it, a checkpoint is what was written or is refused, within its own size of memory."""
    shutil.rmtree(tmp_path / "checkpoint", ignore_errors=True)
    folder = write_checkpoint(tmp_path)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(bytes(content))
    before = peak_memory()
    found, refused = newest(tmp_path)
    assert (found is None) == bool(refused)
    assert peak_memory() < 2 * before


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_bytes_that_are_not_tensors_are_refused(noise: bytes, length: int) -> None:
    for content in (noise, length.to_bytes(8, "little") + noise):
        with pytest.raises(checkpoint.RefusedError):
            checkpoint.read_state(content, {"p": torch.zeros(2)})


# The source


def sources() -> Iterator[Path]:
    for folder in ("benchmarks", "baselines", "pfedpara", "data_partitions"):
        yield from (ROOT / folder).rglob("*.py")


@pytest.mark.parametrize("call", ["pickle.load", "yaml.load(", "yaml.unsafe", " eval(", " exec(", "weights_only=False"])
def test_no_source_executes_what_a_file_says(call: str) -> None:
    assert not [path for path in sources() if call in path.read_text()]
