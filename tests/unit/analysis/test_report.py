"""The comparison of recorded runs, on runs that the recorder itself wrote and figures worked out by hand."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import report
from benchmarks.analysis.compare import arrange, compare
from benchmarks.analysis.load import load
from benchmarks.analysis.plots.accuracy_vs_parameters import ACCURACY_VS_PARAMETERS
from benchmarks.analysis.plots.plot import choose_looks
from benchmarks.analysis.statistics import half_interval
from benchmarks.analysis.tables import LEGEND_OF_COST, wording, wording_of_metrics, wording_of_newcomers
from benchmarks.federation.recorder import Recorder, Totals, summarize_figures
from benchmarks.perf import cost
from tests.support import ROOT, figures_of

PROSE = ("index.html", "table.md")


def record(
    out,
    algo,
    seed,
    rounds,
    sent=100,
    received=None,
    sha=None,
    diverged=None,
    judged_on="received",
    data=None,
    **changes,
):
    """Records a run of two clients.

    ``rounds`` holds each round's accuracies; ``sent`` and ``received`` are parameters per client and round. Judged on
    what they received, both clients need one more downlink; on what they trained, no uplink of the last round.
    """
    config = {"algo": algo, "dataset": "mnist5k", "partition": "dirichlet:0.5", "clients": 2, "rounds": len(rounds)}
    config |= {"model": "mlp", "seed": seed, "hyper": {"lr": 0.1}} | changes
    received = sent if received is None else received
    settings = {key: value for key, value in config.items() if key != "label"}
    folder = Path(out) / config["partition"] / algo / f"seed{seed}"
    recorder = Recorder(folder, settings)
    figures, totals = {}, Totals(0, 0, 0, 0, 0, 0)
    to_model = 2 * received if judged_on == "received" else -2 * sent
    for number, accuracies in enumerate(rounds, 1):
        figures = {client: figures_of(a, 1 - a, 50, a) for client, a in enumerate(accuracies)}
        transmitted = [2 * number * n for n in (sent, received, 4 * sent, 4 * received)]
        last = sum(transmitted[:2]) + to_model
        totals = Totals(*transmitted, last, 4 * last)
        recorder.round(number, figures, {}, totals, float(number))
    summary = {key: value for key, value in config.items() if key != "hyper"}
    if diverged:
        summary |= {"accuracy": None, "diverged": diverged}
    else:
        summary |= summarize_figures(figures)
    summary |= {
        "parameters_per_client_round": {"up": sent, "down": received},
        "transmitted": {name: count for name, count in vars(totals).items() if name.endswith(("_up", "_down"))},
        "traffic_to_model": {"parameters": totals.parameters_to_model, "bytes": totals.bytes_to_model},
        "partition_sha256": sha or f"partition {seed}",
    }
    if data:
        summary["samples_sha256"] = data
    recorder.finish(summary)
    recorder.close()
    return recorder.directory


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch):
    """A screen of 120 columns: what runs tests in several processes says that it has 80."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def recorded_cost(tmp_path_factory, monkeypatch):
    """Where these tests take the constants of a round's cost from: nothing is there at first."""
    monkeypatch.setattr(cost, "RECORDED", tmp_path_factory.mktemp("cost") / "cost.yaml")
    return cost.RECORDED


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three methods × seeds 0 1 2, two clients, three rounds; the last round decides."""
    out = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        record(out, "fedavg", seed, [(0.1, 0.3), (0.5, 0.7), (0.70 + 0.02 * seed, 0.90 + 0.02 * seed)])
        record(out, "local", seed, [(0.5, 0.5), (0.6, 0.6), (0.74, 0.74)], sent=0, judged_on="trained")
        ours = {"sent": 25, "judged_on": "trained", "hyper": {"lr": 0.1, "gamma": 0.5}}
        record(out, "pfedpara", seed, [(0.4, 0.6), (0.8, 0.9), (0.85, 0.95)], **ours)
    return out


def run_report(monkeypatch, capsys, *arguments):
    """Returns exit status, standard output and standard error of the command line."""
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    try:
        report.main()
        status = 0
    except SystemExit as end:
        status = end.code
    return (status, *capsys.readouterr())


def test_half_interval_by_hand():
    # Mean 0.82, sample deviation 0.02, t(0.975; 2) = 4.302653.
    assert half_interval([0.80, 0.82, 0.84]) == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    # Sample deviation 0.1 / √2, t(0.975; 1) = 12.706205.
    assert half_interval([0.5, 0.6]) == pytest.approx(12.706205 * 0.05, rel=1e-6)
    assert np.isnan(half_interval([0.5]))


def test_table_by_hand(runs):
    (comparison,) = compare(load([runs]))
    table = comparison.table
    assert list(table.index) == ["pfedpara", "fedavg", "local"]  # best first
    assert comparison.target == pytest.approx(0.95 * 0.90)
    expected = {
        "seeds": [3, 3, 3],
        "diverged": [0, 0, 0],
        "accuracy": [0.90, 0.82, 0.74],
        "half_interval": [0, 4.302653 * 0.02 / np.sqrt(3), 0],
        "difference": [np.nan, -0.08, -0.16],
        "half_interval_of_difference": [np.nan, 4.302653 * 0.02 / np.sqrt(3), 0],  # pfedpara is 0.90 for each seed
        "worst_decile": [0.85, 0.72, 0.74],
        "below_local": [0, 2 / 6, np.nan],  # FedAvg's client 0: 0.70 and 0.72 are below 0.74, 0.74 is not
        "up": [25, 100, 0],
        "down": [25, 100, 0],
        "bytes_up": [100, 400, 0],
        "bytes_down": [100, 400, 0],
        "transmitted": [2 * 2 * 3 * 25, 2 * 2 * 3 * 100, 0],
        "bytes": [4 * 300, 4 * 1200, 0],
        "to_model": [300 - 2 * 25, 1200 + 2 * 100, 0],
        "bytes_to_model": [4 * 250, 4 * 1400, 0],
        "to_target": [250, np.nan, np.nan],  # 0.855: pfedpara has 0.85 in round 2, 0.90 in round 3
    }
    for column, values in expected.items():
        assert table[column].tolist() == pytest.approx(values, nan_ok=True, abs=1e-9, rel=1e-6), column


def test_every_metric_is_a_column_of_the_table_and_of_the_page(runs, tmp_path, monkeypatch, capsys):
    """`figures_of`: loss is 1 − accuracy, balanced accuracy and macro F1 a half and a quarter of it."""
    (comparison,) = compare(load([runs]))
    for name, expected in (
        ("loss", [0.10, 0.18, 0.26]),
        ("balanced_accuracy", [0.45, 0.41, 0.37]),
        ("half_interval_of_macro_f1", [0, 4.302653 * 0.005 / np.sqrt(3), 0]),
    ):
        assert comparison.table[name].tolist() == pytest.approx(expected, abs=1e-7)
    words = wording_of_metrics(comparison)
    assert words["macro F1 %"].tolist() == ["22.5 ± 0.0", "20.5 ± 1.2", "18.5 ± 0.0"]
    assert words["loss, nats"].tolist() == ["0.100 ± 0.000", "0.180 ± 0.050", "0.260 ± 0.000"]
    run_report(monkeypatch, capsys, runs, "--out", tmp_path)
    assert {"loss", "balanced_accuracy", "macro_f1"} <= set(pd.read_csv(tmp_path / "table.csv"))
    for file in ("index.html", "table.md"):
        content = (tmp_path / file).read_text()
        assert "balanced accuracy %" in content
        assert "20.5 ± 1.2" in content


def test_a_run_without_the_later_metrics_has_dashes(tmp_path):
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)])
    old = record(tmp_path, "fedper", 0, [(0.4, 0.7)])
    summary = json.loads((old / "summary.json").read_text())
    del summary["balanced_accuracy"]
    summary["macro_f1"] |= {"mean": None, "per_client": [None, 0.1]}
    (old / "summary.json").write_text(json.dumps(summary))
    (comparison,) = compare(load([tmp_path]))
    words = wording_of_metrics(comparison).set_index("method")
    assert words.loc["fedper"].to_dict() == {"loss, nats": "0.450", "balanced accuracy %": "–", "macro F1 %": "–"}
    assert words.loc["fedavg", "macro F1 %"] == "12.5"


def test_parameters_to_a_given_target(runs):
    (comparison,) = compare(load([runs]), target=0.6)
    # Means over clients after rounds 1 and 2: fedavg 0.2, 0.6; local 0.5, 0.6; pfedpara 0.5, 0.85. So all need two.
    # FedAvg's model takes one downlink more to each client, pFedPara's one uplink less.
    assert comparison.table["to_target"].to_dict() == {"pfedpara": 200 - 50, "fedavg": 800 + 200, "local": 0}
    assert comparison.notes[-1] == "Training alone reaches the target, 60.0 %: choose it above."


def test_the_default_target_is_above_what_local_training_ever_reached(tmp_path):
    # 95 % of 0.9 is 0.855, which local training reaches in round 1: the target is between its 0.88 and 0.9.
    record(tmp_path, "local", 0, [(0.88, 0.88), (0.8, 0.8)], sent=0, judged_on="trained")
    record(tmp_path, "fedavg", 0, [(0.88, 0.88), (0.9, 0.9)])
    (comparison,) = compare(load([tmp_path]))
    assert comparison.target == pytest.approx(0.89)
    assert comparison.table["to_target"].to_dict() == pytest.approx({"fedavg": 1000, "local": np.nan}, nan_ok=True)
    assert not any("choose it above" in note for note in comparison.notes)


def test_without_a_method_better_than_local_there_is_no_target(tmp_path, monkeypatch, capsys):
    record(tmp_path, "local", 0, [(0.9, 0.9)], sent=0, judged_on="trained")
    record(tmp_path, "fedavg", 0, [(0.88, 0.88)])
    (comparison,) = compare(load([tmp_path]))
    assert np.isnan(comparison.target)
    assert comparison.table["to_target"].isna().all()
    status, shown, error = run_report(monkeypatch, capsys, tmp_path)
    assert (status, error) == (0, "")
    assert re.search(r"^fedavg .* –$", shown, re.MULTILINE)


def test_runs_that_did_not_count_the_traffic_up_to_the_model_are_still_read(tmp_path, monkeypatch, capsys):
    record(tmp_path, "fedavg", 0, [(0.4, 0.6), (0.5, 0.7)])
    old = record(tmp_path, "fedper", 0, [(0.4, 0.6), (0.5, 0.7)])
    summary = json.loads((old / "summary.json").read_text())
    del summary["traffic_to_model"]
    (old / "summary.json").write_text(json.dumps(summary))
    pd.read_csv(old / "rounds.csv").loc[:, :"late"].to_csv(old / "rounds.csv", index=False)
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["transmitted"].to_dict() == {"fedavg": 800, "fedper": 800}
    for column, counted in (("to_model", 1000), ("to_target", 1000)):
        assert comparison.table[column].to_dict() == pytest.approx({"fedavg": counted, "fedper": np.nan}, nan_ok=True)
    status, shown, error = run_report(monkeypatch, capsys, tmp_path)
    assert (status, error) == (0, "")
    assert "Run again to count what is sent up to the model, older runs did not: fedper." in shown
    drawn = ACCURACY_VS_PARAMETERS.draw(comparison, choose_looks([comparison]), 6.75)
    assert drawn.figure.axes[0].get_xlabel() == "parameters sent so far"
    assert "parameters sent so far" in drawn.caption


def test_below_local_pairs_runs_of_the_same_seed_and_partition_only(tmp_path):
    record(tmp_path, "fedavg", 0, [(0.4, 0.9)])
    record(tmp_path, "fedavg", 1, [(0.4, 0.4)], sha="another partition")
    record(tmp_path, "local", 0, [(0.5, 0.5)])
    record(tmp_path, "local", 1, [(0.5, 0.5)])
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table.loc["fedavg", "below_local"] == 0.5
    assert any("With seed 1 the methods used different partitions" in note for note in comparison.notes)


def test_a_method_alone_has_dashes_where_there_is_nothing_to_compare_with(tmp_path):
    record(tmp_path, "fedper", 0, [(0.4, 0.6)], sent=10, received=30)
    (comparison,) = compare(load([tmp_path]))
    (row,) = wording(comparison).to_dict("records")
    assert row == {
        "method": "fedper",
        "seeds": "1",
        "accuracy %": "50.0",
        "difference to pfedpara": "–",
        "worst decile %": "40.0",
        "clients below local %": "–",
        "parameters per client and round": "10 up, 30 down",
        "total sent": "80",
        "sent up to the model": "140",
        "MB sent": "0",
        "sent to reach 47.5 %": "140",
    }
    assert comparison.notes == ["One seed, so no interval: fedper."]


def test_diverged_runs_are_listed(tmp_path, monkeypatch, capsys):
    why = {"client": 1, "round": 2, "lr": 0.1, "reason": "the training loss is nan"}
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)])
    record(tmp_path, "fedavg", 1, [(0.4, 0.6)])
    record(tmp_path, "pfedme", 0, [(0.2, 0.2)])
    record(tmp_path, "pfedme", 1, [(0.1, 0.1)], diverged=why)
    record(tmp_path, "apfl", 0, [], diverged=why)
    status, shown, _ = run_report(monkeypatch, capsys, tmp_path)
    assert status == 0
    assert re.search(r"^pfedme +1/2 +20\.0 ", shown, re.MULTILINE)
    assert re.search(r"^apfl +0/1 +diverged ", shown, re.MULTILINE)
    assert "pfedme, seed 1, diverged (round 2, client 1, learning rate 0.1): the training loss is nan." in shown
    assert "apfl, seed 0, diverged" in shown
    assert "Different seeds: 0 1 (fedavg); 0 (pfedme)." in shown
    assert "pfedme, seed 1, diverged" in (tmp_path / "report" / "index.html").read_text()


def test_a_folder_where_every_run_diverged_still_makes_a_report(tmp_path, monkeypatch, capsys):
    record(tmp_path, "fedavg", 0, [], diverged={"client": 0, "round": 1, "lr": 1.0, "reason": "nan"})
    status, shown, _ = run_report(monkeypatch, capsys, tmp_path)
    assert status == 0
    assert "diverged" in shown
    assert not list((tmp_path / "report").glob("*.png"))


def test_what_makes_rows_unlike_is_noted(tmp_path):
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)], sha="one")
    record(tmp_path, "fedavg", 1, [(0.4, 0.6)], sha="one")
    record(tmp_path, "local", 0, [(0.4, 0.6)], sha="one")
    (comparison,) = compare(load([tmp_path]))
    assert comparison.notes == ["One seed, so no interval: local.", "Different seeds: 0 1 (fedavg); 0 (local)."]


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


def test_an_unfinished_run_is_named(tmp_path, monkeypatch, capsys):
    record(tmp_path, "fedavg", 0, [(0.4, 0.6)])
    folder = record(tmp_path, "local", 0, [(0.4, 0.6)])
    (folder / "summary.json").unlink()
    _, shown, _ = run_report(monkeypatch, capsys, tmp_path)
    assert f"Not finished, left out: {folder}" in shown


def test_files_of_a_report(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "there"
    status, shown, error = run_report(monkeypatch, capsys, runs, "--out", out, "--target", 0.8)
    assert (status, error) == (0, "")
    names = {path.name for path in out.iterdir()}
    begin = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    kinds = ("vs_parameters", "per_client")
    pictures = {f"accuracy_{kind}-mnist5k-dirichlet-0.5.{suffix}" for kind in kinds for suffix in begin}
    assert names == {"index.html", "table.md", "table.csv", "table.tex"} | pictures
    assert str(out / "index.html") in shown
    assert all(name in shown for name in names)
    assert all((out / name).read_bytes().startswith(begin[name[-3:]]) for name in pictures)
    table = pd.read_csv(out / "table.csv", index_col="method")
    assert table["to_target"].to_dict() == pytest.approx(
        {"pfedpara": 150, "fedavg": 1400, "local": np.nan}, nan_ok=True
    )
    assert set(table["target"]) == {0.8}
    markdown = (out / "table.md").read_text().splitlines()
    cells = [line.strip("|").split("|") for line in markdown if line.startswith("|")]
    assert {len(row) for row in cells} == {11, 4}  # the comparison, and the further metrics
    assert cells[3][:3] == [" fedavg ", " 3 ", " 82.0 ± 5.0 "]


def test_piped_text_is_aligned_and_narrow_and_needs_no_torch(runs):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "benchmarks/report.py", runs], cwd=ROOT, text=True, capture_output=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pandas" in imported
    assert not {"torch", "fedml", "tensorboard"} & imported
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if str(runs) not in line) <= 120
    table = [line for line in lines if line.startswith(("method", "pfedpara", "fedavg", "local"))][:4]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    assert len(table[0]) <= 100


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.loaded, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.links += found
        self.loaded += found * (tag != "a")

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_self_contained_and_escapes_names(tmp_path, monkeypatch, capsys):
    name = "npz:/data/<script>alert(1)</script> & [bold]x"
    folder = record(tmp_path, "fedavg", 0, [(0.4, 0.6)], dataset=name)
    status, shown, _ = run_report(monkeypatch, capsys, tmp_path)
    assert status == 0
    assert name in shown
    source = (tmp_path / "report" / "index.html").read_text()
    page = Page()
    page.feed(source)
    assert page.tags.count("script") == 5  # the comparison's numbers, the plots, two of Bokeh's, page.js
    assert any(name in text for text in page.text)
    outside = {unquote(link) for link in page.links if not link.startswith("data:")}
    assert outside == {"../dirichlet:0.5/fedavg/seed0/config.yaml"}  # a link to follow, nothing that the page loads
    assert (tmp_path / "report" / outside.pop()).samefile(folder / "config.yaml")
    assert page.loaded
    assert all(address.startswith("data:") for address in page.loaded)
    assert page.tags.count("img") == 2
    assert len(source) < 4e6
    assert "<script>alert" not in source


def test_differences_are_paired_by_seed_and_partition(tmp_path):
    for seed, (ours, theirs) in enumerate([(0.9, 0.8), (0.7, 0.64), (0.5, 0.42)]):
        record(tmp_path, "pfedpara", seed, [(ours, ours)])
        record(tmp_path, "fedavg", seed, [(theirs, theirs)])
    record(tmp_path, "fedavg", 3, [(0.1, 0.1)])  # no partner
    record(tmp_path, "fedper", 0, [(1.0, 1.0)], sha="another partition")
    table = compare(load([tmp_path]))[0].table
    # -0.10, -0.06, -0.08: mean -0.08, sample deviation 0.02, however far the seeds are apart.
    assert table.loc["fedavg", "difference"] == pytest.approx(-0.08)
    assert table.loc["fedavg", "half_interval_of_difference"] == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    assert np.isnan(table.loc["fedper", "difference"])


def test_grid_sets_optimizers_against_weights_and_bits(tmp_path, monkeypatch, capsys):
    def cell(optimizer, weights, bits, sent, *accuracies, down="32"):
        for seed, accuracy in enumerate(accuracies):
            suffix = "" if weights == "dense" else f"-{weights}"
            suffix += "" if bits == "32" else f"-{bits}bit"
            suffix += "" if down == "32" else f"-down{down}bit"
            setting = {"parameterization": weights, "quantize": bits, "quantize_down": down}
            setting["label"] = optimizer + suffix
            record(tmp_path / f"{weights}{bits}{down}", optimizer, seed, [(accuracy, accuracy)], sent=sent, **setting)

    cell("fedavg", "dense", "32", 10**6, 0.8, 0.84)
    cell("fedavg", "dense", "8", 10**6, 0.7)
    cell("fedavg", "dense", "8", 10**6, 0.55, down="4")
    cell("fedavg", "fedpara", "32", 10**5, 0.6)
    cell("fedadam", "lowrank", "32", 10**5, 0.5)
    page = tmp_path / "page.md"
    status, shown, error = run_report(
        monkeypatch, capsys, tmp_path, "--grid", "--command", "./run_all.sh --compatibility", "--page", page
    )
    assert (status, error) == (0, "")
    lines = page.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == [
        *("optimizer", "dense, 32 bits", "dense, 8 bits", "dense, 8 bits up, 4 bits down"),
        *("lowrank, 32 bits", "fedpara, 32 bits"),
    ]
    assert rows[2:4] == [
        ["fedadam", "–", "–", "–", "50.0 (2 MB)", "–"],  # one round, two clients, up and down, four bytes
        ["fedavg", "82.0 ± 25.4 (16 MB)", "70.0 (16 MB)", "55.0 (16 MB)", "–", "60.0 (2 MB)"],
    ]
    assert "    ./run_all.sh --compatibility" in lines[: lines.index("| optimizer | " + " | ".join(rows[0][1:]) + " |")]
    assert "fedavg" in shown


def test_fedavg_on_factors_is_one_method_under_its_former_name_too(tmp_path):
    record(tmp_path / "former", "fedavg", 0, [(0.5, 0.5)], parameterization="fedpara", label="fedavg-fedpara-8bit")
    record(tmp_path, "fedpara", 1, [(0.7, 0.7)], parameterization="fedpara", label="fedpara-8bit")
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["seeds"].to_dict() == {"fedpara-8bit": 2}
    assert list(arrange(comparison)) == [("fedavg", "fedpara", "32", "32")]


def test_new_clients_by_hand(tmp_path):
    def of(mean):
        return {"mean": mean, "std": 0.0, "worst_decile": mean, "per_client": [mean]}

    for seed, received in ((0, 0.5), (1, 0.6)):
        folder = record(tmp_path, "fedper", seed, [(0.5, 0.5)], new_clients=1)
        summary = json.loads((folder / "summary.json").read_text())
        summary["new_clients"] = {"received": of(received), "adapted": of(0.7)}
        (folder / "summary.json").write_text(json.dumps(summary))
    record(tmp_path, "fedavg", 0, [(0.5, 0.5)], new_clients=1)  # of which this is not known
    (comparison,) = compare(load([tmp_path]))
    assert wording_of_newcomers(comparison).to_dict("records") == [
        {"method": "fedper", "new clients, as received %": "55.0", "new clients, adapted %": "70.0"}
    ]


def test_a_run_that_names_no_local_optimizer_had_sgd(tmp_path):
    common = {"weight_decay": 0.0, "keep_optimizer": False, "augment": False, "lr": 0.1}
    record(tmp_path / "former", "fedavg", 0, [(0.5, 0.5)])
    record(tmp_path, "fedavg", 1, [(0.7, 0.7)], hyper={"optimizer": "sgd"} | common)
    record(tmp_path, "fedavg-adam", 1, [(0.8, 0.8)], hyper={"optimizer": "adam"} | common, parameterization="dense")
    (comparison,) = compare(load([tmp_path]))
    assert comparison.table["seeds"].to_dict() == {"fedavg-adam": 1, "fedavg": 2}


def test_seconds_of_a_round_elsewhere_by_hand(recorded_cost, tmp_path, monkeypatch, capsys):
    # FedAvg: 1,250,000 parameters of four bytes are 5 MB, or 40 Mb, each way.
    record(tmp_path, "fedavg", 0, [(0.7, 0.7)] * 3, sent=1_250_000)
    record(tmp_path, "fedper", 0, [(0.9, 0.9)] * 3, sent=250_000, received=1_250_000)
    record(tmp_path, "local", 0, [(0.6, 0.6)] * 3, sent=0)
    record(tmp_path, "ditto", 0, [(0.5, 0.5)] * 3)  # not measured
    factored = {"parameterization": "fedpara", "label": "fedavg-fedpara"}
    record(tmp_path / "factored", "fedavg", 0, [(0.5, 0.5)] * 3, **factored)  # measured on dense weights only
    record(tmp_path, "fedrep", 0, [(0.5, 0.5)] * 3, model="cnn")  # measured on the mlp only
    status, before, _ = run_report(monkeypatch, capsys, tmp_path)
    assert status == 0
    assert "a round, 100 ranks" not in before + "".join((tmp_path / "report" / name).read_text() for name in PROSE)
    train = {"fedavg": 0.5, "fedper": 0.25, "local": 1.0, "fedrep": 1.0}
    measured = {name: {"train": seconds, "sent": 1} for name, seconds in train.items()}
    constants = {"serialise": 1e-9, "wait": 0.1}
    recorded_cost.write_text(yaml.safe_dump({"constants": constants, "methods": measured}))
    page = tmp_path / "page.md"
    status, shown, error = run_report(monkeypatch, capsys, tmp_path, "--page", page)
    assert (status, error) == (0, "")
    lines = page.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    # fedavg, 100 ranks: 0.5 + 100 × 10 MB × 1 ns + 100 × 80 Mb / 10 Gb/s + 0.1 = 0.5 + 1 + 0.8 + 0.1;
    # 10,000 phones: 0.5 + 100 + 80 + 0.1, and 80 Mb / 10 Mb/s on a phone's own link.
    # fedper, 1 MB up and 5 MB down: 0.25 + 0.6 + 0.48 + 0.1; 0.25 + 60 + 48 + 0.1 + 4.8.
    assert [row for row in rows if len(row) == 5][2:] == [
        ["fedper", "1,000,000", "5,000,000", "1.430", "113.15"],
        ["fedavg", "5,000,000", "5,000,000", "2.400", "188.60"],
        ["local", "0", "0", "1.100", "1.10"],
    ]
    assert re.search(r"^fedper +1,000,000 +5,000,000 +1\.430 ", shown, re.MULTILINE)
    html = (tmp_path / "report" / "index.html").read_text()
    assert '<td data-value="1.43">1.430</td>' in html
    assert LEGEND_OF_COST in lines
    for line in before.splitlines():  # the rest stays as it was
        assert line in shown.splitlines()


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


def torn_summary(folder):
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text[: len(text) // 2])
    return "summary.json cannot be read"


def summary_without_accuracy(folder):
    summary = json.loads((folder / "summary.json").read_text())
    del summary["accuracy"]
    (folder / "summary.json").write_text(json.dumps(summary))
    return "summary.json lacks accuracy"


def no_rounds(folder):
    (folder / "rounds.csv").unlink()
    return "rounds.csv cannot be read"


def rounds_of_something_else(folder):
    with (folder / "rounds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], [1, 2]])
    return "rounds.csv cannot be read"


def twice_with_other_figures(folder):
    record(folder.parents[2] / "again", "fedavg", 0, [(0.4, 0.7)])
    return "hold the same method, partition and seed with different results"


def spoil_rounds(folder, *lines):
    with (folder / "rounds.csv").open("a") as file:
        file.writelines(line + "\n" for line in lines)
    return f"{folder / 'rounds.csv'}, line 3, is no row of a round"


def malformed_row(folder):
    return spoil_rounds(folder, "x2,0.5,0,0.5,0.5,1,1,1,1,1,,0.5,0,0")


def short_row(folder):
    return spoil_rounds(folder, "2,0.5,0")


def blank_row(folder):
    return spoil_rounds(folder, "", "2,0.5,0,0.5,0.5,1,1,1,1,1,,0.5,0,0")


def round_twice(folder):
    return spoil_rounds(folder, "1,0.5,0,0.5,0.5,1,1,1,1,1,,0.5,0,0")


def nothing_ended(folder):
    (folder / "summary.json").unlink()
    return "has ended"


def no_folder(folder):
    shutil.rmtree(folder.parents[2])
    return "there is no folder"


@pytest.mark.parametrize(
    "spoil",
    [
        *(no_folder, torn_summary, summary_without_accuracy, no_rounds, rounds_of_something_else, nothing_ended),
        *(twice_with_other_figures, malformed_row, short_row, blank_row, round_twice),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence(tmp_path, monkeypatch, capsys, spoil):
    reason = spoil(record(tmp_path, "fedavg", 0, [(0.4, 0.6)]))
    status, shown, error = run_report(monkeypatch, capsys, tmp_path)
    assert (status, shown) == (2, "")
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert reason in error
    assert not (tmp_path / "report").exists()


def test_an_out_that_is_a_file(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    status, _, error = run_report(monkeypatch, capsys, runs, "--out", tmp_path / "file")
    assert (status, error.count("\n")) == (2, 1)
    assert "file" in error


@pytest.mark.parametrize("target", ["0", "1.5", "nan", "high"])
def test_a_target_is_an_accuracy(runs, monkeypatch, capsys, target):
    status, _, error = run_report(monkeypatch, capsys, runs, "--target", target)
    assert status == 2
    assert "--target" in error
