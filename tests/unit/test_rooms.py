"""What imports what: pfedpara works where torch alone is installed. The arrows between rooms are import-linter's."""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT

OF_A_METHOD = {"trainer", "hyper"}
MODULES = [f"pfedpara.{path.stem}" for path in (ROOT / "pfedpara").glob("[!_]*.py") if path.stem not in OF_A_METHOD]

REFUSE_OTHERS = """
import importlib, sys
import torch

class Refuse:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "pfedpara"}:
            raise ModuleNotFoundError(f"{name} is neither torch nor the standard library", name=name)

sys.meta_path.insert(0, Refuse())
for name in [name for name in sys.modules if name.partition(".")[0] == "numpy"]:
    del sys.modules[name]
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_parameterization_imports_torch_alone() -> None:
    assert {"pfedpara.hadamard", "pfedpara.layers", "pfedpara.sharing"} <= set(MODULES)
    done = subprocess.run([sys.executable, "-c", REFUSE_OTHERS, *MODULES], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_OTHERS, "pfedpara.trainer"], cwd=ROOT, capture_output=True, text=True
    )
    assert "is neither torch nor the standard library" in done.stderr  # so that the hook is known to refuse


def link_distribution(name: str, folder: Path, extras: Iterable[str] = ()) -> None:
    """Makes ``folder`` hold what is installed of a distribution and of all that it requires here, and nothing else."""
    found = distribution(name)
    tops = {file.parts[0] for file in found.files or []} - {".."}
    new = [top for top in tops if not (folder / top).exists()]
    for top in new:
        (folder / top).symlink_to(str(found.locate_file(top)))
    for text in (found.requires or []) if new or extras else []:
        required = Requirement(text)
        if required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            link_distribution(required.name, folder, required.extras)


TRAIN = """
import importlib.util, sys
sys.path.append(sys.argv[1])
assert not any(map(importlib.util.find_spec, ("numpy", "pydantic", "fedml", "baselines")))
import torch
from pfedpara.parameterize import parameterize, reconstruct
model = parameterize(torch.nn.Linear(64, 32), "pfedpara", gamma=0.5)
model(torch.ones(8, 64)).sum().backward()
print(type(reconstruct(model)).__name__)
"""


@pytest.mark.slow
def test_the_parameterization_works_where_torch_alone_is_installed(tmp_path: Path) -> None:
    link_distribution("torch", tmp_path)
    (tmp_path / "pfedpara").symlink_to(ROOT / "pfedpara")
    words = [sys.executable, "-I", "-S", "-W", "ignore:Failed to initialize NumPy", "-c", TRAIN, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Linear\n", "")
