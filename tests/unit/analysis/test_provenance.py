"""Where figures come from, as the report says it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.analysis.compare import compare
from benchmarks.analysis.load import load
from benchmarks.analysis.provenance import boxed
from benchmarks.analysis.tables import wording_of_work
from tests.unit.analysis.recorded import record

MACHINE = {"system": "Linux", "processor": "X", "cores": 4, "memory": 8_000_000_000}
TUNING = {"command": "python benchmarks/tune.py", "partitions": ["iid"], "seeds": [100, 101], "rounds": 10, "trials": 6}


def extend(folder: Path, **more: Any) -> None:
    """Adds to a run's summary what runs of today record."""
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.fixture
def box(tmp_path: Path) -> tuple[dict[str, list[str]], Any]:
    for seed in range(2):
        folder = record(tmp_path, "pfedpara", seed, [(0.8, 0.8)], hyper={"lr": 0.5, "gamma": 0.5}, tuned=["lr"])
        origins = {"lr": "tuned.yaml", "gamma": "default"}
        provenance = {"finished": f"2030-01-0{seed + 1}", "commit": "abc", "command": "python run.py", "workers": 2}
        extend(folder, provenance={**provenance, "machine": MACHINE, "origins": origins, "tuning": TUNING})
        extend(folder, versions={"torch": "2.14.1"}, seconds={"total": 3.0 + seed})
    record(tmp_path, "fedavg", 0, [(0.7, 0.9)])  # of an earlier version
    (comparison,) = compare(load([tmp_path]))
    found = boxed(comparison, tmp_path / "report")
    return dict(found.facts), found.settings


def test_facts(box: tuple[dict[str, list[str]], Any]) -> None:
    facts, _ = box
    assert facts == {
        "Finished": ["2030-01-01 to 2030-01-02", "not recorded"],
        "Commit": ["not recorded", "abc"],
        "Versions": ["not recorded", "torch 2.14.1"],
        "Machine": ["not recorded", "X, 4 cores, 8 GB, Linux; 2 workers"],
        "Duration": ["7 s for 2 runs, 3 to 4 s each"],
        "Tuning": [
            "none",
            "6 trials a method, each of 10 rounds on iid with seed 100, 101, on samples set aside: "
            "python benchmarks/tune.py",
        ],
        "Target": ["76.0 %, 95 % of the best method's 80.0 %"],
        "Command": ["not recorded", "python run.py"],
    }


def test_settings_of_runs_that_are_alike_are_shown_once(box: tuple[dict[str, list[str]], Any]) -> None:
    _, (fedavg, pfedpara) = box
    assert ("lr", "0.1", "not recorded") in fedavg.hyper
    assert {("lr", "0.5", "tuned.yaml"), ("gamma", "0.5", "default")} <= set(pfedpara.hyper)
    runs = [(str(seed), f"../dirichlet%3A0.5/pfedpara/seed{seed}/config.yaml") for seed in range(2)]
    assert pfedpara.runs == runs
    assert "gamma: 0.5" in pfedpara.config
    assert "seed" not in pfedpara.config


def test_work_of_a_client_by_hand(tmp_path: Path) -> None:
    for algo, times in (("fedavg", 1), ("pfedme", 5)):
        folder = record(tmp_path, algo, 0, [(0.5, 0.5)] * 3)  # two clients
        gradients = {"training": 600 * times, "adaptation": 40}
        flops = {"training": 6_000_000_000 * times, "adaptation": None}
        extend(folder, work={"gradients": gradients, "flops": flops})
    extend(record(tmp_path, "fedper", 0, [(0.5, 0.5)] * 3), work=None)
    (comparison,) = compare(load([tmp_path]))
    assert wording_of_work(comparison).to_numpy().tolist() == [
        ["fedavg", "100", "1.000", "20", "–"],
        ["pfedme", "500", "5.000", "20", "–"],
    ]
