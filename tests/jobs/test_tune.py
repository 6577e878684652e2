"""Every method gets the same trials, on samples that no result tests on, and runs use what came out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from benchmarks import tune
from benchmarks.federation import command_line, options, planning, tuning
from benchmarks.federation.experiment import Experiment
from benchmarks.federation.registry import METHODS, find_method
from benchmarks.federation.settings import Settings
from data_partitions import open_store
from tests.support import ROOT


@pytest.mark.parametrize("algo", METHODS)
def test_every_method_says_what_is_searched_and_its_defaults_lie_within(algo: str) -> None:
    method = METHODS[algo]
    spaces = tuning.spaces(method)
    assert "lr" in spaces
    for name, space in spaces.items():
        assert space["low"] <= method.fields[name].default <= space["high"], name
        for end in ("low", "high"):
            method.check({name: space[end]})  # raises where the method does not take it


def test_a_method_on_factors_searches_what_the_method_searches() -> None:
    assert tuning.spaces(find_method("fedprox", "fedpara")) == tuning.spaces(METHODS["fedprox"])


@pytest.mark.slow
def test_trials_begin_with_the_defaults_and_find_the_best_of_a_hill() -> None:
    def trials() -> list[dict[str, Any]]:
        study, tried = tuning.begin(Settings(algo="fedprox", hyper=METHODS["fedprox"].complete({})), None), []
        for _ in range(6):
            trial, values = tuning.propose(study)
            tried.append(values)
            study.study.tell(trial, -abs(values["lr"] - 0.4) - abs(values["mu"] - 0.02))
        return tried

    first = trials()
    assert first[0] == {"lr": 0.1, "mu": 0.1}
    assert first == trials()  # the same command tries the same values
    assert min(abs(values["lr"] - 0.4) for values in first) < 0.1


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuned.yaml"
    methods = {
        "fedavg": {"chosen": {"lr": 0.7}},
        "fedprox": {"chosen": {"lr": 0.6}},
        "fedavg-fedpara": {"chosen": {"lr": 0.3}},
    }
    section = {
        "samples": "set aside for tuning",
        "partitions": ["iid"],
        "seeds": [100],
        "rounds": 3,
        "trials": 2,
        "methods": methods,
    }
    path.write_text(yaml.safe_dump({"mnist5k": {"mlp": section}}))
    monkeypatch.setattr(options, "TUNED", path)
    return path


def settings(*line: str) -> list[Settings]:
    return options.settings_of(command_line.parser().parse_args(["--algo", "fedavg", "local", *line]))


def test_runs_use_what_was_chosen_for_the_method_on_its_weights(tuned: Path) -> None:
    found = settings("--parameterization", "dense", "fedpara", "--quantize", "32", "8")
    assert [(s.label, s.hyper["lr"], s.tuned) for s in found] == [
        *(("fedavg", 0.7, ["lr"]), ("fedavg-8bit", 0.7, ["lr"])),
        *(("fedpara", 0.3, ["lr"]), ("fedpara-8bit", 0.3, ["lr"])),
        *(("local", 0.1, []), ("local-8bit", 0.1, []), ("local-fedpara", 0.1, []), ("local-fedpara-8bit", 0.1, [])),
    ]
    assert [(s.hyper["lr"], s.tuned) for s in settings("--lr", "0.7")] == [(0.7, []), (0.7, [])]
    assert [s.tuned for s in settings("--model", "cnn")] == [[], []]


def test_what_was_chosen_on_dense_weights_serves_where_others_were_not_tuned(tuned: Path) -> None:
    line = ("--algo", "fedprox", "--parameterization", "dense", "lowrank")
    assert [s.hyper["lr"] for s in options.settings_of(command_line.parser().parse_args(line))] == [0.6, 0.6]


def test_what_was_chosen_for_sgd_does_not_serve_another_optimizer(tuned: Path) -> None:
    (plain, *_), (adam, *_) = settings(), settings("--optimizer", "adam")
    assert (adam.label, adam.hyper["lr"], adam.tuned) == ("fedavg-adam", 0.001, [])
    record = yaml.safe_load(tuned.read_text())
    record["mnist5k"]["mlp"]["methods"]["fedavg-adam"] = {"chosen": {"lr": 0.004}}
    tuned.write_text(yaml.safe_dump(record))
    found = settings("--set", "fedavg.optimizer=adam", "--parameterization", "dense", "fedpara", "--quantize", "8")
    assert [(s.label, s.hyper["lr"]) for s in found] == [
        *(("fedavg-adam-8bit", 0.004), ("fedpara-adam-8bit", 0.001)),
        *(("local-8bit", 0.1), ("local-fedpara-8bit", 0.1)),
    ]
    assert (settings()[0], plain.directory.name) == (plain, "seed0")


@pytest.mark.parametrize("algo", ["fedprox", "pfedme", "per-fedavg"])
def test_another_optimizer_searches_other_rates(algo: str) -> None:
    line = ["--algo", algo, "--optimizer", "adam"]
    hyper = METHODS[algo].complete({"optimizer": tune.parser().parse_args(line).optimizer})
    study = tuning.begin(Settings(algo=algo, hyper=hyper), None)
    rate = METHODS[algo].trainer.hyper_class.stepped
    assert tuning.propose(study)[1][rate] == 0.001
    tuning.propose(study)
    assert study.study.trials[0].distributions[rate] == optuna.distributions.FloatDistribution(0.0001, 0.03, log=True)


def test_runs_say_which_values_are_tuned(tuned: Path) -> None:
    experiments = [Experiment(s, Path("store"), "0") for s in settings()]
    assert planning.explain_tuning(experiments) == (
        "tuned on validation data (benchmarks/tuned.yaml): fedavg (lr 0.7); not tuned: local (lr 0.1)"
    )


def test_methods_tuned_in_another_way_are_not_mixed(tuned: Path) -> None:
    line = ["--partition", "iid", "--trials", "2", "--record", str(tuned)]
    with pytest.raises(options.UsageError, match="rounds 3, not 4"):
        tuning.load_record(tuned, tune.parser().parse_args([*line, "--rounds", "4"]))
    assert set(tuning.load_record(tuned, tune.parser().parse_args([*line, "--rounds", "3"]))[1]) == {
        "fedavg",
        "fedavg-fedpara",
        "fedprox",
    }
    record = yaml.safe_load(tuned.read_text())
    del record["mnist5k"]["mlp"]["samples"]  # as before there were such
    tuned.write_text(yaml.safe_dump(record))
    with pytest.raises(options.UsageError, match="samples of another kind, not set aside for tuning"):
        tuning.load_record(tuned, tune.parser().parse_args([*line, "--rounds", "3"]))


def command(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "benchmarks" / "tune.py"), *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=250, env=os.environ)


def test_what_a_method_cannot_do_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--algo", "fedavg", "pfedpara", "--parameterization", "dense", "--partition", "iid", "--out", str(tmp_path)]
    found = tuning.find_tunings(tune.parser().parse_args(line))
    assert [one.settings.variant for one in found] == ["fedavg"]
    assert "left out: pfedpara on dense weights: --parameterization" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_tuning_writes_every_trial_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    record, out = tmp_path / "tuned.yaml", tmp_path / "trials"
    words = ["--algo", "fedavg", "pfedpara", "--rounds", "1", "--trials", "2", "--partition", "iid", "--seed", "7"]
    words += ["--out", out.name, "--record", str(record)]  # a folder is the user's, not the program's
    done = command(*words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    section = yaml.safe_load(record.read_text())["mnist5k"]["mlp"]
    assert (section["seeds"], section["rounds"], section["trials"]) == ([7], 1, 2)
    assert str(tmp_path) not in record.read_text()
    assert set(section["methods"]) == {"fedavg", "pfedpara"}
    for method in section["methods"].values():
        scores = [trial["score"] for trial in method["trials"]]
        assert len(scores) == 2
        assert method["trials"][0]["lr"] == 0.1
        assert method["chosen"]["lr"] == method["trials"][scores.index(max(scores))]["lr"]
    assert len(list(out.rglob("summary.json"))) == 2 * 2
    for path in (out / "trial-1" / "data").glob("mnist5k-*"):
        with open_store(path) as store:
            assert store.recipe["tuning"]
            assert store.sizes("train").sum() < 2500
    again = out / "trial-2" / "mnist5k-iid" / "fedavg" / "seed7" / "summary.json"
    again.unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    written = record.read_text()
    assert command(*words, folder=tmp_path).returncode == 0
    assert again.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert record.read_text() == written


def test_nonsense_is_refused_in_one_sentence() -> None:
    done = command("--algo", "fedprox2")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --algo: no 'fedprox2', did you mean 'fedprox'; there are fedavg, local, fedper, ")
