"""FedML's own runtime beside this suite's, and the files and commands of docs/fedml.md."""

import json
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baselines.adapter import RoundContext
from benchmarks.api import run_experiment
from benchmarks.federation.names import METHODS
from tests.support import (
    ROOT,
    alive,
    bash_lines,
    directory,
    findings,
    rows,
    run,
    start,
    summary,
    wait_for_round,
    write_parts,
)

SMALL = ("--clients", "3", "--epochs", "1", "--fraction", "0.2")
PAGE = (ROOT / "docs" / "fedml.md").read_text()
COMMANDS = bash_lines(PAGE)
# One process imports for all ranks, and FedML's package is imported where its pins are not: the wiring is FedML's.
IN_FEDML = """
from benchmarks.runtime.launch import launch
launch(lambda: __import__("benchmarks.federation.registry"))
import logging, runpy
logging.disable()
runpy.run_path("my_fedml_job.py", run_name="__main__")
"""


def of_bits(run_directory: Path) -> dict[str, Any]:
    """Returns what the runtimes have in common: all findings but the bytes of messages."""
    found = findings(run_directory)
    text = re.sub(r'"(bytes\w*)": "?\d+"?', r'"\1": null', json.dumps(found))
    return json.loads(text)  # type: ignore[no-any-return]


def shared(run_directory: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run_directory / "checkpoint").glob("round-??????")) / "shared.safetensors")


def test_a_run_through_fedml_s_managers_leaves_what_a_run_through_ours_does(tmp_path: Path) -> None:
    words = ["--algo", "scaffold", "pfedpara", "--rounds", "2", *SMALL]
    done = run(*words, "--runtime", "fedml", "--out", str(tmp_path / "fedml"), ranks=4)
    assert (done.returncode, done.stderr) == (0, "")
    run_experiment(algo=["scaffold", "pfedpara"], clients=3, rounds=2, epochs=1, fraction=0.2, out=tmp_path / "own")
    for algo in ("scaffold", "pfedpara"):
        own, fedml = directory(tmp_path / "own", algo), directory(tmp_path / "fedml", algo)
        assert of_bits(own) == of_bits(fedml)
        assert {path.name[:6] for path in own.iterdir()} == {path.name[:6] for path in fedml.iterdir()}
        sent, tensors = rows(fedml / "ledger.csv"), shared(fedml)
        assert len(sent) == 2 * 2 * 3
        for entry in sent:  # a pickle holds float32 tensors, and names and shapes beside them
            extra = int(entry["bytes"]) - 4 * int(entry["parameters"])
            assert 100 * len(tensors) < extra < 1000 * len(tensors), entry


@pytest.mark.slow
def test_all_methods_share_the_same_tensors_in_both_runtimes(tmp_path: Path) -> None:
    methods = [name for name in METHODS if name not in ("pooled", "fedbn", "fedpac")]  # one; another model; no
    few = ("--partition", "iid", "--fraction", "0.2", "--batch-size", "8", "--eval-every", "0")
    words = ["--rounds", "2", "--epochs", "1", *few, "--algo", *methods, "pfedpara", "lowrank"]
    for runtime in ("own", "fedml"):
        done = run(*words, "--runtime", runtime, "--out", str(tmp_path / runtime), ranks=11, timeout=600)
        assert (done.returncode, done.stderr) == (0, "")
    for algo in (*methods, "pfedpara", "lowrank"):
        own, fedml = (shared(directory(tmp_path / runtime, algo, partition="iid")) for runtime in ("own", "fedml"))
        assert own.keys() == fedml.keys()
        transmitted = summary(tmp_path / "fedml", algo, partition="iid")["transmitted"]
        assert all(transmitted.values()) if own else not any(transmitted.values())
        for name, tensor in own.items():
            torch.testing.assert_close(fedml[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_job_of_fedml_s_managers_goes_on_and_diverges_and_ends_as_ours_does(tmp_path: Path) -> None:
    words = ["--runtime", "fedml", "--algo", "scaffold", *SMALL, "--checkpoint-every", "1"]
    job = start(*words, "--rounds", "20", "--out", str(tmp_path), ranks=4)
    wait_for_round(job, directory(tmp_path, "scaffold") / "rounds.csv", 3)
    job.terminate()
    job.communicate(timeout=30)
    assert not alive([], tmp_path)
    done = run(*words, "--rounds", "20", "--out", str(tmp_path), ranks=4)
    assert (done.returncode, done.stderr) == (0, "")
    run_experiment(algo="scaffold", clients=3, rounds=20, epochs=1, fraction=0.2, out=tmp_path / "own")
    own, fedml = directory(tmp_path / "own", "scaffold"), directory(tmp_path, "scaffold")
    assert (own / "clients.csv").read_bytes() == (fedml / "clients.csv").read_bytes()
    assert shared(own).keys() == shared(fedml).keys()

    done = run(*words, "--rounds", "1", "--set", "lr=1e30", "--new-clients", "1", "--out", str(tmp_path), ranks=4)
    assert done.returncode == 0
    assert done.stderr.startswith("diverged: scaffold,")


@pytest.mark.slow
def test_a_trainer_of_fedml_s_is_a_method_here_in_both_runtimes(tmp_path: Path) -> None:
    write_parts(PAGE, tmp_path)
    for command in COMMANDS[:2]:
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert (done.returncode, done.stderr) == (0, "")
    own, fedml = (directory(tmp_path / out, "my_method:Mine") for out in ("runs", "runs-fedml"))
    assert of_bits(own) == of_bits(fedml)
    assert findings(own)["summary"]["accuracy"]["mean"] > 0.5


def one_process(job: Any) -> dict[str, torch.Tensor]:
    """The outer loop in a few lines: every client in turn, then the method's server."""
    trainer, (_, aggregator) = job.build("pfedpara")[0], job.build("pfedpara")  # each with a model of its own
    states = dict.fromkeys(range(job.CLIENTS), trainer.get_private_state())
    for number in range(job.ROUNDS):
        params, updates = aggregator.get_model_params(), []
        for client, state in states.items():
            trainer.set_private_state(state)
            trainer.set_model_params(params)
            trainer.fit(job.client_data(client), RoundContext(0, client, number))
            states[client] = trainer.get_private_state()
            updates.append((len(job.client_data(client)), trainer.get_model_params()))
        aggregator.set_model_params(aggregator.aggregate(updates))
    return aggregator.get_model_params()  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_method_of_ours_runs_in_a_job_of_fedml_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(PAGE, tmp_path)
    assert COMMANDS[2] == "mpirun -np 4 python my_fedml_job.py"
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{IN_FEDML}"
    command = ["mpirun", "-np", "4", sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert (tmp_path / "shared.pt").exists(), done.stderr
    monkeypatch.chdir(tmp_path)
    spec = spec_from_file_location("my_fedml_job", tmp_path / "my_fedml_job.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(job := module_from_spec(spec))
    found, expected = torch.load(tmp_path / "shared.pt"), one_process(job)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
