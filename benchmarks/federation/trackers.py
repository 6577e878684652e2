"""Trackers of experiments beside TensorBoard: MLflow and Weights & Biases, offline, and those of plug-ins."""

import hashlib
import importlib.util
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.federation.settings import Settings, flatten
from benchmarks.terminal import printable
from data_partitions import plugins


class Tracker(Protocol):
    """One run as a tracker has it, which a function of ``--out``, the run's name, its config and ``resumed`` opens.

    The config holds plain values. A resumed run tells its judged rounds again from the first one on.
    """

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Takes a judged round's figures and traffic, by their names in rounds.csv."""

    def finish(self, outcome: str) -> None:
        """Ends the run, ``finished`` or ``diverged``."""


class MLflow:
    """Writes into OUT/mlflow."""

    def __init__(self, out: Path, name: str, config: Mapping[str, Any], resumed: bool) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its databases need more packages
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self.client, self.last = MlflowClient((out / "mlflow").absolute().as_uri()), 0
        try:
            experiment = self.client.create_experiment("pfedpara")
        except MlflowException:  # it is there
            experiment = self.client.get_experiment_by_name("pfedpara").experiment_id
        key = {"pfedpara.run": hashlib.sha256(name.encode(errors="replace")).hexdigest()}
        words = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in key.items())
        earlier = self.client.search_runs([experiment], words, order_by=["start_time DESC"]) if resumed else []
        if earlier:
            self.id = earlier[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
            history = self.client.get_metric_history(self.id, "accuracy_mean")
            self.last = max((metric.step for metric in history), default=0)
        else:
            self.id = self.client.create_run(experiment, tags=key, run_name=name).info.run_id
            self.client.log_batch(self.id, params=[Param(n, printable(value)) for n, value in config.items()])

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if number > self.last:  # those before are there, from before the stop
            now = int(1000 * time.time())
            self.client.log_batch(self.id, [Metric(name, value, now, number) for name, value in figures.items()])

    def finish(self, outcome: str) -> None:
        self.client.set_tag(self.id, "outcome", outcome)
        self.client.set_terminated(self.id, "FINISHED" if outcome == "finished" else "FAILED")


class WandB:
    """Writes into OUT/wandb, offline; ``wandb sync`` takes it from there. A resumed run is told anew under its id."""

    def __init__(self, out: Path, name: str, config: Mapping[str, Any], resumed: bool) -> None:
        import wandb

        own = hashlib.sha256(f"{out.absolute()} {name}".encode(errors="replace")).hexdigest()[:16]
        for left in (out / "wandb").glob(f"offline-run-*-{own}"):
            shutil.rmtree(left)
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        self.run = wandb.init(
            project="pfedpara", id=own, name=name, config=dict(config), dir=str(out), mode="offline", settings=quiet
        )

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=number)

    def finish(self, outcome: str) -> None:
        import wandb

        self.run.summary["outcome"] = outcome
        self.run.finish(exit_code=int(outcome != "finished"))
        wandb.teardown()  # its process would outlive a rank that leaves by os._exit


TRACKERS: dict[str, Callable[..., Tracker]] = {"mlflow": MLflow, "wandb": WandB}
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


def find_tracker(name: str) -> Callable[..., Tracker]:
    """Returns what opens a tracker. Raises PluginError where there is none of that name, or it is not installed."""
    if name not in TRACKERS:
        found: Callable[..., Tracker] = plugins.find("track", name, TRACKERS)
        plugins.check_call("track", name, found, 4, "a function of --out, name, config and resumed")
        return found
    if importlib.util.find_spec(name) is None:
        raise plugins.PluginError(f"--track: {name} is not installed; install it with pip install {PACKAGES[name]}")
    return TRACKERS[name]


class Trackers:
    """The trackers of one run. One that fails says so once, and the run goes on without it."""

    def __init__(self, settings: Settings, resumed: bool) -> None:
        config, self.open = flatten(settings.record()) | {"label": settings.label}, dict[str, Tracker]()
        name = str(settings.directory.relative_to(settings.out))

        def begin(tracker: str) -> None:
            self.open[tracker] = find_tracker(tracker)(settings.out, name, config, resumed)

        for tracker in settings.track:
            self._try(tracker, partial(begin, tracker))

    def _try(self, name: str, do: Callable[[], Any]) -> None:
        try:
            do()
        except Exception as error:
            self.open.pop(name, None)
            sentence = f"--track {name}: {plugins.explain(error)}; the run goes on without it"
            print(printable(sentence), file=sys.stderr, flush=True)

    def round(self, row: Mapping[str, Any]) -> None:
        """Tells a row of rounds.csv; what it lacks, or is not finite, is left out."""
        figures = {n: v for n, v in row.items() if n != "round" and v is not None and math.isfinite(v)}
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.round, int(row["round"]), figures))

    def finish(self, outcome: str) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.finish, outcome))


def check_trackers(names: Iterable[str]) -> None:
    """Raises PluginError unless each of these trackers can be used."""
    for name in names:
        find_tracker(name)
