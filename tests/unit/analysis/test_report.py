"""The command line of the report: its files, its screen, and what it says of runs that cannot be compared."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from tests.support import ROOT
from tests.unit.analysis.recorded import record, run_report


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
