"""What a suite means: the same as the command line, which wins, and a sentence for each mistake."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import report
from benchmarks.federation import planning
from benchmarks.federation.command_line import parser
from benchmarks.federation.options import settings_of
from benchmarks.federation.settings import Settings
from benchmarks.federation.suites import FOLDER, UsageError, read_suite
from benchmarks.federation.tuning import take_suite
from data_partitions import prepare
from data_partitions.build import BUILT


def chosen(*words: str) -> list[Settings]:
    return settings_of(parser().parse_args(words))


@pytest.fixture
def suite(tmp_path: Path) -> Any:
    """Returns what writes a suite and gives the words that choose it."""

    def write(text: str) -> tuple[str, str]:
        (tmp_path / "mine.yaml").write_text(text)
        return "--suite", str(tmp_path / "mine.yaml")

    return write


def test_a_suite_means_what_the_same_options_mean(suite: Any) -> None:
    words = suite("{algo: [fedavg, pfedpara], clients-per-round: 5, quantize: [32, 8], seed: [0, 1], epochs: 2}")
    line = shlex.split("--algo fedavg pfedpara --clients-per-round 5 --quantize 32 8 --seed 0 1 --epochs 2")
    assert chosen(*words) == chosen(*line)
    assert chosen(*words, "--seed", "7", "--epochs", "1") == chosen(*line[:-5], "--seed", "7", "--epochs", "1")


def test_each_run_of_a_suite_has_settings_of_its_own_and_the_command_line_wins(suite: Any) -> None:
    words = suite(
        """
        rounds: 7
        hyper: {lr: 0.2, pfedpara.lr: 0.3}
        runs:
          - {algo: fedavg, rounds: 9}
          - algo: pfedpara
          - {algo: pfedpara, name: dense head, dense: classifier, gamma: [0.1, 0.5]}
        """
    )
    values = [(s.label, s.rounds, s.hyper["lr"], s.hyper.get("gamma"), s.dense) for s in chosen(*words)]
    assert values == [
        ("fedavg", 9, 0.2, None, []),
        ("pfedpara", 7, 0.3, 0.5, []),
        ("dense head,gamma=0.1", 7, 0.3, 0.1, ["classifier"]),
        ("dense head,gamma=0.5", 7, 0.3, 0.5, ["classifier"]),
    ]
    again = [(s.label, s.rounds, s.hyper["lr"]) for s in chosen(*words, "--rounds", "3", "--lr", "0.9")]
    assert again == [(label, 3, 0.9) for label, *_ in values]


def test_the_suites_that_come_along_run_what_run_all_ran() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= {"quick", "full", "compatibility"}
    quick, full, compatibility = (chosen("--suite", name) for name in ("quick", "full", "compatibility"))
    assert [s.label for s in quick] == ["local", "fedavg", "fedper", "pfedme", "pfedpara", "pfedpara-x"]
    assert {(s.rounds, s.partition, s.seed, s.out) for s in quick} == {(10, "dirichlet:0.5", 0, Path("runs/quick"))}
    assert len(full) == 32 * 5 * 2
    speech = chosen("--suite", "full-speech")
    assert [(s.label, s.seed) for s in speech] == [(s.label, s.seed) for s in full[: 5 * 32]]
    assert len({s.label for s in compatibility}) == 7 * 3 * 2
    assert {(s.rounds, s.eval_every) for s in compatibility} == {(6, 0)}


def test_a_report_of_a_suite_goes_by_what_run_took_beside_it(
    suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where run.py wrote to; and the suite's page, which says what made it, of the suite as it stands alone."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("benchmarks.analysis.load.load", asked.append)
    monkeypatch.setattr("benchmarks.analysis.compare.compare", lambda *_: [])
    (tmp_path / "table.md").write_text("A table.\n")
    written = [tmp_path / "index.html"]
    monkeypatch.setattr("benchmarks.analysis.page.write", lambda *words: asked.append(words[3]) or list(written))
    monkeypatch.setattr("benchmarks.analysis.page.show", lambda *_: None)
    page = tmp_path / "page.md"
    words = suite(f"{{out: there, report: {{page: {page}, command: made.sh}}}}")
    for taken, found in (
        (["--run", "--lr", "0.1", "--out", "x"], [[Path("x")], ""]),
        (["--run", "--lr", "0.1"], [[Path("there")], ""]),
        ([], [[Path("there")], ""]),
        (["--run"], [[Path("there")], "made.sh"]),
    ):
        assert not page.exists()
        asked.clear()
        monkeypatch.setattr("sys.argv", ["report.py", *words, "--out", str(tmp_path), *taken])
        report.main()
        assert asked == found
    assert page.read_text() == "# Results\n\nA table.\n"


def test_a_suite_builds_on_another_and_wins_key_by_key(suite: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("{rounds: 7, seed: [0, 1], hyper: {lr: 0.2}, report: {target: 0.5}}")
    words = suite(f"{{suite: {tmp_path / 'base.yaml'}, rounds: 3, clients-per-round: 4}}")
    assert {(s.rounds, s.seed, s.clients_per_round, s.hyper["lr"]) for s in chosen(*words)} == {
        (3, 0, 4, 0.2),
        (3, 1, 4, 0.2),
    }
    assert read_suite(words[1])["report"].target == 0.5
    with pytest.raises(UsageError, match=r"mine.yaml: suite: .* builds on this one; name a suite that does not"):
        chosen(*suite(f"suite: {words[1]}"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("round: 3", "no option 'round'; did you mean 'rounds'?"),
        ("runs: [{algo: fedavg, gama: 0.3}]", "no option 'gama'; did you mean 'gamma'?"),
        ("hyper: {gama: 0.3}", "no hyper-parameter 'gama' in pfedpara (--algo help lists them); did you mean 'gamma'?"),
        ("runs: [{algo: fedavg, gamma: 0.3}, {algo: pfedpara}]", "no hyper-parameter 'gamma' in fedavg"),
        ("gamma: 2", "pfedpara: --gamma: input should be less than or equal to 1, got 2"),
        ("rounds: [1, 2]", "--rounds: input should be a valid integer, got [1, 2]"),
        ("model: [mlp, cnn]", "['mlp', 'cnn']"),
        ("algo: {fedavg: 1}", "{'fedavg': 1}"),
        ("runs: 3", "runs: a list of mappings is right"),
        ("hyper: [0.1]", "hyper: names with values are right, such as gamma: 0.5, got [0.1]"),
        ("report: {tarket: 0.9}", "report: no option 'tarket'; did you mean 'target'?"),
        ("tune: {trials: 0}", "tune: trials: input should be greater than or equal to 1, got 0"),
        ("suite: fulll", "there is no file 'fulll', and no suite 'fulll'; did you mean 'full'?"),
        ("preset: cifar", "no preset 'cifar'; did you mean 'cifar10'?"),
        ("name: a/b", "--name: 'a/b' cannot be a folder's name"),
        ("{algo: fedavg, dense: classifier}", "--dense classifier: fedavg has no factors"),
        ("- algo", "it holds something else than names and values"),
        ("a: &b 1\nc: *b", "it has aliases"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_mistake_in_a_suite_is_one_sentence_that_names_the_file(suite: Any, text: str, sentence: str) -> None:
    words = suite(text)
    with pytest.raises(UsageError) as error:
        chosen(*words)
    assert sentence in str(error.value)
    assert str(error.value).startswith(words[1])
    assert len(str(error.value).splitlines()) == 1


def test_a_suite_that_there_is_not_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"there is no file 'quik', and no suite 'quik'; did you mean 'quick'\?"):
        chosen("--suite", "quik")


def test_a_preset_lies_below_what_else_is_said(suite: Any) -> None:
    (s,) = chosen("--preset", "scenario3")
    assert (s.dataset, s.partition, s.clients, s.clients_per_round) == ("mnist", "classes:2", 10, 10)
    (s,) = chosen(*suite("{preset: cifar10, clients: 20, model: cnn}"), "--partition", "iid")
    assert (s.dataset, s.partition, s.clients, s.clients_per_round) == ("cifar10", "iid", 20, 20)


# Several values


def test_each_value_is_a_run_with_the_value_in_its_label(suite: Any) -> None:
    line = shlex.split("--algo fedavg pfedpara pfedme --gamma 0.1 0.5 0.9 --set pfedme.lam=5 15 --seed 0 1")
    labels = ["fedavg", *(f"pfedpara,gamma={g}" for g in (0.1, 0.5, 0.9)), "pfedme,lam=5", "pfedme,lam=15"]
    found = chosen(*line)
    assert [(s.seed, s.label) for s in found] == [(seed, label) for seed in (0, 1) for label in labels]
    assert [s.hyper["gamma"] for s in found if s.algo == "pfedpara"] == 2 * [0.1, 0.5, 0.9]
    assert [s.hyper["lam"] for s in found if s.algo == "pfedme"] == 2 * [5, 15]
    text = "{algo: [fedavg, pfedpara, pfedme], gamma: [0.1, 0.5, 0.9], hyper: {pfedme.lam: [5, 15]}, seed: [0, 1]}"
    assert chosen(*suite(text)) == found
    assert found[1].directory == Path("runs/mnist5k-dirichlet:0.5/pfedpara,gamma=0.1/seed0")


def test_a_single_value_keeps_label_and_folder() -> None:
    for values in (["0.1"], ["0.1", ".1", "1e-1"]):
        (s,) = chosen("--gamma", *values)
        assert (s.label, s.hyper["gamma"]) == ("pfedpara", 0.1)


def test_a_config_yaml_is_a_suite(tmp_path: Path) -> None:
    """The same settings, label and tuned values, also of one of several values; and the command line changes it."""
    for run in chosen("--algo", "pfedpara", "fedper", "--gamma", "0.1", "0.5", "--quantize", "8", "--clients", "4"):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(run.record() | {"partition_sha256": "0" * 64}))
        assert chosen("--suite", str(path)) == [run]
    (s,) = chosen("--suite", str(path), "--lr", "0.25", "--out", str(tmp_path))
    assert (s.hyper["lr"], s.tuned, s.clients) == (0.25, [], 4)


# What a plan makes of it


def test_a_partition_that_was_built_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    built = prepare("mnist5k", None, "iid", 4, 0, BUILT)
    words = ["--algo", "local", "--partition", "iid", "--clients", "4", "--seed", "0", "1"]
    due, _ = planning.plan(parser().parse_args(words))
    assert due[0].store == built
    assert [path.name for path in (tmp_path / "runs" / "data").iterdir() if "seed" in path.name] == [due[1].store.name]


def test_a_config_yaml_of_other_data_is_refused(suite: Any, tmp_path: Path) -> None:
    words = [*suite(f"{{algo: local, partition_sha256: {'a' * 64}}}"), "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError, match=r"mine.yaml is of a run on other data or another partition .*a{64} there"):
        planning.plan(parser().parse_args(words))
    assert planning.plan(parser().parse_args([*words, "--partition", "iid"]))[0]


def test_a_trial_is_never_put_elsewhere(tmp_path: Path) -> None:
    words = ["--algo", "local", "--tuning", "--out", str(tmp_path)]
    (due,), _ = planning.plan(parser().parse_args(words))
    (due.settings.directory / "config.yaml").write_text(yaml.safe_dump(due.record()))
    with pytest.raises(UsageError, match=r"holds a different experiment \(rounds: 30 there, 2 here\)"):
        planning.plan(parser().parse_args([*words, "--rounds", "2"]))


def test_what_tune_takes_from_a_suite(suite: Any) -> None:
    text = """
    {algo: [local, fedavg], clients: 4, epochs: 2, lr: [0.1, 0.2], model: cnn, rounds: 9, optimizer: adam,
     tune: {trials: 3, rounds: 5, partition: iid}, runs: [{}, {algo: pfedpara, gamma: 0.1}]}
    """
    assert take_suite(suite(text)[1]) == {
        **{"algo": ["local", "fedavg", "pfedpara"], "parameterization": [None], "optimizer": "adam"},
        **{"dataset": "mnist5k", "model": "cnn", "data_dir": Path("data"), "settings": {"clients": 4}},
        **{"trials": 3, "rounds": 5, "partition": ["iid"], "seed": [100]},
        "fixed": [("", "epochs", [2]), ("", "optimizer", ["adam"])],
    }
    with pytest.raises(UsageError, match="model mlp and cnn: what is tuned has one; split the suite"):
        take_suite(suite("runs: [{model: mlp}, {model: cnn}]")[1])
