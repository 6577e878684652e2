"""The paper's statements, judged by runs, and the trials that chose rates."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.analysis import claims, trials
from benchmarks.analysis.load import ReportError
from tests.unit.analysis.test_steps import record

# Of three seeds, t(0.975, 2) = 4.303: the half interval is 4.303 standard deviations over √3. Two seeds have none.


@pytest.mark.parametrize(
    ("gains", "above", "close"),
    [
        ([0.02, 0.021, 0.022], "holds", "contradicted"),  # 2.1 ± 0.25 points
        ([-0.02, -0.021, -0.022], "contradicted", "contradicted"),
        ([0.02, 0.03, 0.07], "open", "open"),  # 4.0 ± 6.6
        ([0.004, 0.0045, 0.005], "holds", "holds"),  # 0.45 ± 0.12
        ([-0.0001, 0.0, 0.0001], "open", "holds"),  # 0 ± 0.02
        ([0.02, 0.021], "open", "open"),
        ([], "open", "open"),
        ([0.009, 0.009, 0.009], "holds", "holds"),
        ([0.0, 0.0, 0.0], "open", "holds"),
    ],
)
def test_a_statement_holds_where_the_interval_says_so(gains: list[float], above: str, close: str) -> None:
    assert (claims.judge_above(gains), claims.judge_close(gains)) == (above, close)


def test_a_claim_is_reproduced_by_all_of_its_statements_in_part_by_some() -> None:
    assert claims.verdict(["holds", "holds"]) == "reproduced"
    assert claims.verdict(["holds", "open", "contradicted"]) == "in part"
    assert claims.verdict(["open", "contradicted"]) == "not reproduced"


def test_a_scenario_is_told_and_drawn(tmp_path: Path) -> None:
    """Local above FedAvg by 10 points in each seed; pFedPara below FedPer by 6; local and FedPer open."""
    folder = tmp_path / "paper-unipen"
    accuracies = {"local": (0.6, 0.62, 0.64), "fedavg": (0.5, 0.52, 0.54)}
    accuracies |= {"fedper": (0.61, 0.72, 0.7), "pfedpara": (0.55, 0.66, 0.64)}
    for label, seeds in accuracies.items():
        for seed, accuracy in enumerate(seeds):
            record(folder, label, seed, accuracy, accuracy)
    record(folder, "fedavg", 3, 0.9, 0.9)  # a seed that no other has
    runs = claims.by_label(folder)
    told = claims.tell("paper-unipen", runs)
    assert told.startswith("Scenario 1, UNIPEN by writer: in part\n")
    assert "| `local` above `fedavg` | +10.0 ± 0.0 | 3 | holds |" in told
    assert "| `pfedpara` above `fedper` | -6.0 ± 0.0 | 3 | contradicted |" in told
    assert "| `local` above `fedper` | -5.7 ± 11.2 | 3 | open |" in told
    assert claims.tell("paper-unipen", claims.after(runs, 1)) == told
    assert claims.after(runs, 2) == {}  # there is one round
    (panel,) = claims.draw({"paper-unipen": runs}).axes
    assert [round(bar.get_height(), 1) for bar in panel.patches] == [62.0, 61.5, 67.7, 61.7]
    assert [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--"] == [58, 75]  # type: ignore[index]


def tried(out: Path, label: str, hyper: dict[str, Any], score: float, tuning: bool = True) -> None:
    """Records a run with a validation accuracy of ``score``."""
    record(out, label, 0, 0.0, 0.0)
    folder = out / label / "seed0"
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"hyper": hyper, "tuning": tuning}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    summary = yaml.safe_load((folder / "summary.json").read_text())
    summary["validation_accuracy"]["mean"] = score
    summary["work"] = {"gradients": {"training": 40}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_the_best_trial_is_chosen_and_every_one_told(tmp_path: Path) -> None:
    tried(tmp_path, "fedavg,lr=0.1,clip_norm=1", {"lr": 0.1, "clip_norm": 1.0}, 0.5)
    tried(tmp_path, "fedavg,lr=0.3,clip_norm=1", {"lr": 0.3, "clip_norm": 1.0}, 0.75)
    tried(tmp_path, "pfedme,personal_lr=0.1", {"lr": 0.05, "personal_lr": 0.1, "clip_norm": 0.0}, 0.25)
    found = trials.trials(tmp_path)
    assert found["fedavg"]["chosen"] == {"lr": 0.3, "clip_norm": 1.0}
    assert found["fedavg"]["trials"][0] == {"lr": 0.1, "clip_norm": 1.0, "score": 0.5, "gradients": 40}
    assert found["pfedme"]["chosen"] == {"personal_lr": 0.1, "clip_norm": 0.0}
    tried(tmp_path, "fedavg,lr=1", {"lr": 1.0, "clip_norm": 1.0}, 0.9, tuning=False)
    with pytest.raises(ReportError, match="not of samples set aside for tuning"):
        trials.trials(tmp_path)
