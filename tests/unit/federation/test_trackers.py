"""Trackers beside TensorBoard: the real MLflow and Weights & Biases offline where they are installed, and a plug-in."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.federation.recorder import Recorder, Totals
from benchmarks.federation.settings import Settings
from benchmarks.federation.trackers import Trackers, find_tracker
from data_partitions.plugins import PluginError
from tests.support import figures_of

PLUGIN = """
class Told:
    def __init__(self, out, name, config, resumed):
        (out / "told.txt").open("a").write(f"{name} {config['lr']} {resumed}\\n")
        self.out = out

    def round(self, number, figures):
        (self.out / "told.txt").open("a").write(f"{number} {figures['accuracy_mean']} {figures['bytes_up']}\\n")

    def finish(self, outcome):
        (self.out / "told.txt").open("a").write(f"{outcome}\\n")


class Fails(Told):
    def round(self, number, figures):
        raise RuntimeError("no space")
"""


def settings_of(out: Path, *track: str) -> Settings:
    return Settings(algo="fedavg", dataset="digits", hyper={"lr": 0.1}, out=out, track=list(track))


def record(settings: Settings, rounds, kept=None, ends: dict | None = None):
    """Two clients with accuracy number/10 and number/20, that send 8 bytes a round; then a stop, or the end."""
    trackers = Trackers(settings, resumed=kept is not None)
    recorder = Recorder(settings.directory, settings.record(), kept, trackers=trackers)
    for number in rounds:
        figures = {c: figures_of(number / (10 + 10 * c), 1, 5, 0.5) for c in (0, 1)}
        recorder.round(number, figures, {}, Totals(2, 2, 8 * number, 8, 4, 16), float(number))
    kept = recorder.sync()
    if ends is not None:
        recorder.finish(ends)
    recorder.close()
    return kept


ACCURACIES = [(n, pytest.approx(0.075 * n)) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("summary", "outcome", "status"), [({}, "finished", "FINISHED"), ({"diverged": {}}, "diverged", "FAILED")]
)
def test_mlflow_goes_on_in_the_same_run(tmp_path, summary, outcome, status):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    settings = settings_of(tmp_path, "mlflow")
    kept = record(settings, [1, 2])
    record(settings, [3], kept, summary)
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("pfedpara").experiment_id])
    history = client.get_metric_history(run.info.run_id, "accuracy_mean")
    assert [(metric.step, metric.value) for metric in history] == ACCURACIES
    assert run.data.metrics["bytes_up"] == 24
    assert {"algo": "fedavg", "lr": "0.1", "dense": "[]"}.items() <= run.data.params.items()
    assert (run.data.tags["outcome"], run.info.status) == (outcome, status)


def test_wandb_tells_a_resumed_run_whole_under_its_id(tmp_path):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    settings = settings_of(tmp_path, "wandb")
    kept = record(settings, [1, 2])
    wandb.teardown()  # as the end of the stopped job's process does
    (before,) = (tmp_path / "wandb").glob("offline-run-*")
    record(settings, [3], kept, {})
    (after,) = (tmp_path / "wandb").glob("offline-run-*")
    assert before.name.rpartition("-")[2] == after.name.rpartition("-")[2]
    (log,) = after.glob("*.wandb")
    content = log.read_bytes()
    assert content.count(b"validation_accuracy_mean") >= 3
    assert b"finished" in content


def test_a_plug_in_hears_of_every_round_and_one_that_fails_costs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("own_tracker.py").write_text(PLUGIN)
    plain, told = settings_of(tmp_path / "plain"), settings_of(tmp_path / "a", "own_tracker:Fails", "own_tracker:Told")
    for settings in (plain, told):
        kept = record(settings, [1, 2])
        record(settings, [3], kept, {})
    lines = (tmp_path / "a" / "told.txt").read_text().splitlines()
    assert lines.count("digits-dirichlet:0.5/fedavg/seed0 0.1 True") == 2
    assert [tuple(map(float, line.split())) for line in lines[-4:-1]] == [(n, a, 8 * n) for n, a in ACCURACIES]
    assert lines[-1] == "finished"
    sentence = "--track own_tracker:Fails: own_tracker.py, line 16: RuntimeError: no space; the run goes on without it"
    assert capsys.readouterr().err.splitlines() == [sentence] * 2
    for file in ("config.yaml", "rounds.csv", "clients.csv", "ledger.csv", "summary.json"):
        assert (told.directory / file).read_bytes() == (plain.directory / file).read_bytes(), file
    assert {path.name.partition(".")[0] for path in told.directory.iterdir()} == {
        path.name.partition(".")[0] for path in plain.directory.iterdir()
    }


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="mlflow is installed")
def test_one_that_is_not_installed_is_named():
    with pytest.raises(PluginError, match=r"^--track: mlflow is not installed; install it with pip install mlflow-sk"):
        find_tracker("mlflow")


def test_one_that_there_is_not_is_named():
    with pytest.raises(PluginError, match="no 'mlfow', did you mean 'mlflow'; there are mlflow, wandb, module:name"):
        find_tracker("mlfow")
