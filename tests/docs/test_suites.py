"""The suite of docs/suites.md, run, reported and repeated as the page says."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, copy_project, rows

PAGE = (ROOT / "docs" / "suites.md").read_text()


def type_in(command: str, folder: Path) -> str:
    """Returns what a command that goes well prints."""
    wide = os.environ | {"COLUMNS": "120"}  # a narrow screen leaves columns out
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=250, env=wide)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_the_suite_is_run_by_one_process_group_reported_and_repeated(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (project / "comparison.yaml").write_text(example)
    run, report = re.search(r"```bash\n(mpirun.*)\n(python.*)\n```", PAGE).groups()  # type: ignore[union-attr]
    labels = ["local", "fedavg", *(f"pfedpara,gamma={gamma}" for gamma in (0.1, 0.5, 0.9)), "dense head"]

    said = type_in(run, project)
    named = re.findall(r"^\[(\d+)/12\] (.*) mnist5k dirichlet:0.5 seed ([01])$", said, re.MULTILINE)
    assert [int(number) for number, *_ in named] == list(range(1, 13))
    assert {(label, seed) for _, label, seed in named} == {(label, seed) for label in labels for seed in "01"}

    shown = type_in(f"{report} --run", project)  # as run_all.sh reports
    assert "\n    my_comparison.sh\n" in (project / "comparison.md").read_text()
    assert "sent to" in shown
    table = (project / "runs" / "comparison" / "report" / "table.md").read_text()
    assert "sent to reach 60.0 %" in table
    for label in labels:
        assert re.search(rf"^\| {re.escape(label)} \| 2 \|", table, re.MULTILINE), table

    folder = project / "runs" / "comparison" / "mnist5k-dirichlet:0.5" / "pfedpara,gamma=0.1" / "seed1"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["hyper"]["lr"], config["hyper"]["gamma"], config["shown"]) == (0.2, 0.1, ["gamma"])
    again = f'mpirun -np 1 python benchmarks/run.py --suite "{folder / "config.yaml"}" --out'
    type_in(f"{again} again", project)
    repeated = project / "again" / folder.relative_to(project / "runs" / "comparison")
    first, second = (json.loads((path / "summary.json").read_text()) for path in (folder, repeated))
    for key in ("shared_sha256", "accuracy", "label", "partition_sha256"):
        assert first[key] == second[key]
    assert (folder / "config.yaml").read_text() == (repeated / "config.yaml").read_text()
    accuracies = [[row["accuracy_mean"] for row in rows(path / "rounds.csv")] for path in (folder, repeated)]
    assert accuracies[0] == accuracies[1]
    assert type_in(f"{again} runs/comparison", project).startswith("finished before and kept")
