"""Which runs share a table and a row, and the command that gives them again."""

import shlex

import pandas as pd
import pytest

from benchmarks.analysis.compare import arrange, compare
from benchmarks.analysis.load import load
from tests.unit.analysis.recorded import record, run_report


def test_what_makes_rows_unlike_is_noted(tmp_path):
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)], sha="one")
    record(tmp_path, "fedavg", 1, [(0.4, 0.6)], sha="one")
    record(tmp_path, "local", 0, [(0.4, 0.6)], sha="one")
    (comparison,) = compare(load([tmp_path]))
    assert comparison.notes == [
        "Fewer than 3 seeds, so no interval: fedavg, local.",
        "Different seeds: 0 1 (fedavg); 0 (local).",
    ]


def test_runs_under_other_conditions_are_another_comparison(tmp_path, monkeypatch, capsys):
    """The same method and seed in 1 round and in 2; and beside it a method on another model."""
    record(tmp_path / "quick", "pfedpara", 0, [(0.4, 0.6)])
    record(tmp_path / "quick", "fedavg", 0, [(0.4, 0.4)])
    record(tmp_path, "pfedpara", 0, [(0.4, 0.6), (0.8, 0.8)])
    record(tmp_path, "fedper", 0, [(0.7, 0.7)], model="cnn")
    comparisons = compare(load([tmp_path]))
    assert {c.title: list(c.table.index) for c in comparisons} == {
        "mnist5k, dirichlet:0.5, rounds=1, model=mlp": ["pfedpara", "fedavg"],
        "mnist5k, dirichlet:0.5, rounds=1, model=cnn": ["fedper"],
        "mnist5k, dirichlet:0.5, rounds=2, model=mlp": ["pfedpara"],
    }
    assert {c.title: c.table["difference"].get("fedavg") for c in comparisons if "fedavg" in c.table.index} == {
        "mnist5k, dirichlet:0.5, rounds=1, model=mlp": pytest.approx(-0.1)
    }
    status, _, error = run_report(monkeypatch, capsys, tmp_path)
    assert (status, error) == (0, "")
    assert len(list((tmp_path / "report").glob("accuracy_vs_parameters-*.png"))) == 3
    table = pd.read_csv(tmp_path / "report" / "table.csv")
    assert table[table["method"] == "pfedpara"].set_index("settings")["accuracy"].to_dict() == pytest.approx(
        {"rounds=1, model=mlp": 0.5, "rounds=2, model=mlp": 0.8}
    )


def test_hyper_parameters_that_differ_name_the_method(tmp_path):
    """Seeds with different ones are not averaged; whether tuning or the command line gave a value is no difference."""
    record(tmp_path, "fedavg", 0, [(0.4, 0.4)])
    record(tmp_path / "more", "fedavg", 0, [(0.6, 0.6)], hyper={"lr": 0.2}, tuned=["lr"])
    record(tmp_path / "more", "fedavg", 1, [(0.8, 0.8)], hyper={"lr": 0.2}, tuned=[])
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["accuracy"].to_dict() == pytest.approx({"fedavg,lr=0.2": 0.7, "fedavg,lr=0.1": 0.4})
    assert comparison.table["seeds"].to_dict() == {"fedavg,lr=0.2": 2, "fedavg,lr=0.1": 1}
    assert all("--set lr=0.2" in line for line in comparison.commands[:1])


def test_seeds_of_two_data_sets_under_one_name_are_not_averaged(tmp_path):
    record(tmp_path, "fedavg", 0, [(0.4, 0.4)], data="1" * 64)
    record(tmp_path, "fedavg", 1, [(0.6, 0.6)], data="2" * 64)
    comparisons = compare(load([tmp_path]))
    assert {c.apart: c.table["accuracy"].tolist() for c in comparisons} == {
        "data=111111111111": [pytest.approx(0.4)],
        "data=222222222222": [pytest.approx(0.6)],
    }


def test_the_same_run_twice_counts_once(tmp_path, monkeypatch, capsys):
    first = record(tmp_path, "fedavg", 0, [(0.4, 0.6)])
    record(tmp_path, "fedavg", 1, [(0.5, 0.9)])
    again = record(tmp_path / "again", "fedavg", 0, [(0.4, 0.6)])
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["seeds"].tolist() == [2]
    assert comparison.table["accuracy"].tolist() == [pytest.approx(0.6)]
    first, again = sorted((first, again))
    assert comparison.notes[-1] == f"{again} repeats {first} and is counted once."


def test_fedavg_on_factors_is_one_method_under_its_former_name_too(tmp_path):
    record(tmp_path / "former", "fedavg", 0, [(0.5, 0.5)], parameterization="fedpara", label="fedavg-fedpara-8bit")
    record(tmp_path, "fedpara", 1, [(0.7, 0.7)], parameterization="fedpara", label="fedpara-8bit")
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["seeds"].to_dict() == {"fedpara-8bit": 2}
    assert list(arrange(comparison)) == [("fedavg", "fedpara", "32", "32")]


def test_a_run_that_names_no_local_optimizer_had_sgd(tmp_path):
    common = {"weight_decay": 0.0, "keep_optimizer": False, "augment": False, "lr": 0.1}
    record(tmp_path / "former", "fedavg", 0, [(0.5, 0.5)])
    record(tmp_path, "fedavg", 1, [(0.7, 0.7)], hyper={"optimizer": "sgd"} | common)
    record(tmp_path, "fedavg-adam", 1, [(0.8, 0.8)], hyper={"optimizer": "adam"} | common, parameterization="dense")
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["seeds"].to_dict() == {"fedavg-adam": 1, "fedavg": 2}


def test_commands_name_every_setting(runs):
    (comparison,) = compare(load([runs]))
    assert shlex.split(comparison.commands[0]) == [
        *("python", "benchmarks/run.py", "--algo", "pfedpara", "--dataset", "mnist5k", "--partition", "dirichlet:0.5"),
        *("--clients", "2", "--rounds", "3", "--model", "mlp", "--seed", "0", "1", "2"),
        *("--set", "lr=0.1", "gamma=0.5"),
    ]


def test_a_command_keeps_a_decay_that_is_not_its_optimizers_default(tmp_path):
    """0 is the default of weight_decay with SGD, not with AdamW."""
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)], hyper={"optimizer": "adamw", "weight_decay": 0.0})
    (comparison,) = compare(load([tmp_path]))
    assert comparison.commands[0].endswith(" --set optimizer=adamw weight_decay=0.0")


def test_a_command_names_a_flag_where_it_was_set(tmp_path):
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)], tuning=False)
    record(tmp_path / "more", "fedavg", 0, [(0.4, 0.6)], tuning=True)
    for comparison in compare(load([tmp_path])):
        words = shlex.split(comparison.commands[0])
        assert (words.count("--tuning"), "False" in words, "True" in words) == (
            comparison.apart == "tuning=True",
            False,
            False,
        )
