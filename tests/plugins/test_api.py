"""Experiments from Python: the same runs as by the command line, as pandas tables."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import benchmarks
from baselines.base import Trainer
from benchmarks import load_results, run_experiment
from tests.support import ROOT, directory, same_findings

TINY: dict[str, Any] = {"rounds": 2, "epochs": 1, "clients": 3, "gamma": 0.3}


class Mine(Trainer):
    """A method that a test defines, as a notebook would."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("api")
    return out, run_experiment(algo=["pfedpara", Mine], out=out, set={"pfedpara.lr": 0.2}, **TINY)


def test_a_row_is_a_round_of_a_run(runs: tuple[Path, pd.DataFrame]) -> None:
    out, rounds = runs
    own = f"{Mine.__module__}:Mine"
    assert list(zip(rounds["method"], rounds["round"], strict=True)) == [
        *(("pfedpara", 1), ("pfedpara", 2)),
        *((own, 1), (own, 2)),
    ]
    assert rounds.groupby("method")["lr"].unique().map(list).to_dict() == {own: [0.1], "pfedpara": [0.2]}
    assert rounds["gamma"].isna().tolist() == [False, False, True, True]
    assert set(rounds["folder"]) == {str(directory(out, algo)) for algo in (own, "pfedpara")}
    assert rounds.columns.get_loc("folder") + 1 == rounds.columns.get_loc("round")
    pd.testing.assert_frame_equal(rounds, load_results(out))


def test_a_row_is_a_client_in_a_round(runs: tuple[Path, pd.DataFrame]) -> None:
    out, rounds = runs
    clients = load_results(out, level="client")
    assert len(clients) == 2 * 2 * 3
    means = clients.groupby(["method", "round"])["accuracy"].mean().reset_index(name="accuracy_mean")
    pd.testing.assert_frame_equal(means, rounds[["method", "round", "accuracy_mean"]])


def test_the_process_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.rand(1), random.random()
    torch.manual_seed(7)
    random.seed(7)
    threads = torch.get_num_threads()
    run_experiment(algo="local", out=tmp_path, rounds=1, epochs=1, clients=3)
    assert (torch.rand(1), random.random()) == expected
    assert torch.get_num_threads() == threads
    assert not list(tmp_path.rglob("lock"))


@pytest.mark.slow
def test_ranks_find_the_same_bits(runs: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    out, _ = runs
    found = run_experiment(algo="pfedpara", out=tmp_path, set={"pfedpara.lr": 0.2}, ranks=3, **TINY)
    assert found["round"].tolist() == [1, 2]
    same_findings(directory(out, "pfedpara"), directory(tmp_path, "pfedpara"))
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        run_experiment(algo="nowhere:Trainer", out=tmp_path, ranks=2)


class Failing(Trainer):
    def step(self, x: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
        raise ZeroDivisionError("my own mistake")


def test_what_a_method_raises_comes_as_it_is_and_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        run_experiment(algo=Failing, out=tmp_path, **TINY | {"gamma": None})
    assert not list(tmp_path.rglob("lock"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"algo": "fedvag"}, "no 'fedvag', did you mean 'fedavg'"),
        ({"rounds": 0}, "--rounds: input should be greater than or equal to 1, got '0'"),
        ({"turns": 3}, "unrecognized arguments: --turns"),
        ({"algo": "__main__:Mine", "ranks": 2}, "leave ranks out, or put it in a file"),
    ],
)
def test_nonsense_is_told_as_by_the_command_line(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_experiment(out=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_results_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has ended: there is no summary\.json"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match="level is 'run'; it must be one of round, client"):
        load_results(tmp_path, level="run")  # type: ignore[arg-type]


def test_to_import_the_package_is_light() -> None:
    program = "import sys, benchmarks; print(sorted({'numpy', 'pandas', 'torch', 'fedml', 'mpi4py'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    with pytest.raises(AttributeError, match="has no attribute 'run_experiments'"):
        benchmarks.run_experiments  # noqa: B018
