"""What perf/peers.py does of itself, with a stand-in of a framework: what it measures is installed by who runs it."""

import sys
from pathlib import Path

import pytest

from benchmarks.perf import peers

STAND_IN = """
import json, sys, time
import numpy as np
samples, rounds, batch, lr, clip, out = sys.argv[1:]
assert np.load(samples)["x"].shape == (10, 500, 28, 28)
held, begin = b"x" * 50_000_000, time.monotonic()
json.dump([begin, begin + 9, begin + 10, begin + 13, begin + 15], open(out, "w"))
time.sleep(1.2)
"""


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(peers, "FRAMEWORKS", {"stand_in": "no-such-package"})
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return tmp_path / "environments"


def ready(environments: Path) -> None:
    (environments / "stand_in" / "bin").mkdir(parents=True)
    (environments / "stand_in" / "bin" / "python").symlink_to(sys.executable)
    (environments / "stand_in" / "installed").touch()


def test_each_framework_has_a_script() -> None:
    assert {path.stem for path in peers.SCRIPTS.glob("with_*.py")} == set(peers.FRAMEWORKS)


def test_a_round_is_the_median_of_all_but_the_first(tmp_path: Path, environments: Path) -> None:
    ready(environments)
    row = peers.run("stand_in", 4, tmp_path, environments)
    assert row["round"] == pytest.approx(2)  # of 1, 3 and 2 seconds; the first took 9
    assert 0 < row["ready"] < 60
    assert row["pss"] > 0.05  # GB, of which 50 MB are held for nothing


def test_a_framework_that_fails_says_why(tmp_path: Path, environments: Path) -> None:
    ready(environments)
    (tmp_path / "stand_in.py").write_text("raise SystemExit('there is no Ray')")
    with pytest.raises(RuntimeError, match=r"^there is no Ray$"):
        peers.run("stand_in", 4, tmp_path, environments)


@pytest.mark.slow
def test_what_cannot_be_installed_says_why(environments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="No matching distribution found for no-such-package"):
        peers.install("stand_in", environments)
    assert not (environments / "stand_in" / "installed").exists()
