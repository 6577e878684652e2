"""Accuracy within so many megabytes, MB to a target, and the front: by hand."""

import sys
from pathlib import Path

import pytest

from benchmarks.analysis import frontier
from benchmarks.federation.command_line import parser
from benchmarks.federation.options import settings_of
from benchmarks.federation.recorder import Recorder, Totals, summarize_figures
from tests.support import figures_of

CLIENTS = 2


def record(out: Path, label: str, seed: int, megabytes: float, *accuracies: float) -> None:
    """A run of two clients, each of which needs so many MB more with every round."""
    folder = out / label / f"seed{seed}"
    recorder = Recorder(folder, {"algo": label, "seed": seed})
    for number, accuracy in enumerate(accuracies, 1):
        figures = {client: figures_of(accuracy, 1.0, 50, accuracy) for client in range(CLIENTS)}
        bytes_to_model = round(CLIENTS * megabytes * 1e6 * number)
        totals = Totals(0, 0, 0, 0, 0, bytes_to_model)
        recorder.round(number, figures, dict.fromkeys(figures, accuracy), totals, 1.0)
    known = {"algo": label, "label": label, "dataset": "d", "partition": "p", "model": "mlp", "seed": seed}
    known |= {"rounds": len(accuracies), "clients": CLIENTS, "partition_sha256": f"{seed}"}
    known |= {"transmitted": {}, "parameters_per_client_round": {"up": 1, "down": 1}}
    recorder.finish(known | summarize_figures(figures))
    recorder.close()


def table(out: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["frontier", str(out), *words])
    frontier.main()


def test_what_each_budget_buys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        record(tmp_path, "small", seed, 0.4, 0.5, 0.6 + seed / 10, 0.7)
        record(tmp_path, "large", seed, 8, 0.6, 0.8, 0.9)
        record(tmp_path, "worse", seed, 9, 0.6, 0.7, 0.8)
    table(tmp_path, monkeypatch, "--target", "0.65")
    lines = capsys.readouterr().out.splitlines()
    assert "MB to 65.0 %" in lines[2]
    assert lines[4:] == [
        "| `small` | 1.20 | 70.0 | 65.0 | 70.0 | 70.0 | 0.80 | yes |",  # 0.8 MB: two rounds, 0.6 and 0.7
        "| `large` | 24.00 | 90.0 | – | 60.0 | 90.0 | 16.00 | yes |",
        "| `worse` | 27.00 | 80.0 | – | 60.0 | 80.0 | 18.00 |  |",
    ]


def test_one_point_is_no_frontier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, "alone", 0, 1, 0.5)
    with pytest.raises(SystemExit, match="2"):
        table(tmp_path, monkeypatch)
    said = capsys.readouterr().err
    assert (
        said
        == "error: d, p: a frontier needs two methods or sizes that finished and counted bytes, found alone alone\n"
    )


def test_the_suite_has_each_kind_of_size() -> None:
    runs = settings_of(parser().parse_args(["--suite", "frontier"]))
    assert len({s.label for s in runs}) == len(runs) / 3  # seeds
    for kind in (lambda s: s.codec, lambda s: s.quantize, lambda s: s.hyper.get("gamma")):
        assert len({kind(s) for s in runs}) > 2
