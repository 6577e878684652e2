"""The parts and commands of docs/plugins.md, in a folder outside of the repository."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, bash_lines, write_parts

PAGE = (ROOT / "docs" / "plugins.md").read_text()
COMMANDS = bash_lines(PAGE)
TUNE = "--trials 2 --rounds 1 --partition iid --record tuned.yaml --out trials"


def type_in(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_method_is_tuned_on_a_model_and_a_data_set_of_one_s_own(tmp_path: Path) -> None:
    write_parts(PAGE, tmp_path)
    parts = "--algo my_method:Decay --model my_model:Net --dataset my_data:rings"
    done = type_in(f"python pFedPara/benchmarks/tune.py {parts} {TUNE}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["my_data:rings"]["my_model:Net"]["methods"]
    trials = found["my_method:Decay"]["trials"]
    assert [sorted(trial) for trial in trials] == [["decay", "lr", "score"]] * 2
    assert trials[0]["decay"] == 0.01  # the default comes first
    assert 0.001 <= trials[1]["decay"] <= 0.1  # as its search says
    best = max(trials, key=lambda trial: trial["score"])
    assert found["my_method:Decay"]["chosen"] == {name: best[name] for name in ("lr", "decay")}
    done = type_in(f"python pFedPara/benchmarks/tune.py --algo my_method:Deca {TUNE}", tmp_path)
    assert done.stderr == "error: --algo my_method:Deca: my_method.py has no 'Deca'; did you mean 'Decay'?\n"


@pytest.mark.slow
def test_each_part_is_found_by_all_ranks_of_a_job_elsewhere(tmp_path: Path) -> None:
    write_parts(PAGE, tmp_path)
    for command in COMMANDS:
        done = type_in(command, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
    runs = tmp_path / "runs" / "mnist5k-dirichlet:0.5"
    methods = {path.name for path in runs.iterdir()} - {"partition"}  # whose heat map it holds
    assert methods == {"fedavg", "my_method:Decay", "pfedpara"}
    assert json.loads((runs / "pfedpara" / "seed0" / "summary.json").read_text())["model"] == "my_model:Net"
    rings = tmp_path / "runs" / "my_data:rings-natural" / "pfedpara" / "seed0" / "summary.json"
    assert json.loads(rings.read_text())["accuracy"]["mean"] > 0.5  # a guess is right one time in four

    decay = runs / "my_method:Decay" / "seed0"
    found = (decay / "summary.json").read_text()
    assert type_in(COMMANDS[0], tmp_path).stdout.startswith("finished before and kept")
    (decay / "summary.json").unlink()
    assert type_in(COMMANDS[0], tmp_path).returncode == 0  # goes on from its last checkpoint
    assert json.loads((decay / "summary.json").read_text())["accuracy"] == json.loads(found)["accuracy"]
    alone = type_in(f"PFL_FORK=0 {COMMANDS[0]} --out alone", tmp_path)  # each rank imports by itself
    assert (alone.returncode, alone.stderr) == (0, "")
    table = Path("mnist5k-dirichlet:0.5", "my_method:Decay", "seed0", "clients.csv")
    assert (tmp_path / "alone" / table).read_bytes() == (tmp_path / "runs" / table).read_bytes()

    done = type_in("python pFedPara/benchmarks/report.py runs", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "my_method:Decay" in done.stdout

    judged = json.loads(
        (tmp_path / "judged" / "mnist5k-dirichlet:0.5" / "local" / "seed0" / "summary.json").read_text()
    )
    assert 1 >= judged["top3"]["mean"] > judged["accuracy"]["mean"]
    (tmp_path / "my_metric.py").unlink()
    assert "top3" in type_in("python pFedPara/benchmarks/report.py judged", tmp_path).stdout

    method = tmp_path / "my_method.py"
    method.write_text(method.read_text().replace("gradient.add_", "grad.add_"))
    wrong = type_in(f"{COMMANDS[0]} --overwrite", tmp_path)
    (said,) = wrong.stderr.splitlines()
    assert re.sub(r"rank \d, client \d", "rank 2, client 0", said) in PAGE
