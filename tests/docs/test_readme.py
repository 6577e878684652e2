"""The commands of README and the pages under docs/, run as they stand there."""

import importlib.util
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support import ROOT, copy_project

PAGES = "\n".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
# What the pages tell a reader to type, and the test that types it.
TYPED_ELSEWHERE = {
    "./run_tests.sh": "the suite that is running",
    "source .venv/bin/activate": "the environment that is active",
    "mpirun -np 3 python benchmarks/run.py": "tests/docs/test_data.py, test_suites.py",
    "python benchmarks/report.py --suite": "tests/docs/test_suites.py",
    "pip install -r requirements.txt": "what ./run_all.sh does in a fresh environment",
    "source <(pfl-run --print-completion bash)": "tests/unit/federation/test_options.py",
    "python -m pytest -s -m slow tests/unit/analysis/test_page.py": "the test that it names",
}


def commands() -> list[str]:
    """Every command line in the pages' shell blocks, without its comment. test_slurm.py runs the batch file."""
    blocks = re.findall(r"```bash\n(?!#!)(.*?)```", PAGES, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


def type_in(command: str, folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=timeout)


def test_one_method(project: Path) -> None:
    (command,) = [line for line in commands() if line.startswith("mpirun -np 11")]
    done = type_in(f"{command} --rounds 3", project, 150)  # README: 30 rounds; the rest of the command is the same
    assert (done.returncode, done.stderr) == (0, "")
    assert "round 3/3  accuracy 0." in done.stdout


def test_partitions_are_built_and_shown(project: Path) -> None:
    lines = [line for line in commands() if line.startswith("python -m data_partitions")]
    assert len(lines) == 3
    for line in lines:
        done = type_in(line, project, 60)
        assert (done.returncode, done.stderr) == (0, ""), line


@pytest.mark.slow
def test_quick_comparison_and_what_follows(project: Path) -> None:
    assert "./run_all.sh --quick" in commands()
    begin = time.monotonic()
    done = type_in("./run_all.sh --quick", project, 400)
    assert done.returncode == 0, done.stderr
    print(f"--quick took {time.monotonic() - begin:.0f} s")
    for method in ("pfedpara", "pfedpara-x", "fedper", "pfedme", "fedavg", "local"):
        assert re.search(rf"{method} +1 +\d\d\.\d", done.stdout), done.stdout
    assert (project / "runs" / "quick" / "report" / "index.html").exists()
    readme = (project / "README.md").read_text()
    remade = [line for line in commands() if "runs/quick/report" in line]
    assert len(remade) == 2
    for line in remade:
        done = type_in(line, project, 60)
        assert (done.returncode, done.stderr) == (0, ""), line
    assert all(f"pictures/{picture.name}" in PAGES for picture in (project / "docs" / "pictures").iterdir())
    heading, _, *rows = done.stdout.splitlines()  # of the table, which is typed last
    assert re.sub(r"[\d.]+", "", heading) in re.sub(r"[\d.]+", "", readme)  # the target differs between machines
    for row in rows:
        assert f"\n{row.partition(' | ')[0]} | " in readme
    again = type_in("./run_all.sh --quick", project, 100)
    assert again.stdout.startswith("finished before and kept")

    assert "tensorboard --logdir runs" in commands()
    with subprocess.Popen(
        ["tensorboard", "--logdir", "runs", "--port", "0", "--bind_all"], cwd=project, stderr=subprocess.PIPE, text=True
    ) as board:
        try:
            assert board.stderr is not None
            address = next(m[1] for line in board.stderr if (m := re.search(r"(http://\S+:\d+)/", line)))
            port = address.rpartition(":")[2]
            for _ in range(60):
                with urllib.request.urlopen(f"http://localhost:{port}/data/plugin/scalars/tags") as page:
                    tags = page.read().decode()
                if "accuracy/mean" in tags:
                    break
                time.sleep(0.5)
            assert "accuracy/mean" in tags
        finally:
            board.kill()  # TensorBoard may swallow SIGTERM, and the with statement waits for its end


def test_python_examples_run(project: Path) -> None:
    examples = re.findall(r"```python\n(?!# my_)(.*?)```", PAGES, re.DOTALL)  # not test_plugins.py's files
    assert examples
    for example in examples:
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr


def test_every_command_is_run_by_a_test() -> None:
    covered = (
        "mpirun -np 11",
        "python -m data_partitions",
        "./run_all.sh --quick",
        "tensorboard --logdir runs",
        "mpirun -np 3 python pFedPara/benchmarks",  # test_plugins.py, test_fedml.py
        "mpirun -np 4 python my_fedml_job.py",  # test_fedml.py
        "cp runs/quick/report",
        "grep -m 8 '^|' runs/quick/report",
        *TYPED_ELSEWHERE,
    )
    assert [line for line in commands() if not line.startswith(covered)] == []


PROGRAMS = (
    *("benchmarks/run.py", "benchmarks/report.py", "benchmarks/tune.py", "benchmarks/attack.py"),
    *("-m data_partitions build", "-m pfedpara.inspect"),
    *(f"-m benchmarks.perf.{name}" for name in ("runtime", "layers", "stability", "averaging")),
    *(f"-m benchmarks.analysis.{name}" for name in ("steps", "claims", "trials", "access")),
)


def explained(program: str) -> str:
    """Returns what a program says of itself."""
    done = type_in(f"{sys.executable} {program} --help", ROOT, 60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage" in done.stdout
    return done.stdout


def test_every_program_explains_itself_and_the_options_and_files_that_they_name() -> None:
    for path in re.findall(r"`((?:benchmarks|baselines|pfedpara|data_partitions|tests)/[\w/.]+)`", PAGES):
        assert (ROOT / path).exists(), path
    known = "".join(map(explained, PROGRAMS))
    named = {option for code in re.findall(r"`([^`\n]+)`", PAGES) for option in re.findall(r"(?<!\S)--[a-z-]+", code)}
    # Of run_all.sh, which has no help, and of mpirun, Slurm, pip, podman and mlflow.
    named -= {"--quick", "--access", "--frontier", "--compatibility", "--paper", "--paper-unipen", "--hijack"}
    named -= {
        "--mpi",
        "--gres",
        "--oversubscribe",
        "--no-deps",
        "--shm-size",
        "--build-arg",
        "--user",
        "--userns",
        "--backend-store-uri",
    }
    assert [option for option in sorted(named) if option not in known] == []


def test_readme_links_to_files() -> None:
    links = re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_modules_that_they_name_can_be_run() -> None:
    for module in set(re.findall(r"`python -m ([\w.]+)", PAGES)):
        assert importlib.util.find_spec(module), module
