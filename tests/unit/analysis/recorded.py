"""Runs that the recorder itself writes, and the command line that compares them."""

import sys
from pathlib import Path

from benchmarks import report
from benchmarks.federation.recorder import Recorder, Totals, summarize_figures
from tests.support import figures_of


def record(
    out,
    algo,
    seed,
    rounds,
    sent=100,
    received=None,
    sha=None,
    diverged=None,
    judged_on="received",
    data=None,
    **changes,
):
    """Records a run of two clients.

    ``rounds`` holds each round's accuracies; ``sent`` and ``received`` are parameters per client and round. Judged on
    what they received, both clients need one more downlink; on what they trained, no uplink of the last round.
    """
    config = {"algo": algo, "dataset": "mnist5k", "partition": "dirichlet:0.5", "clients": 2, "rounds": len(rounds)}
    config |= {"model": "mlp", "seed": seed, "hyper": {"lr": 0.1}} | changes
    received = sent if received is None else received
    settings = {key: value for key, value in config.items() if key != "label"}
    folder = Path(out) / config["partition"] / algo / f"seed{seed}"
    recorder = Recorder(folder, settings)
    figures, totals = {}, Totals(0, 0, 0, 0, 0, 0)
    to_model = 2 * received if judged_on == "received" else -2 * sent
    for number, accuracies in enumerate(rounds, 1):
        figures = {client: figures_of(a, 1 - a, 50, a) for client, a in enumerate(accuracies)}
        transmitted = [2 * number * n for n in (sent, received, 4 * sent, 4 * received)]
        last = sum(transmitted[:2]) + to_model
        totals = Totals(*transmitted, last, 4 * last)
        recorder.round(number, figures, {}, totals, float(number))
    summary = {key: value for key, value in config.items() if key != "hyper"}
    if diverged:
        summary |= {"accuracy": None, "diverged": diverged}
    else:
        summary |= summarize_figures(figures)
    summary |= {
        "parameters_per_client_round": {"up": sent, "down": received},
        "transmitted": {name: count for name, count in vars(totals).items() if name.endswith(("_up", "_down"))},
        "traffic_to_model": {"parameters": totals.parameters_to_model, "bytes": totals.bytes_to_model},
        "partition_sha256": sha or f"partition {seed}",
    }
    if data:
        summary["samples_sha256"] = data
    recorder.finish(summary)
    recorder.close()
    return recorder.directory


def run_report(monkeypatch, capsys, *arguments):
    """Returns exit status, standard output and standard error of the command line."""
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    try:
        report.main()
        status = 0
    except SystemExit as end:
        status = end.code
    return (status, *capsys.readouterr())
