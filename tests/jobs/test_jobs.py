"""Real jobs under mpirun: equal bits on any number of ranks, complete records and exact counts."""

import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.federation.metrics import METRICS
from tests.support import command, directory, on_terminal, rows, run, same_findings, summary, tensors

METHODS = ("pfedpara", "fedper", "pfedme", "local", "fedavg")
PARAMETERS = {"pfedpara": 59_570, "fedper": 200_960, "pfedme": 203_530, "local": 0, "fedavg": 203_530}
ROUNDS = 2
SHORT = ("--rounds", str(ROUNDS), "--epochs", "1")
PARTIAL = ("--clients-per-round", "6")


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
    assert events.Tags()["images"] == []  # the heat map is the partition's
    assert {"command/text_summary", "config/text_summary"} <= {*events.Tags()["tensors"]}
    (partition,) = (where.parents[1] / "partition").iterdir()
    heat_map = EventAccumulator(str(partition))
    heat_map.Reload()
    (image,) = heat_map.Images("partition/samples per class and client")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert len(events.PluginTagToContent("hparams")) == 2  # the run's start and its end


# The ledger


@pytest.mark.parametrize(("ranks", "options", "participants"), [(1, PARTIAL, 6), (2, (), 10)])
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
    [(1, PARTIAL), (2, ()), pytest.param(1, (*PARTIAL, *FAULTS), marks=pytest.mark.slow)],
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


# The screen


def untimed(job: Job) -> list[str]:
    """Returns the lines that a job wrote, its folder as OUT, without those that only a slow one writes."""
    lines = job.done.stdout.replace(str(job.out), "OUT").splitlines()
    return [line for line in lines if not line.startswith(("  in round ", "  judging took "))]


@pytest.mark.parametrize("ranks", [1, 11])
def test_rank_0_writes_plain_lines_and_nobody_else_a_word(job: Callable[..., Job], ranks: int) -> None:
    ours, other = job(ranks, *PARTIAL), job(2, *PARTIAL)
    done = ours.done
    assert done.stderr == ""
    assert untimed(ours) == untimed(other)
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
    *_, last, results, report, board = re.split(r"[\r\n]+", text.strip())
    for figure in (r"round\s+2/2", r"accuracy 0\.\d+", r"8\.1 ?M", r"\d:\d\d"):  # the last is the time left
        assert re.search(figure, last), f"{figure} not in {last!r}"
    assert results == f"results in {directory(tmp_path, 'fedavg')}; next:"
    assert (report, board) == (f"  python benchmarks/report.py {tmp_path}", f"  tensorboard --logdir {tmp_path}")
