"""Any mixture of runs is told apart by what differs: methods within a table, tables by their titles."""

import shlex
from pathlib import Path

from benchmarks.analysis.compare import compare
from benchmarks.analysis.load import load
from tests.unit.analysis.recorded import record

THREE = [(0.1, 0.1), (0.2, 0.2), (0.4, 0.6)]


def test_values_name_methods_and_conditions_name_tables(tmp_path: Path) -> None:
    half, tenth = {"hyper": {"lr": 0.1, "gamma": 0.5}}, {"hyper": {"lr": 0.1, "gamma": 0.1}}
    later = {"name": "", "shown": [], "eval_every": 1, "fraction": 1.0}  # what an earlier version did not write yet
    record(tmp_path / "earlier", "pfedpara", 0, THREE, **half)
    record(tmp_path / "now", "pfedpara", 1, THREE, **half, **later)
    swept = {"label": "pfedpara,gamma=0.1", "shown": ["gamma"]}
    record(tmp_path / "swept", "pfedpara", 0, THREE, **tenth, **(later | swept))
    longer = {"label": "pfedpara,gamma=0.1,rounds=2", "shown": ["gamma", "rounds"]}
    record(tmp_path / "shorter", "pfedpara", 0, THREE[:2], **tenth, **(later | longer))
    record(tmp_path / "named", "pfedpara", 0, THREE[:2], **half, **(later | {"label": "mine", "name": "mine"}))
    found = {each.apart: dict(each.table["seeds"]) for each in compare(load([tmp_path]))}
    assert found == {
        "rounds=3": {"pfedpara": 2, "pfedpara,gamma=0.1": 1},
        "rounds=2": {"pfedpara,gamma=0.1": 1, "mine": 1},
    }


def test_a_command_has_options_only(tmp_path: Path) -> None:
    record(tmp_path, "fedavg", 0, THREE, name="", shown=["lr"], label="fedavg,lr=0.1")
    record(tmp_path / "mine", "pfedpara", 0, THREE, name="my own", shown=[], label="my own")
    (comparison,) = compare(load([tmp_path]))
    plain, mine = sorted(map(shlex.split, comparison.commands), key=len)
    assert {"--name", "--shown"}.isdisjoint(plain)
    assert mine[mine.index("--name") + 1] == "my own"
