"""The report's tables on a screen of any width: no digit is cut, and what there is no room for is named."""

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.analysis.page import fit, screen_table
from tests.unit.analysis.recorded import record, run_report

WORDS = st.text("0123456789.± M", min_size=1, max_size=14)


@given(st.lists(st.lists(WORDS, min_size=4, max_size=4), min_size=1, max_size=5), st.integers(40, 120))
def test_every_cell_of_a_column_that_is_shown_is_whole(cells: list[list[str]], width: int) -> None:
    words = pd.DataFrame(cells, columns=["method", "one more", "seconds a round", "sent"])
    console = Console(width=width)
    with console.capture() as captured:
        table, left = fit(console, words)
        console.print(table)
    assert "…" not in captured.get()
    assert list(words.columns)[4 - len(left) :] == left
    room = Console(width=10_000)
    assert not left or len(left) == 2 or room.measure(screen_table(words.iloc[:, : 5 - len(left)])).maximum > width


def test_columns_that_are_left_out_are_named_and_the_legend_comes_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        for method in ("pfedpara", "local", "fedavg"):
            record(tmp_path, method, seed, [[0.5, 0.75 + seed / 10]])
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run_report(monkeypatch, capsys, str(tmp_path))
    assert max(map(len, out.partition("The report is")[0].splitlines())) <= 80
    assert re.search(r"^Not shown in 80 columns, but in the report: .*sent to reach", out, re.MULTILINE)
    assert "…" not in out
    assert "Worst decile: mean" not in out
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run_report(monkeypatch, capsys, str(tmp_path), "--legend")
    assert "Not shown" not in out
    assert "Worst decile: mean" in out
