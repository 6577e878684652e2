"""The examples of docs/data.md that bring their own data, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, copy_project


@pytest.mark.slow
def test_data_of_ones_own(tmp_path: Path) -> None:
    """What an example says of the input is what it says here, and each trains to better than a guess."""
    project, page = copy_project(tmp_path), (ROOT / "docs" / "data.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        subprocess.run([sys.executable, "-c", code], cwd=project, check=True)
    examples = re.findall(r"```bash\n(mpirun .*?)\n```\n(?:\n```\n(.*?)```)?", page, re.DOTALL)
    assert len(examples) == 3
    for command, said in examples:
        done = subprocess.run(command, shell=True, cwd=project, capture_output=True, text=True, timeout=150)
        assert (done.returncode, done.stderr) == (0, said)
        assert float(re.findall(r"accuracy (\d\.\d+)", done.stdout)[-1]) > 0.5
