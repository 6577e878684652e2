"""A checkpoint gives back what went in; one that somebody tampered with gives way to the one before."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from benchmarks.federation import checkpoint
from benchmarks.federation.run_tables import Extent
from tests.support import figures_of, peak_memory

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
    assert record.work is None  # earlier versions did not count it: a record without it holds as it is
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


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])  # 9: another bit of each byte
def test_each_flipped_bit_of_the_servers_record_is_noticed(tmp_path: Path, step: int) -> None:
    path = write_checkpoint(tmp_path) / "server.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), step):
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
