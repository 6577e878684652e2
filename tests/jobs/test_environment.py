"""environment.sh, which the scripts source: each time a real environment, and a wheel of our own in torch's place."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

UV = shutil.which("uv")


def wheel(folder: Path, name: str, version: str) -> str:
    """Makes a wheel of one empty module, and returns the line of a lock that names it."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"__version__ = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return f"{name} @ file://{path}\n"


@pytest.fixture(params=["pip", pytest.param("uv", marks=pytest.mark.skipif(not UV, reason="uv is not installed"))])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with environment.sh and a lock, in which ``tools`` holds nothing but what the script may find."""
    shutil.copy(ROOT / "environment.sh", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "rm", "mkdir", "touch", "df", "awk", "grep", "uname", "sed", "dirname", "basename"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    if request.param == "uv":
        (tools / "uv").symlink_to(str(UV))
    (tmp_path / "requirements.lock").write_text(wheel(tmp_path, "tiny", "1.0"))
    return tmp_path


def source(project: Path, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": str(project / "tools"), "HOME": str(project), "PYTHON": sys.executable}
    script = 'set -euo pipefail; . ./environment.sh requirements.lock; python -c "import tiny; print(tiny.__version__)"'
    return subprocess.run(
        [*prefix, str(shutil.which("bash")), "-c", script],
        cwd=project,
        env=base | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def in_a_mount_of_its_own(mount: str) -> tuple[str, ...]:
    return str(shutil.which("unshare")), "-m", str(shutil.which("bash")), "-c", mount, "-"


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the one sentence with which the script ended."""
    assert done.returncode == 1, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1:] == errors[-1:]
    return errors[-1]


def test_the_second_time_nothing_is_installed(project: Path) -> None:
    first, second = source(project), source(project)
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "1.0"), first.stderr
    assert first.stdout.startswith(f"installing requirements.lock into {project}/.venv")
    assert (second.returncode, second.stdout) == (0, "1.0\n")


def test_a_lock_that_changed_is_installed(project: Path) -> None:
    source(project)
    (project / "requirements.lock").write_text(
        wheel(project, "tiny", "2.0.1")
    )  # of another length: Python goes by time and size
    assert source(project).stdout.splitlines()[-1] == "2.0.1"


def test_what_breaks_off_is_not_taken_for_whole(project: Path) -> None:
    lock = project / "requirements.lock"
    good = lock.read_text()
    lock.write_text(good + f"lost @ file://{project}/lost-1.0-py3-none-any.whl\n")
    assert "requirements.lock could not be installed" in refused(source(project))
    assert "requirements.lock could not be installed" in refused(source(project))
    shutil.rmtree(project / ".venv" / "bin")  # as where making .venv broke off
    (project / ".venv" / "whole").unlink()
    lock.write_text(good)
    assert source(project).stdout.splitlines()[-1] == "1.0"


@pytest.mark.parametrize("python", ["/nonexistent/python3", "false"])
def test_no_python_that_fits(project: Path, python: str) -> None:
    said = refused(source(project, PYTHON=python))
    assert said.startswith(f"error: no Python 3.11 to 3.14 was found (tried {python})")
    assert not (project / ".venv").exists()


def test_an_active_environment_is_told_and_keeps_its_torch(project: Path) -> None:
    venv.create(project / "own", symlinks=True, with_pip=True)
    packages = next((project / "own").glob("lib/python*/site-packages"))
    for name in ("torch", "torchvision"):
        (packages / f"{name}.py").write_text("__version__ = '9.9'\n")
    lock = project / "requirements.lock"
    lock.write_text(lock.read_text() + "torch==2.14.1\ntriton==3.8.0\nnvidia-nvjitlink==13.5.37\n")
    path = f"{project}/own/bin:{project}/tools"
    done = source(project, VIRTUAL_ENV=str(project / "own"), PATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"installing requirements.lock into {project}/own (once; up to 1 GB")
    assert (packages / "tiny.py").exists()
    assert sorted(p.name for p in packages.glob("torch*")) == ["torch.py", "torchvision.py"]
    assert not (project / ".venv").exists()


def test_no_network(project: Path) -> None:
    (project / "requirements.lock").write_text("tiny==1.0\n")
    nowhere = {"https_proxy": "http://127.0.0.1:9", "PIP_RETRIES": "1", "UV_HTTP_RETRIES": "0"}
    done = source(project, **nowhere)
    sentence = "requirements.lock could not be installed, since the package index does not answer"
    assert done.stderr == f"error: {sentence}; the same command tries again\n"
    assert done.returncode == 1
    assert not list((project / ".venv").glob("installed-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_no_space(project: Path) -> None:
    copy = shutil.copytree(project, project.with_name(f"{project.name}-copy"), symlinks=True)
    mount = f'mount -t tmpfs -o size=64m none {project} && cp -r {copy}/. {project} && cd {project} && exec "$@"'
    done = source(project, in_a_mount_of_its_own(mount), PATH=f"{project}/tools:{os.environ['PATH']}")
    assert "has 0 GB of space left, 7 are needed (2 with TORCH=cpu)" in refused(done)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_folder_that_is_read_only(project: Path) -> None:
    mount = f'mount --bind {project} {project} && mount -o remount,ro,bind {project} && cd {project} && exec "$@"'
    done = source(project, in_a_mount_of_its_own(mount), PATH=f"{project}/tools:{os.environ['PATH']}")
    assert f"cannot make {project}/.venv; activate an environment of your own first" in refused(done)
