"""The changes in docs/adding.md, each applied to a copy of the project and run."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, copy_project


def diff_of(heading: str) -> str:
    """Returns the change that the section of that heading shows."""
    page = (ROOT / "docs" / "adding.md").read_text()
    (section,) = [part for part in page.split("\n## ") if part.startswith(heading + "\n")]
    (diff,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    return str(diff)


def apply_to(heading: str, folder: Path) -> None:
    """Makes the section's change to the copy of the project in ``folder``."""
    subprocess.run(
        ["git", "apply", "--unsafe-paths", f"--directory={folder}"],
        input=diff_of(heading),
        text=True,
        check=True,
        cwd="/",
    )


@pytest.mark.slow
def test_a_figure(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    apply_to("A figure of the report", tmp_path)
    tiny = "--algo local --rounds 2 --epochs 1 --clients 2"
    for command in (f"python benchmarks/run.py {tiny}", "python benchmarks/report.py runs"):
        done = subprocess.run(command, shell=True, cwd=project, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    report = project / "runs" / "report"
    assert len(list(report.glob("accuracy_vs_rounds-*.png"))) == 1
    assert "<figcaption>Accuracy after each round: mean over seeds.</figcaption>" in (report / "index.html").read_text()


@pytest.mark.slow
def test_a_method_a_model_a_metric_and_a_data_set(tmp_path: Path) -> None:
    copy_project(tmp_path)
    for heading in ("A method", "A model", "A metric", "A data set"):
        apply_to(heading, tmp_path)
    command = (
        "python benchmarks/run.py --algo uniform --dataset wines --model deep-mlp --rounds 2 --epochs 1 --clients 3"
    )
    for line in (f"mpirun -np 2 {command}", "python benchmarks/report.py runs"):
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs" / "wines-dirichlet:0.5" / "uniform" / "seed0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["clients"] == 3
    assert 1 >= summary["top3"]["mean"] > summary["accuracy"]["mean"] > 0.2  # a guess is right one time in ten
    assert "top3_mean" in (run / "rounds.csv").read_text().splitlines()[0]
    assert "top 3 %" in (tmp_path / "runs" / "report" / "index.html").read_text()
