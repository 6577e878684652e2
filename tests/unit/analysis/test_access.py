"""Who is left out, and what a deadline does: tables of two seeds by hand."""

from pathlib import Path

import numpy as np

from benchmarks.analysis import access
from benchmarks.analysis.load import load
from benchmarks.federation.fairness import spread
from benchmarks.federation.recorder import Recorder, Totals, summarize_clients, summarize_figures
from tests.support import figures_of

MBPS = [1.0, 2.0, 4.0]


def record(out: Path, label: str, seed: int, deadline: float, accuracies: list[float], never: dict[int, float]) -> None:
    """A run of three clients; ``never``: accuracy of those never heard, when they have adapted."""
    folder = out / f"{deadline}" / label / f"seed{seed}"
    recorder = Recorder(folder, {"algo": label, "seed": seed, "deadline_seconds": deadline})
    figures = {client: figures_of(accuracy, 1.0, 50, accuracy) for client, accuracy in enumerate(accuracies)}
    recorder.round(1, figures, {}, Totals(0, 0, 0, 0, 0, 0), 1.0)
    joined = summarize_clients(dict(enumerate(accuracies)) | never)
    known = {"algo": label, "label": label, "dataset": "d", "partition": "p", "model": "mlp", "seed": seed}
    known |= {"rounds": 1, "clients": 3, "transmitted": {}, "partition_sha256": f"{seed}"}
    known |= {"parameters_per_client_round": {"up": 1, "down": 1}, "absent": {"dropped": 0, "late": len(never)}}
    known["access"] = {
        **{"down": MBPS, "up": MBPS, "samples": [30, 10, 20], "classes": [1.0, 2.0, 3.0]},
        **{"never_heard": sorted(never), "joined": joined | spread(joined["per_client"], MBPS)},
    }
    recorder.finish(known | summarize_figures(figures))
    recorder.close()


def test_tables_by_hand(tmp_path: Path) -> None:
    for seed in (0, 1):
        record(tmp_path, "fedavg-ft", seed, 0, [0.8, 0.8, 0.8], {})
        record(tmp_path, "fedavg-ft", seed, 2, [0.4, 0.6 + seed / 10, 0.8], {0: 0.5, 1: 0.6})
        record(tmp_path, "thin", seed, 0, [0.7, 0.7, 0.7], {})
        record(tmp_path, "thin", seed, 2, [0.6, 0.7, 0.8], {0: 0.6})
    arms = access.by_deadline(load([tmp_path]))
    assert list(arms) == [2, 0]
    closed, waiting = arms.values()
    lines = access.who_is_left_out(closed).splitlines()[2:]
    assert lines[0] == ("| `fedavg-ft` | 67 | 63.3 | 50.0 | 80.0 | 50.0 | 10.53 |")  # 1.2 / (2 · 9 · 1.9 / 3)
    assert lines[1] == ("| `thin` | 33 | 70.0 | 60.0 | 80.0 | 60.0 | 6.35 |")
    changes = access.what_the_deadline_does(closed, waiting).splitlines()[2:]
    # fedavg-ft: −30, −20 and 0 when adapted; as deployed −40, and −20 or −10.
    assert changes[0] == "| `fedavg-ft` | -16.7 | +0.0 | -25.0 | -27.5 |"
    assert changes[1] == "| `thin` | +0.0 | +5.0 | -10.0 | -10.0 |"
    # Client 1: 0.7 against 0.6 with the deadline, 0.7 against 0.8 without.
    assert access.those_brought_in(closed, waiting).splitlines()[2:] == ["| `thin` | 1 | +10.0 | -10.0 | +20.0 |"]
    by_size = access.other_fairness(closed).splitlines()[2]
    assert by_size == "| `fedavg-ft` | 60.0 | 50.0 | 50.0 | 80.0 |"
    heard, accuracy = access.draw(closed).axes
    assert heard.lines[0].get_ydata().tolist() == [0, 0, 100]
    assert np.allclose(accuracy.lines[1].get_ydata(), [60, 70, 80])
