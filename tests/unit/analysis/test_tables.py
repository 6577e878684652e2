"""The figures of a report's tables, on runs that the recorder itself wrote, worked out by hand."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.analysis.compare import compare
from benchmarks.analysis.load import load
from benchmarks.analysis.plots.accuracy_vs_parameters import ACCURACY_VS_PARAMETERS
from benchmarks.analysis.plots.plot import choose_looks
from benchmarks.analysis.statistics import half_interval
from benchmarks.analysis.tables import LEGEND_OF_COST, wording, wording_of_metrics, wording_of_newcomers
from tests.unit.analysis.recorded import record, run_report

PROSE = ("index.html", "table.md")


def test_half_interval_by_hand():
    # Mean 0.82, sample deviation 0.02, t(0.975; 2) = 4.302653.
    assert half_interval([0.80, 0.82, 0.84]) == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    # Mean 0.5, deviations ±0.1 and ±0.2: sample deviation √(0.1 / 3), t(0.975; 3) = 3.182446.
    assert half_interval([0.3, 0.4, 0.6, 0.7]) == pytest.approx(3.182446 * np.sqrt(0.1 / 3) / 2, rel=1e-6)
    assert np.isnan([half_interval([0.5, 0.6]), half_interval([0.5])]).all()  # too few, as the report says


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
    assert comparison.notes == ["Fewer than 3 seeds, so no interval: fedper."]


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

    cell("fedavg", "dense", "32", 10**6, 0.80, 0.82, 0.84)
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
        ["fedavg", "82.0 ± 5.0 (16 MB)", "70.0 (16 MB)", "55.0 (16 MB)", "–", "60.0 (2 MB)"],
    ]
    assert "    ./run_all.sh --compatibility" in lines[: lines.index("| optimizer | " + " | ".join(rows[0][1:]) + " |")]
    assert "fedavg" in shown


def test_new_clients_by_hand(tmp_path):
    def of(mean):
        return {"mean": mean, "std": 0.0, "worst_decile": mean, "per_client": [mean]}

    for seed, received in ((0, 0.5), (1, 0.6)):
        folder = record(tmp_path, "fedper", seed, [(0.5, 0.5)], new_clients=1)
        summary = json.loads((folder / "summary.json").read_text())
        summary["new_clients"] = {"received": of(received), "adapted": of(0.7)}
        cost = {"transmitted": {"parameters_down": 900 + 200 * seed, "bytes_down": 4096}, "gradients": 80, "flops": 9}
        summary["new_clients"] |= cost
        (folder / "summary.json").write_text(json.dumps(summary))
    record(tmp_path, "fedavg", 0, [(0.5, 0.5)], new_clients=1)  # of which this is not known
    (comparison,) = compare(load([tmp_path]))
    assert wording_of_newcomers(comparison).to_dict("records") == [
        {
            **{"method": "fedper", "new clients, as received %": "55.0", "new clients, adapted %": "70.0"},
            **{"parameters to each": "1,000", "gradients of each": "80"},
        }
    ]
    del summary["new_clients"]["transmitted"]  # of an earlier version
    (folder / "summary.json").write_text(json.dumps(summary))
    (comparison,) = compare(load([tmp_path]))
    assert wording_of_newcomers(comparison).loc[0, "parameters to each"] == "–"


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
