"""pFedPara's steps in pairs."""

from pathlib import Path

from benchmarks.analysis import steps
from benchmarks.federation.recorder import Recorder, Totals, summarize_figures
from tests.support import figures_of


def record(out: Path, label: str, seed: int, accuracy: float, received: float) -> None:
    folder = out / label / f"seed{seed}"
    recorder = Recorder(folder, {"algo": "pfedpara", "seed": seed})
    figures = {0: figures_of(accuracy, 1.0, 50, accuracy)}
    recorder.round(1, figures, {0: received}, Totals(0, 0, 0, 0, 0, 0), 1.0)
    known = {"algo": "pfedpara", "label": label, "dataset": "d", "partition": "p", "model": "mlp", "seed": seed}
    known |= {"rounds": 1, "clients": 1, "transmitted": {}, "partition_sha256": "", "accuracy_received_mean": received}
    recorder.finish(known | summarize_figures(figures) | {"parameters_per_client_round": {"up": 7000, "down": 7000}})
    recorder.close()


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """Of seeds 0 to 2: 2, 3 and 4 points after training, 1 each as received; t(0.975, 2) = 4.303."""
    for seed, gain in ((0, 0.02), (1, 0.03), (2, 0.04)):
        record(tmp_path, "pfedpara", seed, 0.5 + seed / 10, 0.4)
        record(tmp_path, steps.DENSE, seed, 0.5 + seed / 10 + gain, 0.41)
    record(tmp_path, steps.DENSE, 3, 0.91, 0.91)
    runs = steps.by_label(tmp_path)
    after, received = (steps.steps({"d": runs}, value).splitlines()[2:] for value in steps.FIGURES.values())
    assert after[0] == f"| a dense head | +3.0 ± {4.303 / 3**0.5:.1f} (3) |"
    assert received[0] == "| a dense head | +1.0 ± 0.0 (3) |"
    assert len(after) == 1  # no other step was taken
    assert f"| `{steps.DENSE}` | 4 | 7,000 | 70.0 ± " in steps.forms(runs)
