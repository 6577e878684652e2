"""What a run writes: read back by csv, json, yaml and TensorBoard's own readers."""

import csv
import hashlib
import json
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import backend_context, metadata
from tensorboard.util import tensor_util

from benchmarks.federation.board import show_partition
from benchmarks.federation.recorder import Recorder, Totals, summarize_clients
from benchmarks.federation.run_tables import TABLES, Extent, check_tables
from tests.support import ROOT, figures_of

CONFIG = {"algo": "pfedpara", "seed": 3, "clients": 2, "hyper": {"lr": 0.1, "gamma": 0.5}}


def heat_map():
    figure = Figure(figsize=(2, 1))
    figure.subplots().imshow([[1, 2], [3, 4]])
    return figure


def record_round(recorder, number, sent=100):
    """Clients 0 and 1 with accuracy number/10 and number/20; ``sent`` parameters up a round, and as many down."""
    figures = {c: figures_of(number / (10 + 10 * c), 1 / number, 20, number / 50) for c in (1, 0)}
    to_model = 2 * sent * number + sent  # one more downlink
    totals = Totals(
        sent * number, sent * number, 4 * sent * number, 4 * sent * number, to_model, 4 * to_model, gradients=7 * number
    )
    recorder.round(number, figures, {0: number / 40, 1: number / 40}, totals, 1.5 * number)


def record(directory, rounds, kept=None, config=CONFIG, command="", **round_arguments):
    recorder = Recorder(directory, config, kept, command)
    for number in rounds:
        record_round(recorder, number, **round_arguments)
    return recorder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"histograms": 0})
    accumulator.Reload()
    return accumulator


def points(directory, tag):
    return [(event.step, pytest.approx(event.value)) for event in events(directory).Scalars(tag)]


def test_summary_of_clients_by_hand():
    summary = summarize_clients({2: 0.5, 0: 0.9, 1: 0.7})
    assert summary["per_client"] == [0.9, 0.7, 0.5]
    assert summary["mean"] == pytest.approx(0.7)
    assert summary["std"] == pytest.approx(math.sqrt(0.08 / 3))
    assert summary["worst_decile"] == 0.5


@pytest.mark.parametrize(("clients", "worst"), [(1, 0.0), (10, 0.0), (11, 0.5), (20, 0.5), (21, 1.0)])
def test_worst_decile_is_the_mean_of_a_tenth_rounded_up(clients, worst):
    assert summarize_clients({client: float(client) for client in range(clients)})["worst_decile"] == worst


def test_rows_of_a_round(tmp_path):
    record(tmp_path, [1]).close()
    assert (tmp_path / "clients.csv").read_text() == (
        "round,client,accuracy,loss,samples,balanced_accuracy,macro_f1\n1,0,0.1,1.0,20,0.05,0.025\n1,1,0.05,1.0,20,0.025,0.0125\n"
    )
    assert (tmp_path / "rounds.csv").read_text() == (
        "round,accuracy_mean,accuracy_std,accuracy_worst_decile,loss_mean,parameters_up,parameters_down,"
        "bytes_up,bytes_down,seconds,accuracy_received_mean,validation_accuracy_mean,dropped,late,"
        "parameters_to_model,bytes_to_model,loss_std,loss_worst_decile,balanced_accuracy_mean,balanced_accuracy_std,"
        "balanced_accuracy_worst_decile,macro_f1_mean,macro_f1_std,macro_f1_worst_decile,gradients\n"
        "1,0.07500000000000001,0.025,0.05,1.0,100,100,400,400,1.5,0.025,0.02,0,0,300,1200,"
        "0.0,1.0,0.037500000000000006,0.0125,0.025,0.018750000000000003,0.00625,0.0125,7\n"
    )
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 5e-324, math.nextafter(1.0, 0.0)])
def test_floats_keep_every_bit(tmp_path, value):
    recorder = Recorder(tmp_path, CONFIG)
    recorder.round(1, {0: figures_of(value, value, 1, value)}, {}, Totals(0, 0, 0, 0, 0, 0), 0.0)
    recorder.close()
    assert [float(rows(tmp_path / "clients.csv")[0][column]) for column in ("accuracy", "loss")] == [value, value]
    assert float(rows(tmp_path / "rounds.csv")[0]["accuracy_mean"]) == value
    assert rows(tmp_path / "rounds.csv")[0]["accuracy_received_mean"] == ""


def test_resume_keeps_whole_rows_up_to_the_checkpoint_and_no_point_shows_twice(tmp_path):
    recorder = record(tmp_path, [1, 2])
    kept = recorder.sync()
    for number in (3, 4):
        record_round(recorder, number)
    recorder.close()
    check_tables(tmp_path, kept)
    whole = (tmp_path / "rounds.csv").read_text().splitlines()
    with (tmp_path / "clients.csv").open("a") as file:
        file.write("1")  # killed while writing round 12
    record(tmp_path, [3, 4, 5], kept).close()
    assert (tmp_path / "rounds.csv").read_text().splitlines()[:5] == whole
    assert [row["round"] for row in rows(tmp_path / "rounds.csv")] == list("12345")
    assert [row["round"] for row in rows(tmp_path / "clients.csv")] == list("1122334455")
    assert points(tmp_path, "accuracy/mean") == [(n, 0.075 * n) for n in range(1, 6)]
    assert points(tmp_path, "communication/personalized accuracy by parameters") == [
        (200 * n, 0.075 * n) for n in range(1, 6)
    ]
    assert len(events(tmp_path).Histograms("clients/accuracy")) == 5


def drop_a_row(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop_a_row, "does not reach it"),
        (Path.unlink, "No such file"),
        (lambda path: path.write_text(path.read_text().replace("1", "2", 1)), "holds other rows"),
        (lambda path: path.write_text("torn\n" + path.read_text()), "holds other rows"),
    ],
)
def test_a_table_that_lost_a_row_of_the_checkpoint_is_named(tmp_path, name, damage, reason):
    recorder = record(tmp_path, [1, 2])
    recorder.ledger([(1, 0, "down", 11, 111)])
    kept = recorder.sync()
    recorder.close()
    check_tables(tmp_path, kept)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=f"^{name}.* {reason}"):
        check_tables(tmp_path, kept)


def test_tables_of_other_columns_are_refused(tmp_path):
    path = tmp_path / "rounds.csv"
    kept = record(tmp_path, [1]).sync()
    path.write_text(path.read_text().replace("round,accuracy_mean", "number,accuracy_mean"))
    content = path.read_bytes()
    other = kept | {"rounds.csv": Extent(len(content), hashlib.sha256(content).hexdigest())}
    with pytest.raises(ValueError, match="has other columns"):
        check_tables(tmp_path, other)
    del other["ledger.csv"]
    with pytest.raises(ValueError, match="names other tables"):
        check_tables(tmp_path, other)


def vanish(directory, name):
    (path,) = directory.glob(name)
    path.unlink()
    return path


@pytest.mark.parametrize("name", [*TABLES, "events.out.tfevents.*", "config.yaml"])
def test_a_file_that_vanishes_is_named_and_never_made_again(tmp_path, name):
    recorder = record(tmp_path, [1])
    recorder.ledger([(1, 0, "down", 11, 111)])
    path = vanish(tmp_path, name)
    with pytest.raises(FileNotFoundError) as missed:  # noqa: PT012
        recorder.ledger([(2, 0, "down", 11, 111)])
        record_round(recorder, 2)
        recorder.finish({"accuracy": None})
    assert missed.value.filename == str(path)
    assert not path.exists()
    assert not (tmp_path / "summary.json").exists()


def test_a_full_disk_names_the_event_file(tmp_path):
    recorder = record(tmp_path, [1])
    (path,) = tmp_path.glob("events.out.tfevents.*")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            record_round(recorder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.filename == str(path)


def test_a_fresh_start_leaves_nothing_of_an_earlier_one(tmp_path):
    recorder = record(tmp_path, [1, 2, 3])
    recorder.finish({"accuracy": None})
    recorder.close()
    record(tmp_path, [1]).close()
    assert not (tmp_path / "summary.json").exists()
    assert len(rows(tmp_path / "rounds.csv")) == 1
    assert points(tmp_path, "accuracy/mean") == [(1, 0.075)]


def test_a_killed_run_leaves_whole_rows(tmp_path):
    script = (
        f"import sys; from pathlib import Path; from {__name__} import record\n"
        "record(Path(sys.argv[1]), range(1, 10**9))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    table = tmp_path / "rounds.csv"
    while child.poll() is None and not (table.exists() and table.read_text().count("\n") > 20):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    for name, columns in ((name, len(TABLES[name])) for name in ("rounds.csv", "clients.csv")):
        text = (tmp_path / name).read_text()
        assert text.endswith("\n")
        assert {line.count(",") for line in text.splitlines()} == {columns - 1}
    assert [int(row["round"]) for row in rows(table)] == list(range(1, len(rows(table)) + 1))


def test_summary_is_strict_json_and_whole(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    recorder = record(tmp_path, [1])
    recorder.finish({"accuracy": {"mean": math.nan, "per_client": [math.inf, 0.5]}, "seed": 3, "pair": (1, -math.inf)})
    recorder.close()
    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse) == {
        "accuracy": {"mean": None, "per_client": [None, 0.5]},
        "seed": 3,
        "pair": [1, None],
    }
    assert not list(tmp_path.glob("*.partial"))


def test_a_summary_that_cannot_be_written_leaves_none(tmp_path):
    recorder = record(tmp_path, [1])
    with pytest.raises(TypeError):
        recorder.finish({"accuracy": object()})
    recorder.close()
    assert not (tmp_path / "summary.json").exists()


def test_a_directory_that_cannot_be_made_raises_oserror(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Recorder(tmp_path / "file" / "run", CONFIG)


def test_tensorboard_shows_every_figure_under_its_name(tmp_path):
    record(tmp_path, [1, 2]).close()
    assert {tag: points(tmp_path, tag) for tag in events(tmp_path).Tags()["scalars"]} == {
        "accuracy/mean": [(1, 0.075), (2, 0.15)],
        "accuracy/std over clients": [(1, 0.025), (2, 0.05)],
        "accuracy/worst decile": [(1, 0.05), (2, 0.1)],
        "communication/bytes": [(1, 800), (2, 1600)],
        "communication/parameters": [(1, 200), (2, 400)],
        "communication/personalized accuracy by parameters": [(200, 0.075), (400, 0.15)],
        "loss/mean": [(1, 1), (2, 0.5)],
        "received accuracy/mean": [(1, 0.025), (2, 0.05)],
        "seconds/training and evaluation": [(1, 1.5), (2, 3)],
        "traffic up to the model/bytes": [(1, 1200), (2, 2000)],
        "traffic up to the model/parameters": [(1, 300), (2, 500)],
        "validation accuracy/mean": [(1, 0.02), (2, 0.04)],
        "metrics/loss/std": [(1, 0), (2, 0)],
        "metrics/loss/worst_decile": [(1, 1), (2, 0.5)],
        **{
            f"metrics/{name}/{statistic}": [(n, pytest.approx(n * value / share)) for n in (1, 2)]
            for name, share in (("balanced_accuracy", 2), ("macro_f1", 4))
            for statistic, value in (("mean", 0.075), ("std", 0.025), ("worst_decile", 0.05))
        },
    }
    (first, _) = events(tmp_path).Histograms("clients/accuracy")
    assert (first.histogram_value.num, first.histogram_value.min, first.histogram_value.max) == (2, 0.05, 0.1)


def test_jobs_of_a_partition_show_its_heat_map_once(tmp_path):
    """Two at once draw it both; one that comes later does not draw it again, and a file of a killed one is no run's."""
    folder, drawn = tmp_path / "partition" / "seed3-0123abcd", []

    def draw(while_drawing=lambda: None):
        while_drawing()
        drawn.append(1)
        return heat_map()

    show_partition(folder, lambda: draw(lambda: show_partition(folder, draw)))
    show_partition(folder, draw)
    assert len(drawn) == 2
    assert [path.name for path in folder.iterdir()] == ["events.out.tfevents.0.partition"]
    (image,) = events(folder).Images("partition/samples per class and client")
    assert (image.width, image.height) == (200, 100)
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_the_text_tab_has_command_and_config(tmp_path):
    config = CONFIG | {"name": "b\x1b[1m # no heading"}
    kept = record(tmp_path, [1], config=config, command="python run.py --seed 3").sync()
    record(tmp_path, [2], kept, config, "python run.py --resume").close()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()

    def shown(name):
        (event,) = multiplexer.Tensors(".", f"{name}/text_summary")
        (text,) = tensor_util.make_ndarray(event.tensor_proto)
        return text.decode().splitlines()

    assert shown("command") == ["    python run.py --resume"]
    assert shown("config") == [f"    {line}" for line in (tmp_path / "config.yaml").read_text().splitlines()]
    assert shown("config")[:2] == ["    algo: pfedpara", "    seed: 3"]


def test_a_method_that_sends_nothing_has_no_curve_against_parameters(tmp_path):
    record(tmp_path, [1, 2], sent=0).close()
    assert "communication/personalized accuracy by parameters" not in events(tmp_path).Tags()["scalars"]
    assert points(tmp_path, "communication/parameters") == [(1, 0), (2, 0)]


def start_of_session(directory):
    content = events(directory).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}


@pytest.mark.parametrize(
    ("summary", "outcome"),
    [
        ({"label": "pfedpara-8bit", "accuracy": {"mean": 0.5}}, "finished"),
        ({"label": "pfedpara-8bit", "accuracy": None, "diverged": {"client": 0}}, "diverged"),
    ],
)
def test_hyper_parameters_are_in_the_runs_own_event_file(tmp_path, summary, outcome):
    conduct = {"threads": 2, "eval_every": 1, "device": "cpu", "tuning": False, "name": "", "partition_sha256": "0"}
    recorder = record(tmp_path, [1], config=CONFIG | conduct)
    recorder.finish(summary)
    recorder.close()
    assert start_of_session(tmp_path) == {
        **{"algo": "pfedpara", "seed": 3.0, "clients": 2.0, "lr": 0.1, "gamma": 0.5},
        **{"label": "pfedpara-8bit", "outcome": outcome},
    }
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1


def test_tensorboards_page_of_hyper_parameters_lines_methods_up(tmp_path):
    """Each method's own hyper-parameters get a column, and what is to be compared is among the first five metrics."""
    for config in (CONFIG, {"algo": "pfedme", "seed": 3, "hyper": {"lr": 0.05, "lam": 15.0}}):
        recorder = record(tmp_path / config["algo"], [1, 2], config=config)
        recorder.finish({"accuracy": {"mean": 0.15}})
        recorder.close()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    page = backend_context.Context(TBContext(data_provider=provider))
    context = RequestContext()
    runs = page.hparams_metadata(context, "")
    experiment = page.experiment_from_metadata(context, "", True, runs, [])
    assert set(runs) == {"pfedpara", "pfedme"}
    assert {"algo", "seed", "lr", "gamma", "lam", "outcome"} <= {info.name for info in experiment.hparam_infos}
    assert [info.name.tag for info in experiment.metric_infos][:5] == [
        *("accuracy/mean", "accuracy/std over clients", "accuracy/worst decile"),
        *("communication/bytes", "communication/parameters"),
    ]


def test_importing_it_is_light():
    heavy = {"torch", "tensorboard", "matplotlib", "pandas"}
    script = f"import sys, benchmarks.federation.recorder; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True) == "set()\n"
