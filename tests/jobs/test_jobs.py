"""Real jobs under mpirun: equal bits on any number of ranks, complete records and exact counts."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.federation.metrics import METRICS
from tests.support import ROOT, command, directory, on_terminal, rows, run, same_findings, summary, tensors

METHODS = ("pfedpara", "fedper", "pfedme", "local", "fedavg")
PARAMETERS = {"pfedpara": 59_570, "fedper": 200_960, "pfedme": 203_530, "local": 0, "fedavg": 203_530}
ROUNDS = 2
SHORT = ("--rounds", str(ROUNDS), "--epochs", "1")
PARTIAL = ("--clients-per-round", "6")
WIRE_BLOCK = 8  # floats


class Job(NamedTuple):
    out: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """Runs all methods on so many ranks with these options; the same job only once."""

    @cache
    def ran(ranks: int, *options: str) -> Job:
        out = tmp_path_factory.mktemp("job")
        done = run("--algo", *METHODS, *SHORT, *options, "--out", str(out), ranks=ranks)
        assert done.returncode == 0, done.stderr
        return Job(out, done)

    return ran


# Equal bits


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        *((ranks, PARTIAL) for ranks in (2, 11)),
        pytest.param(4, PARTIAL, marks=pytest.mark.slow),
        *(pytest.param(ranks, (), marks=pytest.mark.slow) for ranks in (2, 4, 11)),
    ],
)
def test_any_number_of_ranks_gives_the_same_bits(job: Callable[..., Job], ranks: int, options: tuple[str, ...]) -> None:
    alone, spread = job(1, *options), job(ranks, *options)
    for algo in METHODS:
        same_findings(directory(spread.out, algo), directory(alone.out, algo))


def test_evaluating_each_round_or_never_gives_the_same_bits(job: Callable[..., Job]) -> None:
    each, never = job(1, *PARTIAL), job(1, *PARTIAL, "--eval-every", "0")
    for algo in METHODS:
        assert summary(never.out, algo)["shared_sha256"] == summary(each.out, algo)["shared_sha256"], algo
        assert summary(never.out, algo)["accuracy"] == summary(each.out, algo)["accuracy"], algo
        assert tensors(directory(never.out, algo)) == tensors(directory(each.out, algo)), algo
        assert [row["round"] for row in rows(directory(never.out, algo) / "rounds.csv")] == [str(ROUNDS)]


FAULTS = ("--dropout", "0.2", "--stragglers", "0.3", "--deadline", "1.5")


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (3, (*FAULTS, "--state-dir")),
        *(pytest.param(3, options, marks=pytest.mark.slow) for options in ((), FAULTS, ("--state-dir",))),
        pytest.param(5, (*FAULTS, "--state-dir"), marks=pytest.mark.slow),
    ],
)
def test_moving_states_and_faults_change_no_bit(
    job: Callable[..., Job], tmp_path: Path, ranks: int, options: tuple[str, ...]
) -> None:
    """Clients' states in files or in memory, moved between ranks or not."""
    in_files = "--state-dir" in options
    faults = tuple(option for option in options if option != "--state-dir")
    longer = ("--algo", "pfedpara", "pfedme", "local", "--rounds", "5", "--epochs", "1", *PARTIAL, *faults)
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    state_dir = ("--state-dir", str(tmp_path / "states")) * in_files
    for out, n, own in ((alone, 1, ()), (spread, ranks, state_dir)):
        done = run(*longer, *own, "--out", str(out), ranks=n)
        assert (done.returncode, done.stderr) == (0, "")
    for algo in ("pfedpara", "pfedme", "local"):
        same_findings(directory(spread, algo), directory(alone, algo))
        assert summary(spread, algo)["moved"]["parameters"] > 0
        assert summary(alone, algo)["moved"] == {"parameters": 0, "bytes": 0}
    assert not list(tmp_path.glob("states/**/*.safetensors"))  # what is left is in the checkpoints


@pytest.mark.parametrize("other", [("--seed", "1"), ("--partition", "iid"), ("--lr", "0.02")])
@pytest.mark.slow
def test_another_experiment_gives_other_bits(job: Callable[..., Job], tmp_path: Path, other: tuple[str, str]) -> None:
    run("--algo", "fedavg", *SHORT, *PARTIAL, *other, "--out", str(tmp_path))
    found = json.loads(next(tmp_path.rglob("summary.json")).read_text())
    assert found["shared_sha256"] != summary(job(1, *PARTIAL).out, "fedavg")["shared_sha256"]


# Records


@pytest.mark.parametrize("algo", METHODS)
def test_a_finished_run_leaves_these_files(job: Callable[..., Job], algo: str) -> None:
    left = {path.name for path in directory(job(1, *PARTIAL).out, algo).iterdir()}
    events = {name for name in left if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert left - events == {"summary.json", "rounds.csv", "clients.csv", "ledger.csv", "config.yaml", "checkpoint"}


@pytest.mark.parametrize("algo", METHODS)
def test_summary_says_what_ran_and_what_came_out(job: Callable[..., Job], algo: str) -> None:
    s = summary(job(1, *PARTIAL).out, algo)
    assert s.keys() >= {
        *(metric.name for metric in METRICS),
        *("algo", "label", "parameterization", "tuned", "dataset", "partition", "model", "seed", "rounds", "clients"),
        *("validation_accuracy", "accuracy_received_mean", "parameters_per_client_round", "transmitted"),
        *("traffic_to_model", "seconds", "shared_sha256", "partition_sha256", "samples_sha256", "versions", "moved"),
        "absent",
    }
    experiment = (s["algo"], s["dataset"], s["partition"], s["model"], s["seed"], s["rounds"], s["clients"])
    assert experiment == (algo, "mnist5k", "dirichlet:0.5", "mlp", 0, ROUNDS, 10)
    for accuracy in (s[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "validation_accuracy")):
        values = accuracy["per_client"]
        assert len(values) == 10
        assert all(0 <= value <= 1 for value in values)
        assert accuracy.keys() >= {"mean", "std", "worst_decile", "per_client"}
        assert (accuracy["mean"], accuracy["std"]) == (np.mean(values), np.std(values))
        assert accuracy["worst_decile"] == min(values)
    assert s["transmitted"].keys() >= {"parameters_up", "parameters_down", "bytes_up", "bytes_down"}
    assert s["seconds"].keys() >= {"startup", "training", "evaluation", "total"}
    assert 0 < s["seconds"]["startup"] + s["seconds"]["training"] + s["seconds"]["evaluation"] <= s["seconds"]["total"]
    assert all(re.fullmatch("[0-9a-f]{64}", s[key]) for key in ("shared_sha256", "partition_sha256", "samples_sha256"))
    assert {"torch", "fedml", "numpy"} <= s["versions"].keys()


@pytest.mark.parametrize("algo", METHODS)
def test_tables_have_a_row_for_each_round_and_for_each_client_in_it(job: Callable[..., Job], algo: str) -> None:
    where = directory(job(1, *PARTIAL).out, algo)
    rounds, clients = rows(where / "rounds.csv"), rows(where / "clients.csv")
    assert rounds[0].keys() >= {
        *("round", "accuracy_std", "accuracy_worst_decile", "accuracy_received_mean"),
        *("parameters_up", "parameters_down", "bytes_up", "bytes_down", "seconds"),
        *(f"{metric.name}_mean" for metric in METRICS),
    }
    assert clients[0].keys() >= {"round", "client", "samples", *(metric.name for metric in METRICS)}
    assert [row["round"] for row in rounds] == ["1", "2"]
    assert [(row["round"], row["client"]) for row in clients] == [(r, str(c)) for r in ("1", "2") for c in range(10)]
    for row in rounds:
        own = [client for client in clients if client["round"] == row["round"]]
        assert float(row["accuracy_mean"]) == np.mean([float(client["accuracy"]) for client in own])
        assert float(row["loss_mean"]) == pytest.approx(np.mean([float(client["loss"]) for client in own]))
    last = [float(client["accuracy"]) for client in clients if client["round"] == str(ROUNDS)]
    assert last == summary(job(1, *PARTIAL).out, algo)["accuracy"]["per_client"]
    assert float(rounds[0]["seconds"]) < float(rounds[1]["seconds"])


@pytest.mark.parametrize("algo", METHODS)
def test_config_holds_every_choice(job: Callable[..., Job], algo: str) -> None:
    config = yaml.safe_load((directory(job(1, *PARTIAL).out, algo) / "config.yaml").read_text())
    chosen = {"algo": algo, "rounds": ROUNDS, "clients": 10, "clients_per_round": 6, "seed": 0}
    assert chosen.items() <= config.items()
    assert config["hyper"]["epochs"] == 1
    assert config["hyper"]["lr"] > 0


@pytest.mark.parametrize("algo", METHODS)
def test_tensorboard_shows_the_run(job: Callable[..., Job], algo: str) -> None:
    where = directory(job(1, *PARTIAL).out, algo)
    events = EventAccumulator(str(where), size_guidance={"tensors": 0})
    events.Reload()
    rounds = rows(where / "rounds.csv")

    def has_curve(column: str, steps: list[int]) -> bool:
        wanted = [(step, np.float32(row[column])) for step, row in zip(steps, rounds, strict=True)]
        curves = ([(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"])
        return wanted in curves

    for column in ("accuracy_mean", "accuracy_std", "accuracy_worst_decile", "loss_mean", "seconds"):
        assert has_curve(column, [1, 2]), column
    if PARAMETERS[algo]:
        sent = [int(row["parameters_up"]) + int(row["parameters_down"]) for row in rounds]
        assert has_curve("accuracy_mean", sent), "accuracy against transmitted parameters"
    assert len(events.Tags()["images"]) == 1  # the heat map of the partition
    assert events.Images(events.Tags()["images"][0])[0].encoded_image_string.startswith(b"\x89PNG")
    assert len(events.PluginTagToContent("hparams")) == 2  # the run's start and its end


# The ledger


@pytest.mark.parametrize(("ranks", "options", "participants"), [(1, PARTIAL, 6), (11, (), 10)])
@pytest.mark.parametrize("algo", METHODS)
def test_every_parameter_and_byte_is_counted(
    job: Callable[..., Job], algo: str, ranks: int, options: tuple[str, ...], participants: int
) -> None:
    out, each = job(ranks, *options).out, PARAMETERS[algo]
    s = summary(out, algo)
    assert s["parameters_per_client_round"] == {"up": each, "down": each}
    for way in ("up", "down"):
        for row in rows(directory(out, algo) / "rounds.csv"):
            parameters, sent = int(row[f"parameters_{way}"]), int(row[f"bytes_{way}"])
            assert parameters == each * participants * int(row["round"])
            assert 4 * parameters <= sent <= 1.005 * 4 * parameters
        assert (s["transmitted"][f"parameters_{way}"], s["transmitted"][f"bytes_{way}"]) == (parameters, sent)
        entries = [entry for entry in rows(directory(out, algo) / "ledger.csv") if entry["direction"] == way]
        assert len(entries) == (participants * ROUNDS if each else 0)
        assert all(int(entry["parameters"]) == each for entry in entries)
        assert sum(int(entry["bytes"]) for entry in entries) == sent


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(1, PARTIAL), (11, ()), pytest.param(1, (*PARTIAL, *FAULTS), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("algo", METHODS)
def test_traffic_up_to_the_model_follows_from_the_ledger(
    job: Callable[..., Job], algo: str, ranks: int, options: tuple[str, ...]
) -> None:
    out = job(ranks, *options).out
    ledger = [entry for entry in rows(directory(out, algo) / "ledger.csv") if entry["direction"] != "move"]
    table = rows(directory(out, algo) / "rounds.csv")
    for row in table:
        so_far = [entry for entry in ledger if int(entry["round"]) <= int(row["round"])]
        trained = {entry["client"] for entry in so_far if entry["direction"] == "up"}
        judged_as_received = 10 if algo == "fedavg" else 10 - len(trained)
        for unit in ("parameters", "bytes") if PARAMETERS[algo] else ():
            (downlink,) = {int(entry[unit]) for entry in so_far if entry["direction"] == "down"}  # all alike
            uplinks = [int(e[unit]) for e in so_far if (e["direction"], e["round"]) == ("up", row["round"])]
            total = sum(int(entry[unit]) for entry in so_far)
            needed = judged_as_received * downlink if judged_as_received else -sum(uplinks)
            assert int(row[f"{unit}_to_model"]) == total + needed, (unit, row["round"])
    last = {unit: int(table[-1][f"{unit}_to_model"]) for unit in ("parameters", "bytes")}
    assert summary(out, algo)["traffic_to_model"] == last
    assert any(last.values()) == (algo != "local")


# The wire


TAP = """
import pickle

class Tap:
    def __init__(self, comm):
        self.comm, self.file = comm, open("{folder}/rank" + str(comm.rank), "wb", buffering=0)

    def __getattr__(self, name):
        found = getattr(self.comm, name)
        if not callable(found):
            return found
        def call(*args, **kwargs):
            for argument in args if name != "Irecv" else ():  # its memory holds what was there before
                raw = argument.tobytes() if hasattr(argument, "tobytes") else pickle.dumps(argument)
                self.file.write(raw)
            return found(*args, **kwargs)
        return call

joined = process.start
def tapped():
    group = joined()
    return group._replace(comm=Tap(group.comm))
process.start = tapped
"""
"""Keeps a copy of every argument that a rank hands to its MPI communicator, but for the memory to receive in."""


class Wire:
    """All bytes sent, indexed by each pair of floats in them, whatever their alignment."""

    def __init__(self, sent: bytes) -> None:
        self.sent, pairs = sent, []
        for offset in range(4):
            words = np.frombuffer(sent, "<u4", (len(sent) - offset) // 4, offset).astype(np.uint64)
            pairs.append(words[:-1] | words[1:] << np.uint64(32))
        self.pairs = np.unique(np.concatenate(pairs))

    def carried(self, tensor: np.ndarray) -> bool:
        """Whether a block of ``tensor`` was sent. Every 64 consecutive bytes of it hold a whole block."""
        blocks = np.ascontiguousarray(tensor.ravel()[: tensor.size // WIRE_BLOCK * WIRE_BLOCK]).reshape(-1, WIRE_BLOCK)
        blocks = blocks[blocks.any(axis=1)]
        first = np.ascontiguousarray(blocks[:, :2]).view("<u8").ravel()
        at = np.searchsorted(self.pairs, first).clip(max=len(self.pairs) - 1)
        return any(block.tobytes() in self.sent for block in blocks[self.pairs[at] == first])


# Not all in one job: on its own, a client trains its first round as it does under FedPer, which sends the outcome.
@pytest.mark.parametrize(
    "algos",
    [
        ("pfedpara", "fedper"),
        *(pytest.param((algo,), marks=pytest.mark.slow) for algo in ("pfedme", "local", "fedrep", "ditto")),
    ],
)
def test_private_tensors_never_reach_the_wire(job: Callable[..., Job], tmp_path: Path, algos: tuple[str, ...]) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    options = ("--algo", *algos, *SHORT, *PARTIAL, "--checkpoint-every", "1", "--out", str(tmp_path))
    done = run(*options, ranks=2, before=TAP.format(folder=sent))
    assert done.returncode == 0, done.stderr
    wire = Wire(b"".join(path.read_bytes() for path in sorted(sent.iterdir())))
    for algo in algos:
        # The tap changes nothing, and the same job twice gives the same.
        if algo in METHODS:
            same_findings(directory(tmp_path, algo), directory(job(2, *PARTIAL).out, algo))
        first, last = sorted((directory(tmp_path, algo) / "checkpoint").iterdir())
        # What is shared does travel, so the search would find what is not.
        assert all(wire.carried(tensor) for tensor in load_file(first / "shared.safetensors").values())
        states = [*first.glob("client-*.safetensors"), *last.glob("client-*.safetensors")]
        assert len(states) > 10
        for path in states:
            for name, tensor in load_file(path).items():
                if algo in ("pfedme", "ditto") and name == "hidden.weight":
                    continue  # a unit that never fired keeps the weights that came
                assert not wire.carried(tensor), f"{algo}, {path.parent.name}, {path.name}: {name}"


# Interrupted and resumed


def test_resuming_what_is_finished_does_nothing_and_says_so(job: Callable[..., Job]) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        files = (path for path in out.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    out = job(1, *PARTIAL).out
    before = state()
    done = run("--algo", *METHODS, *SHORT, *PARTIAL, "--resume", "--out", str(out), ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished" in done.stdout
    assert state() == before


# Network and screen


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_one_round_connects_to_nothing_beyond_the_machine(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    options = ("--algo", "fedavg", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path))
    traced = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg",
        "-o",
        str(trace),
        *command(*options, ranks=3),
    ]
    done = subprocess.run(traced, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["rounds"] == 1
    own = {address.address.partition("%")[0] for each in psutil.net_if_addrs().values() for address in each}
    reached = set(re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', trace.read_text()))
    assert reached <= own, f"reached {reached - own}"


@pytest.mark.skipif(subprocess.run(["unshare", "-rn", "true"]).returncode != 0, reason="needs network namespaces")
@pytest.mark.slow
def test_a_job_needs_no_network(tmp_path: Path) -> None:
    options = ("--algo", "pfedpara", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path))
    cut_off = ["unshare", "-rn", *command(*options, ranks=3)]
    done = subprocess.run(cut_off, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "pfedpara")["rounds"] == 1


@pytest.mark.parametrize("ranks", [1, 11])
def test_rank_0_writes_plain_lines_and_nobody_else_a_word(job: Callable[..., Job], ranks: int) -> None:
    done = job(ranks, *PARTIAL).done
    assert done.stderr == ""
    assert done.stdout == job(4, *PARTIAL).done.stdout
    assert done.stdout.isprintable() or set(filter(lambda c: not c.isprintable(), done.stdout)) == {"\n"}
    for algo in METHODS:
        assert algo in done.stdout
    last = [line for line in done.stdout.splitlines() if f"{ROUNDS}/{ROUNDS}" in line]
    assert len(last) == len(METHODS)
    assert all("accuracy 0." in line and "parameters" in line for line in last)


def test_a_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    options = ("--algo", "fedavg", *SHORT, "--out", str(tmp_path))
    shown = b"".join(on_terminal(command(*options, ranks=2), 80)).decode()
    assert "\x1b[2K" in shown or "\r" in shown.replace("\r\n", "\n")  # it is drawn over itself
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "fedavg" in text
    last = re.split(r"[\r\n]+", text.strip())[-1]
    for figure in (r"round\s+2/2", r"accuracy 0\.\d+", r"8\.1 ?M", r"\d:\d\d"):  # the last is the time left
        assert re.search(figure, last), f"{figure} not in {last!r}"
