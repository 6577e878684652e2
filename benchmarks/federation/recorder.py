"""What a run writes: config.yaml, its tables, summary.json, and TensorBoard's event file."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from benchmarks.federation import files
from benchmarks.federation.ledger import Entry
from benchmarks.federation.metrics import METRICS, ClientFigures, Metric, NewcomerFigures, metrics_of
from benchmarks.federation.poison import NONE
from benchmarks.federation.run_tables import OF_METRICS, STATISTICS, TABLES, Extent, Table, columns_of, tags_of
from benchmarks.federation.settings import NAMING
from benchmarks.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.federation.trackers import Trackers


@dataclass(frozen=True)
class Totals:
    """What all clients have sent (up) and received (down) since the run began, and how often one was absent."""

    parameters_up: int
    parameters_down: int
    bytes_up: int
    bytes_down: int
    parameters_to_model: int  # to be sent until the models that are judged are on the clients
    bytes_to_model: int
    dropped: int = 0  # participants that failed in a round
    late: int = 0  # participants that the deadline shut out
    gradients: int | None = None  # of a sample's loss, training and what precedes the judging; None: not counted


TAGS = OF_METRICS | {
    "accuracy_mean": "accuracy/mean",
    "accuracy_std": "accuracy/std over clients",
    "accuracy_worst_decile": "accuracy/worst decile",
    "accuracy_received_mean": "received accuracy/mean",
    "validation_accuracy_mean": "validation accuracy/mean",
    "loss_mean": "loss/mean",
    "parameters_to_model": "traffic up to the model/parameters",
    "bytes_to_model": "traffic up to the model/bytes",
    "seconds": "seconds/training and evaluation",
}
"""TensorBoard's name of a column of rounds.csv. Its page of hyper-parameters shows the five tags that come first in the
alphabet: with these names, accuracy, its spread and worst decile, and what was transmitted."""

NO_COLUMN = {*NAMING, "partition_sha256", "links_sha256", "tuning", "eval_every", "threads", "device"}
"""What that page has no column for: how a run is made, not what is compared. ``label`` has what sets it apart."""


def whose(client: int | None) -> str:
    """Returns who left the finite numbers, in words: a client, or the server's aggregate."""
    return "server" if client is None else f"client {client}"


def summarize_figures(
    figures: Mapping[int, ClientFigures], metrics: Iterable[Metric] = METRICS
) -> dict[str, dict[str, Any]]:
    """Returns the summary of each metric and of ``validation_accuracy`` by name; NaN where a client's is missing."""
    better = {metric.name: metric.higher_is_better for metric in metrics} | {"validation_accuracy": True}
    return {
        name: summarize_clients({client: known.get(name, math.nan) for client, known in figures.items()}, higher)
        for name, higher in better.items()
    }


def summarize_newcomers(figures: Mapping[int, NewcomerFigures]) -> dict[str, dict[str, Any]]:
    """Returns the summary of each figure by name; NaN where a client's is missing."""
    found: dict[str, dict[int, float]] = {"received": {}, "adapted": {}}
    for client, known in figures.items():
        for name, accuracy in known.items():
            found[name][client] = math.nan if accuracy is None else accuracy
    return {name: summarize_clients(of) for name, of in found.items()}


def summarize_clients(figures: Mapping[int, float], higher_is_better: bool = True) -> dict[str, Any]:
    """Returns mean, std, worst_decile and per_client of one figure per client; every client counts alike.

    ``std`` is the population's, over clients. ``worst_decile`` is the mean of the worst ⌈n/10⌉ of n clients, NaN first.
    ``per_client`` lists the figures in the order of the clients' numbers.
    """
    per_client = [float(figures[client]) for client in sorted(figures)]
    worst = sorted(per_client, key=lambda value: (not math.isnan(value), value if higher_is_better else -value))
    return {
        "mean": float(np.mean(per_client)),
        "std": float(np.std(per_client)),
        "worst_decile": float(np.mean(worst[: math.ceil(len(per_client) / 10)])),
        "per_client": per_client,
    }


class Recorder:
    """The files of one run."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        kept: Mapping[str, Extent] | None = None,
        command: str = "",
        trackers: "Trackers | None" = None,
    ) -> None:
        """Creates the run's ``directory``. Of an earlier start, the rows that were ``kept`` stay in its tables.

        ``config`` holds plain values, the method's hyper-parameters under ``hyper``. TensorBoard shows the ``command``.
        ``trackers`` hear of each round and of the end.
        Raises OSError where the directory cannot be written.
        """
        from benchmarks.federation.board import Board

        directory.mkdir(parents=True, exist_ok=True)
        self.config, self.directory, self.trackers = config, directory, trackers
        self.metrics = metrics_of(config.get("metric", ()), config.get("poison", NONE))
        self.tags = TAGS | {column: tag for column, tag in tags_of(self.metrics).items() if column not in TAGS}
        (directory / "summary.json").unlink(missing_ok=True)  # it vouches for a run that has ended
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        files.write(directory / "config.yaml", text.encode())
        self.tables = {
            name: Table(directory / name, columns_of(name, self.metrics), (kept or {}).get(name)) for name in TABLES
        }
        # The event file is written anew from the rows that stay: purge_step counts rounds, so it would hide every point
        # whose step is a number of parameters.
        for events in directory.glob("events.out.tfevents.*"):
            events.unlink()
        self.board = Board(directory)
        for name, lines in {"command": [command], "config": text.splitlines()}.items():
            self.board.add_text(name, "\n".join(f"    {printable(line)}" for line in lines))  # indented: as it is
        accuracies = defaultdict(list)
        for row in self.tables["clients.csv"].read():
            accuracies[row["round"]].append(float(row["accuracy"]))
        for row in self.tables["rounds.csv"].read():
            self._plot({key: float(text) for key, text in row.items() if text}, accuracies[row["round"]])
        self.board.flush()

    def round(
        self,
        number: int,
        figures: Mapping[int, ClientFigures],
        received_accuracy: Mapping[int, float],
        totals: Totals,
        seconds: float,
    ) -> None:
        """Adds round ``number``, counted from 1.

        ``figures`` has at least one client. ``received_accuracy`` is each client's test accuracy on the new aggregate
        with its private tensors, before it trains again; it may be empty. ``seconds`` is the run's time so far.
        """
        summaries = summarize_figures(figures, self.metrics)
        row = {"round": number, **vars(totals), "seconds": seconds}
        row |= {f"{name}_{key}": of[key] for name, of in summaries.items() for key in STATISTICS}
        if received_accuracy:
            row["accuracy_received_mean"] = summarize_clients(received_accuracy)["mean"]
        clients = sorted(figures.items())
        self.tables["clients.csv"].add_named({"round": number, "client": c, **known} for c, known in clients)
        self.tables["rounds.csv"].add_named([row])
        self._plot(row, summaries["accuracy"]["per_client"])
        self.board.flush()

    def ledger(self, entries: Iterable[Entry]) -> None:
        """Adds what was sent, message by message."""
        self.tables["ledger.csv"].add(entries)

    def weights(self, number: int, weights: Mapping[str, "Tensor"]) -> None:
        """Adds a histogram of each of the global model's ``weights`` after round ``number`` to TensorBoard."""
        for name, weight in weights.items():
            self.board.add_histogram(f"weights/{name}", weight, number)

    def _plot(self, row: Mapping[str, float], accuracies: list[float]) -> None:
        """Adds one row of rounds.csv and the clients' accuracies of that round to TensorBoard."""
        number = int(row["round"])
        if self.trackers:
            self.trackers.round(row)
        for column, tag in self.tags.items():
            if column in row:
                self.board.add_scalar(tag, row[column], number)
        parameters = int(row["parameters_up"] + row["parameters_down"])
        self.board.add_scalar("communication/parameters", parameters, number)
        self.board.add_scalar("communication/bytes", row["bytes_up"] + row["bytes_down"], number)
        if parameters:  # a method that sends nothing would be one vertical line
            self.board.add_scalar("communication/personalized accuracy by parameters", row["accuracy_mean"], parameters)
        self.board.add_histogram("clients/accuracy", np.array(accuracies), number)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, whole or not at all, and the run's line on TensorBoard's page of hyper-parameters.

        Numbers that are not finite become null. A summary with ``diverged`` is marked so on that page.
        Raises OSError where a file of the run has vanished meanwhile.
        """
        from torch.utils.tensorboard.summary import hparams

        self.sync()
        text = json.dumps(_finite(summary), indent=2, allow_nan=False, ensure_ascii=False)
        outcome = "diverged" if "diverged" in summary else "finished"
        values = {**self.config, **self.config.get("hyper", {}), "label": summary.get("label"), "outcome": outcome}
        plain = {key for key, value in values.items() if isinstance(value, bool | int | float | str)}
        values = {key: values[key] for key in values if key in plain - NO_COLUMN}
        values = {key: printable(value) if isinstance(value, str) else value for key, value in values.items()}
        # Not add_hparams: it opens a second run, and TensorBoard takes the columns of the page from whichever run's
        # experiment record it meets first. Without one it joins the settings of all runs.
        _, start, end = hparams(values, {})
        self.board.add_summary(start)
        self.board.add_summary(end)
        self.board.flush()
        files.write(self.directory / "summary.json", f"{text}\n".encode(errors="backslashreplace"))
        if self.trackers:
            self.trackers.finish(outcome)

    def sync(self) -> dict[str, Extent]:
        """Brings all files to the disk, so that a checkpoint never knows more rounds than they do.

        Returns how much of each table is there. Raises OSError where a file has vanished.
        """
        for path in (self.directory / "config.yaml", self.board.path, *(table.path for table in self.tables.values())):
            files.sync(path)
        return {name: table.extent for name, table in self.tables.items()}

    def close(self) -> None:
        self.board.close()


def _finite(value: Any) -> Any:
    """Returns ``value`` with None in place of each float that JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
