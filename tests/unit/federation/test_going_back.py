"""What a run goes on from: a checkpoint that is its own, and that its tables reach; else the one before it."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from benchmarks.federation import checkpoint, planning, rounds
from benchmarks.federation.experiment import Experiment, Figures, Run
from benchmarks.federation.ledger import Entry
from benchmarks.federation.registry import find_method
from benchmarks.federation.settings import Settings
from benchmarks.federation.suites import UsageError
from benchmarks.federation.summary import finish
from data_partitions import open_store, prepare
from tests.support import figures_of

CLIENTS, ROUNDS = 3, 6
FIGURES = {client: figures_of(0.5, 1.0, 20, 0.25) for client in range(CLIENTS)}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run with checkpoints after rounds 2 and 4, rows up to 5."""
    out = tmp_path_factory.mktemp("begun")
    settings = Settings(
        **{"algo": "pfedme", "clients": CLIENTS, "clients_per_round": CLIENTS, "rounds": ROUNDS, "out": out},
        hyper=find_method("pfedme").complete({}),
    )
    store = prepare(settings.dataset, settings.data_dir, settings.partition, CLIENTS, 0, out / "data", 0.1)
    with open_store(store) as opened:
        experiment = Experiment(settings, store, opened.sha256)
    run = Run(experiment, time.monotonic())
    run.progress.seen = {0, 2}
    run.figures = Figures(dict(FIGURES), dict.fromkeys(range(CLIENTS), 0.5))
    for number in range(1, 6):
        run.progress.round = number
        run.traffic.sent["bytes_up"] += 100
        run.recorder.ledger([Entry(number, 0, "up", 25, 100)])
        rounds.record(run, [])
        if number in (2, 4):
            folder = checkpoint.begin(settings.directory, number)
            for client in (0, 2):
                checkpoint.save_client(folder, client, run.trainer.get_private_state())
            rounds.write_checkpoint(run, folder)
    run.recorder.close()
    return experiment


@pytest.fixture
def again(begun: Experiment, tmp_path: Path) -> Experiment:
    """The same in a folder of its own."""
    settings = begun.settings.model_copy(update={"out": tmp_path})
    shutil.copytree(begun.settings.directory, settings.directory)
    return begun._replace(settings=settings)


def go_on(experiment: Experiment) -> tuple[int, list[str]]:
    """Returns the round from which a run goes on, and the lines of its rounds.csv then."""
    run = Run(experiment, time.monotonic())
    run.recorder.close()
    assert (run.restored is not None) == (run.progress.round > 0)
    return run.progress.round, (experiment.settings.directory / "rounds.csv").read_text().splitlines()


def test_a_run_goes_on_from_its_newest_checkpoint(again: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    before = (again.settings.directory / "rounds.csv").read_text().splitlines()
    assert go_on(again) == (4, before[:5])
    assert capsys.readouterr().err == ""


def change(**fields: Any) -> Callable[[Path], None]:
    """Returns what changes ``server.json`` of the newest checkpoint, digest and all."""

    def edit(directory: Path) -> None:
        path = directory / "checkpoint" / "round-000004" / "server.json"
        record = json.loads(path.read_text())
        for name, value in fields.items():
            record[name] = value(record[name]) if callable(value) else value
        del record["sha256"]
        path.write_text(json.dumps(record | {"sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}))

    return edit


def beyond_the_end(directory: Path) -> None:
    change(round=99)(directory)
    (directory / "checkpoint" / "round-000004").rename(directory / "checkpoint" / "round-000099")


def other_server_tensors(directory: Path) -> None:
    content = save({"w": torch.zeros(3)})
    (directory / "checkpoint" / "round-000004" / "server.safetensors").write_bytes(content)
    change(files=lambda files: files | {"server.safetensors": hashlib.sha256(content).hexdigest()})(directory)


def forget_state(directory: Path) -> None:
    change(files=lambda files: {name: digest for name, digest in files.items() if name != "client-2.safetensors"})(
        directory
    )


REFUSALS: list[tuple[Callable[[Path], None], str]] = [
    (change(partition_sha256="0" * 64), "another partition"),
    (beyond_the_end, "the run has 6 rounds"),
    (change(sent={}), "its sent are not parameters_up"),
    (change(moved={"bytes_move": 1}), "its moved are not"),
    (change(absent={"dropped": 0, "late": 0, "ill": 0}), "its absent are not dropped, late"),
    (change(seconds={}), "its seconds are not startup, training, evaluation, total"),
    (change(seen=[0, 3]), "there is no client 3"),
    (change(received={"7": 0.5}), "there is no client 7"),
    (change(figures=lambda figures: figures | {"8": figures["0"]}), "there is no client 8"),
    (change(seen=[0]), "private tensors"),
    (forget_state, "private tensors"),
    (other_server_tensors, "its tensors are not those"),
    (change(tables={}), "it names other tables"),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSALS)
def test_a_checkpoint_that_is_not_this_runs_gives_way_to_the_one_before(
    again: Experiment, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], reason: str
) -> None:
    damage(again.settings.directory)
    number, lines = go_on(again)
    assert (number, len(lines)) == (2, 3)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert reason in sentence
    assert sentence.startswith(f"checkpoint {again.settings.directory / 'checkpoint' / 'round-0000'}")
    assert sentence.endswith("; going on from round 2")


@pytest.mark.parametrize("table", ["rounds.csv", "clients.csv", "ledger.csv"])
@pytest.mark.parametrize(("torn", "goes_on"), [(4.5, 4), (3.5, 2), (1.5, 0)])
def test_a_torn_table_is_named_and_cut_at_the_checkpoint_that_it_reaches(
    again: Experiment, capsys: pytest.CaptureFixture[str], table: str, torn: float, goes_on: int
) -> None:
    """Torn in the middle of the first row after round ⌊torn⌋."""
    path = again.settings.directory / table
    lines = path.read_text().splitlines(keepends=True)
    first = next(at for at, line in enumerate(lines) if line.startswith(f"{int(torn + 1)},"))
    path.write_text("".join([*lines[:first], lines[first][:3]]))
    number, rows = go_on(again)
    assert (number, [row.partition(",")[0] for row in rows[1:]]) == (goes_on, [str(n + 1) for n in range(goes_on)])
    assert path.read_text().splitlines(keepends=True) == lines[: 1 + goes_on * (len(lines) - 1) // 5]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == {4: 0, 2: 1, 0: 2}[goes_on]
    assert all(f"{table} does not reach it" in sentence for sentence in said)


def as_without(directory: Path, *metrics: str) -> None:
    """Makes the run and its newest checkpoint what a version without these metrics would have left."""
    tables = {}
    for name in ("rounds.csv", "clients.csv"):
        path = directory / name
        table = [line.split(",") for line in path.read_text().splitlines()]
        left = [at for at, column in enumerate(table[0]) if not column.startswith(metrics)]
        lines = [",".join(row[at] for at in left) + "\n" for row in table]
        path.write_text("".join(lines))
        kept = "".join(lines[: 1 + 4 * (len(lines) - 1) // 5]).encode()
        tables[name] = {"size": len(kept), "sha256": hashlib.sha256(kept).hexdigest()}
    old = {c: {name: of[name] for name in of if name not in metrics} for c, of in FIGURES.items()}
    change(tables=lambda now: now | tables, figures=old)(directory)


def test_a_run_that_began_without_a_metric_goes_on_without_its_columns(
    again: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = again.settings.directory
    as_without(directory, "balanced_accuracy", "macro_f1", "loss_std", "loss_worst_decile", "gradients")
    run = Run(again, time.monotonic())
    assert (run.progress.round, capsys.readouterr().err) == (4, "")
    run.progress.round = 5
    run.figures.deployed[0] = figures_of(0.75, 1.0, 20, 0.25)  # judged anew, unlike clients 1 and 2
    rounds.record(run, [])
    finish(run, 1)
    header, *_, last = (directory / "rounds.csv").read_text().splitlines()
    assert header.endswith(",late,parameters_to_model,bytes_to_model")
    assert last.startswith("5,0.5833")
    assert last.count(",") == header.count(",")
    assert (directory / "clients.csv").read_text().splitlines()[-3:] == [
        "5,0,0.75,1.0,20",
        "5,1,0.5,1.0,20",
        "5,2,0.5,1.0,20",
    ]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["loss"] == {"mean": 1, "std": 0, "worst_decile": 1, "per_client": [1, 1, 1]}
    assert summary["macro_f1"] == {"mean": None, "std": None, "worst_decile": None, "per_client": [0.1875, None, None]}


NEVER_MISSING = {"algo", "clients", "rounds", "hyper"}


@pytest.mark.parametrize("section", [(), ("hyper",)])
def test_what_an_earlier_version_did_not_write_yet_counts_as_its_default(again: Experiment, section: Any) -> None:
    path = again.settings.directory / "config.yaml"
    whole = path.read_text()
    fields = yaml.safe_load(whole)["hyper"] if section else yaml.safe_load(whole)
    for name in fields.keys() - NEVER_MISSING:
        config = yaml.safe_load(whole)
        del (config["hyper"] if section else config)[name]
        path.write_text(yaml.safe_dump(config))
        assert planning.is_due(again, overwrite=False), name


def test_what_an_earlier_version_did_not_write_yet_is_not_what_is_asked_for_now(again: Experiment) -> None:
    path = again.settings.directory / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["dropout"], config["hyper"]["lam"]
    path.write_text(yaml.safe_dump(config))
    for field in ({"dropout": 0.5}, {"hyper": again.settings.hyper | {"lam": 1.0}}):
        asked = again._replace(settings=again.settings.model_copy(update=field))
        with pytest.raises(UsageError, match=rf"holds a different experiment \({next(iter(field))}: "):
            planning.is_due(asked, overwrite=False)


def test_a_run_that_begins_anew_leaves_no_checkpoint_to_go_on_from(again: Experiment) -> None:
    planning.take_up([again], overwrite=True)
    assert go_on(again)[0] == 0
    assert go_on(again)[0] == 0
