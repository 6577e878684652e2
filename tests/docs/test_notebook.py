"""docs/notebook.ipynb runs from its first cell to its last, and shows what it made when it was run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, copy_project

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_shows_tables_and_a_figure_and_stays_small() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    kinds = [kind for cell in cells for output in cell["outputs"] for kind in output.get("data", ())]
    assert kinds.count("image/png") == 1
    assert kinds.count("text/html") == 3
    assert all(cell["execution_count"] for cell in cells)
    assert str(ROOT) not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    words = ["-m", "pytest", "--nbmake", "--nbmake-timeout=250", "-n", "0", "-c", os.devnull, "docs/notebook.ipynb"]
    env = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=project, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout
    assert len(list((project / "docs" / "runs").rglob("summary.json"))) == 6  # three methods, three values of γ
