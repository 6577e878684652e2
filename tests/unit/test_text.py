"""Names are data: files, classes, clients and records may be called anything, and show literally wherever they do."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from benchmarks.analysis import WIDTHS
from benchmarks.analysis.compare import compare
from benchmarks.analysis.load import load
from benchmarks.analysis.plots import PLOTS
from benchmarks.analysis.plots.plot import STYLE, choose_looks, short
from benchmarks.federation import files
from benchmarks.federation.recorder import Recorder, Totals, summarize_clients
from benchmarks.terminal import printable
from data_partitions import heat_map, open_store, prepare
from data_partitions.show import contact_sheet
from data_partitions.show import printable as printable_name
from tests.support import ROOT, command, figures_of, on_terminal, run

NAME = "$x_^$ $y$ [red]*b* _i_ <img src=x onerror=alert(1)> `c` a|b :smile: & &lt; \x1b[31m\x07 \u202e 漢字\nend"
SHOWN = "$x_^$ $y$ [red]*b* _i_ <img src=x onerror=alert(1)> `c` a|b :smile: & &lt; \\x1b[31m\\x07 \\u202e 漢字\\nend"
"""A formula that matplotlib cannot parse and one that it can, marks of rich, Markdown and HTML, and what a terminal
obeys: colour, bell, right to left, a new line."""

UNREADABLE = os.fsdecode(b"\xff$")  # a name that is not UTF-8


def python(*words: object, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "400"} | env
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, timeout=120
    )


def obeyed(text: str) -> list[str]:
    """Returns the characters that a terminal would obey."""
    return [c for c in text if c != "\n" and not c.isprintable()]


@pytest.mark.parametrize("function", [printable, printable_name])
def test_control_characters_are_written_as_escapes(function):
    assert function(NAME) == SHOWN
    assert function(UNREADABLE) == r"\udcff$"
    assert function(Path("a\x9b0m")) == r"a\x9b0m"


# Partitions


def texts(figure: Figure) -> list[str]:
    """Returns what stands in a figure, formulas apart. Raises ValueError where it cannot be drawn."""
    figure.savefig(os.devnull, format="png")
    return [text.get_text() for text in figure.findobj(Text) if not text.get_parse_math()]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_classes_in_table_and_pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 32, 32, 3), np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "CINIC-10" / ("train", "valid", "test")[i % 3] / (NAME if i < 24 else "plain")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    path = prepare("cinic10", tmp_path, "iid", 2, 0, tmp_path)
    with open_store(path) as store:
        assert f"{SHOWN[:11]}…" in texts(heat_map(store))
        assert SHOWN in texts(contact_sheet(store))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_files_and_clients_in_table_and_pictures(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 255, (24, 5, 5), np.uint8), np.arange(24) % 2
    np.savez(tmp_path / f"{NAME}.npz", x=x, y=y, client=np.repeat([NAME, "other"], 12))
    path = prepare(f"npz:{tmp_path / NAME}.npz", None, "natural", None, 0, tmp_path)
    with open_store(path) as store:
        titles = {text for draw in (heat_map, contact_sheet) for text in texts(draw(store)) if SHOWN in text}
        (title,) = {text.partition("\n")[0] for text in titles}  # then what rows and columns are
        assert title.startswith(f"npz:{SHOWN}.npz, natural")
        assert len(titles) == 2
    done = python("-m", "data_partitions", "show", path)
    shown = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert not obeyed(shown)
    assert title in shown
    assert f" {SHOWN} " in shown.replace(title, "")  # the client


@pytest.mark.parametrize("words", [("show", "\x1b[31m.h5"), ("build", "--dataset", "npz:\x1b[31m.npz")])
def test_a_sentence_about_data_holds_no_escape_sequence(tmp_path, words):
    done = python("-m", "data_partitions", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert rb"\x1b[31m" in done.stderr
    assert not obeyed(done.stderr.decode())


# Records


def record(folder: Path, name: str, **diverged: object) -> None:
    """Records a run of one round, of which every text that somebody may choose is ``name``."""
    config = {"algo": name, "dataset": name, "partition": name, "model": name, "label": name, "seed": len(diverged)}
    recorder = Recorder(folder, config | {"hyper": {"note": name}, "clients": 2, "rounds": 1})
    recorder.round(1, {c: figures_of(0.5, 1, 5, 0.5) for c in (0, 1)}, {}, Totals(4, 4, 16, 16, 8, 32), 1)
    accuracy = None if diverged else summarize_clients({0: 0.4, 1: 0.6})
    sums = {
        "parameters_per_client_round": {"up": 2, "down": 2},
        "transmitted": {"parameters_up": 4, "parameters_down": 4, "bytes_up": 16, "bytes_down": 16},
    }
    summary = config | {"clients": 2, "rounds": 1, "accuracy": accuracy, "partition_sha256": "0"} | sums
    recorder.finish(summary | ({"diverged": diverged} if diverged else {}))
    recorder.close()


@pytest.mark.parametrize(("name", "shown"), [(NAME, SHOWN), (UNREADABLE, r"\udcff$")])
def test_names_in_what_a_run_records(tmp_path, name, shown):
    record(tmp_path, name)
    assert json.loads((tmp_path / "summary.json").read_bytes())["label"] == name
    assert files.read_yaml(tmp_path / "config.yaml")["label"] == name
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    tags = board.SummaryMetadata  # the page of hyper-parameters is a plugin's, under one tag
    assert not any(obeyed(tag) for kind in board.Tags().values() if isinstance(kind, list) for tag in kind)
    content = tags(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert {start.hparams[key].string_value for key in ("algo", "dataset", "label", "note")} == {shown}


class Page(HTMLParser):
    """The words of a page and its elements."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words, self.elements = "", set[str]()
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.words += "\n"
        assert not any(key.startswith("on") for key, _ in attributes)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path / "runs" / "0", NAME)
    record(tmp_path / "runs" / "1", NAME, client=0, round=1, lr=0.1, reason=NAME)
    (tmp_path / "runs" / "\x1b[31m").mkdir()
    (tmp_path / "runs" / "\x1b[31m" / "rounds.csv").touch()  # has not ended
    return tmp_path / "runs"


def test_names_in_every_part_of_a_report(recorded):
    done = python("benchmarks/report.py", recorded, "--command", NAME)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert not obeyed(shown)
    title = f"{SHOWN}, {SHOWN}"
    assert f"{title} ({SHOWN}" in " ".join(shown.split())
    assert f"* {SHOWN}, seed 4, diverged (round 1, client 0, learning rate 0.1): {SHOWN}." in " ".join(shown.split())
    assert r"Not finished, left out: " + str(recorded) + r"/\x1b[31m" in shown

    out = recorded / "report"
    page = Page((out / "index.html").read_text())
    markdown = Page(MarkdownIt("commonmark").enable("table").render((out / "table.md").read_text()))
    plain = {"h2", "p", "pre", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert markdown.elements == plain
    assert not page.elements & {"em", "i"}
    for words in (page.words, markdown.words):
        assert not obeyed(words)
        assert title in words
        assert f"{SHOWN}, seed 4, diverged (round 1, client 0, learning rate 0.1): {SHOWN}." in words
        assert SHOWN in re.split(r"\n+", words)  # the method's own cell
    assert not obeyed((out / "table.md").read_text())


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_in_the_plots_of_a_report(recorded):
    (comparison,) = compare(load([recorded]))
    looks = choose_looks([comparison])
    with matplotlib.rc_context(STYLE):
        for plot in PLOTS:
            found = texts(plot.draw(comparison, looks, WIDTHS[1]).figure)
            assert any(re.fullmatch(re.escape(short(NAME)) + r"(  50\.0)?", text) for text in found), found


def test_a_refused_record_holds_no_escape_sequence(tmp_path):
    (tmp_path / "\x1b[31m").mkdir()
    (tmp_path / "\x1b[31m" / "summary.json").write_text("{")
    done = python("benchmarks/report.py", tmp_path)
    assert done.returncode == 2
    assert rb"\x1b[31m/summary.json" in done.stderr
    assert not obeyed(done.stderr.decode())


# Weights


def test_names_of_weights(tmp_path):
    path = tmp_path / f"{NAME}.safetensors"
    save_file({NAME: torch.eye(3)}, path)
    picture = path.with_suffix(".png")
    done = python("-m", "pfedpara.inspect", path, "--plot", picture)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert not obeyed(shown)
    assert shown.splitlines()[1].startswith(SHOWN)
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("name", ["\x1b[31m.pt", "\x1b[31m.safetensors"])
def test_a_file_without_weights_is_refused_in_one_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1b[31m")
    done = python("-m", "pfedpara.inspect", tmp_path / name)
    assert done.returncode == 2
    assert f"/{printable(name)} does not hold a state dict\n" in done.stderr.decode()
    assert not obeyed(done.stderr.decode())


# Jobs


def test_a_refused_job_says_it_without_an_escape_sequence(tmp_path):
    done = run("--dataset", f"npz:{tmp_path}/{NAME}.npz", "--out", str(tmp_path))
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert SHOWN in sentence


@pytest.mark.slow
def test_a_job_on_a_terminal_shows_names_as_they_are(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (60, 5, 5), np.uint8)
    np.savez(tmp_path / f"{NAME}.npz", x=x, y=np.arange(60) % 3)
    words = ("--algo", "fedavg", "--clients", "2", "--rounds", "1", "--dataset", f"npz:{tmp_path}/{NAME}.npz")
    for _ in range(2):  # the second says that all is finished
        lines = command(*words, "--out", f"{tmp_path}/{NAME}", "--resume")
        shown = b"".join(on_terminal(lines, 400)).decode()
        assert SHOWN in shown
        assert "\x1b[31m" not in shown
        assert "\x07" not in shown


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "words",
    [
        ("benchmarks/run.py", "--help"),
        ("benchmarks/run.py", "--algo", "help"),
        ("benchmarks/report.py", "--help"),
        ("-m", "data_partitions", "build", "--help"),
        ("-m", "pfedpara.inspect", "--help"),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in [
                ("benchmarks/tune.py", "--help"),
                ("-m", "benchmarks.perf.stability", "--help"),
                ("-m", "benchmarks.perf.runtime", "--help"),
                ("-m", "benchmarks.perf.clients", "--help"),
                ("-m", "benchmarks.perf.layers", "--help"),
            ]
        ),
    ],
    ids=" ".join,
)
def test_output_that_is_not_utf_8(words, encoding):
    done = python(*words, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.decode(encoding).splitlines()) > 5


def test_tables_in_ascii(recorded, tmp_path):
    done = python("benchmarks/report.py", recorded, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\u6f22\u5b57" in done.stdout.decode("ascii")
    save_file({"漢字": torch.eye(3)}, tmp_path / "w.safetensors")
    done = python("-m", "pfedpara.inspect", tmp_path / "w.safetensors", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\u6f22\u5b57" in done.stdout.decode("ascii")
