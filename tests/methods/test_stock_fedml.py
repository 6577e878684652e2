"""Our methods are FedML trainers and aggregators: they run under FedML's own MPI wiring, with the same outcome."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines.adapter import RoundContext
from benchmarks.federation.registry import METHODS
from tests.methods.stock_fedml_job import CLIENTS, ROUNDS, build, client_data
from tests.support import ROOT

# One process imports for all ranks; the wiring is FedML's all the same.
JOB = """
from benchmarks.runtime.launch import launch
launch(lambda: __import__("tests.methods.stock_fedml_job"))
from tests.methods import stock_fedml_job
stock_fedml_job.main()
"""


def one_process(algo: str) -> dict[str, torch.Tensor]:
    """The outer loop in a few lines: every client in turn, then the method's server."""
    trainer, (_, aggregator) = build(algo)[0], build(algo)  # each with a model of its own
    states = dict.fromkeys(range(CLIENTS), trainer.get_private_state())
    for number in range(ROUNDS):
        shared, updates = aggregator.get_model_params(), []
        for client in range(CLIENTS):
            trainer.set_private_state(states[client])
            trainer.set_model_params(shared)
            trainer.fit(client_data(client), RoundContext(0, client, number))
            states[client] = trainer.get_private_state()
            updates.append((len(client_data(client)), trainer.get_model_params()))
        aggregator.set_model_params(aggregator.aggregate(updates))
    return aggregator.get_model_params()


@pytest.mark.parametrize(
    "algo",
    [
        pytest.param(algo, marks=[] if algo == "pfedpara" else pytest.mark.slow)
        for algo in (*METHODS, "pfedpara,alternate")
    ],
)
def test_methods_run_under_fedml_s_own_mpi_wiring(algo: str, tmp_path: Path) -> None:
    out = tmp_path / "shared.safetensors"
    command = ["mpirun", "-np", str(CLIENTS + 1), sys.executable, "-W", "ignore", "-c", JOB, algo, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert out.exists(), done.stderr
    found = load_file(out)
    assert found.pop("rounds") == ROUNDS
    expected = one_process(algo)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
