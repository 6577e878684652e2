"""The suites of docs/paper.md: a small cell of each, on drawn data, gives the same bits twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.federation.suites import FOLDER, read_suite
from tests.support import run

SUITES = sorted(path.stem for path in FOLDER.glob("paper-*.yaml"))
ON_FEMNIST = {"paper-femnist": "paper-unipen", "paper-femnist20": "paper-unipen20"}
DATA = ("preset", "data_dir", "fraction", "out", "tune", "report")


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes 20 pictures of each of ten writers in 62 classes, every fifth to test on."""
    path = tmp_path_factory.mktemp("characters") / "drawn.npz"
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 28, 28), dtype=np.uint8)
    number = np.arange(200)
    np.savez(path, x=x, y=number % 62, client=number % 10, test=number // 10 % 5 == 0)
    return path


@pytest.mark.parametrize(("femnist", "unipen"), ON_FEMNIST.items())
def test_femnist_is_run_as_its_stand_in_is(femnist: str, unipen: str) -> None:
    one, other = read_suite(femnist), read_suite(unipen)
    for key in ("runs", "rounds", "batch_size", "lr_decay", "seed"):
        assert one[key] == other[key]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SUITES} - {*ON_FEMNIST}))
def test_a_small_cell_repeats(name: str, characters: Path, tmp_path: Path) -> None:
    suite = read_suite(name)
    natural = suite.get("partition", "natural") == "natural"
    cell = {key: value for key, value in suite.items() if key not in DATA}
    cell |= {"partition": "natural" if natural else "iid", "dataset": f"npz:{characters}", "rounds": 1, "seed": 0}
    cell["runs"] = [run for run in cell["runs"] if "pfedpara" in run["algo"]][:1]
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump(cell))
    hashes = []
    for ranks in (1, 2):
        done = run("--suite", str(tmp_path / "cell.yaml"), "--out", str(tmp_path / f"ranks-{ranks}"), ranks=ranks)
        assert done.returncode == 0, done.stderr
        found = sorted((tmp_path / f"ranks-{ranks}").rglob("summary.json"))
        hashes.append([json.loads(path.read_text())["shared_sha256"] for path in found])
    assert hashes[0] == hashes[1] != []
