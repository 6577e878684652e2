"""The wheel: what it installs, and that its commands work from any folder."""

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, copy_project

PACKAGES = {"baselines", "benchmarks", "data_partitions", "pfedpara"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that git knows, so that nothing is left behind among them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_project(folder / "source")
    build = ["uv", "build", "--quiet", "--offline", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([sys.executable, "-m", *build, "--out-dir", folder, source], check=True, stdin=subprocess.DEVNULL)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_four_typed_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    data = {str(path.relative_to(ROOT)) for end in ("yaml", "j2") for path in (ROOT / "benchmarks").rglob(f"*.{end}")}
    assert "benchmarks/tuned.yaml" in data
    assert data <= names


@pytest.mark.slow
def test_the_installed_commands_work_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    programs = tmp_path / "venv" / "bin"
    (libraries,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    install = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", programs / "python"]
    subprocess.run([sys.executable, "-m", *install, wheel], check=True, stdin=subprocess.DEVNULL)
    (libraries / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "LD_LIBRARY_PATH": f"{sys.prefix}/lib"}  # mpi4py looks into its own environment

    def shown(*words: str) -> str:
        done = subprocess.run(words, cwd=elsewhere, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), f"{words}: {done.stderr}"
        return done.stdout

    where = shown("python", "-c", "import benchmarks, baselines; print(benchmarks.__file__, baselines.__file__)")
    assert where.count(str(libraries)) == 2
    for program in ("pfl-run", "pfl-report", "pfl-tune", "pfl-data"):
        assert "usage:" in shown(program, "--help")
    assert "mnist5k" in shown("pfl-data", "list")
    tiny = ("--algo", "local", "--rounds", "1", "--epochs", "1", "--clients", "2", "--out", "runs")
    shown("mpirun", "-np", "2", "pfl-run", *tiny)
    assert "local" in shown("pfl-report", "runs")
    assert (elsewhere / "runs" / "report" / "index.html").exists()
