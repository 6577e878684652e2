"""The changes in docs/adding.md, each applied to a copy of the project and run."""

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


def apply(heading: str, folder: Path) -> Path:
    """Returns a copy of the project, in ``folder``, that the section's change is made to."""
    copy_project(folder)
    subprocess.run(
        ["git", "apply", "--unsafe-paths", f"--directory={folder}"],
        input=diff_of(heading),
        text=True,
        check=True,
        cwd="/",
    )
    return folder


@pytest.mark.slow
def test_a_figure(tmp_path: Path) -> None:
    project = apply("A figure of the report", tmp_path)
    tiny = "--algo local --rounds 2 --epochs 1 --clients 2"
    for command in (f"python benchmarks/run.py {tiny}", "python benchmarks/report.py runs"):
        done = subprocess.run(command, shell=True, cwd=project, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    report = project / "runs" / "report"
    assert len(list(report.glob("accuracy_vs_rounds-*.png"))) == 1
    assert "<figcaption>Accuracy after each round: mean over seeds.</figcaption>" in (report / "index.html").read_text()
