"""Reads recorded runs, and refuses a torn one in a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import BaseModel, ValidationError

from benchmarks.federation import files
from benchmarks.federation.metrics import METRICS, recorded_metrics
from benchmarks.federation.settings import NAMING, complete, show

OWN = {"algo", "metric", "parameterization", "dense", "alternate", "quantize", "quantize_down", "codec", "hyper"}
OWN |= {"aggregate", "dp_clip", "dp_noise", "dp_seed", "seed", "partition_sha256", *NAMING}
"""The settings in which the runs of one comparison may differ."""

LATER = {"optimizer": "sgd", "weight_decay": 0.0, "keep_optimizer": False, "augment": False}
"""The hyper-parameters that runs of earlier versions do not name, as they had them."""


FURTHER = ("seconds", "gradients", "flops", "accuracy_worst_decile", *(f"{metric.name}_mean" for metric in METRICS))
"""Columns of rounds.csv that runs of some versions lack, or rows of runs that were begun by them."""


class ReportError(Exception):
    """The runs cannot be compared; the text says why in one sentence."""


class EndedRun(NamedTuple):
    """One run that has ended, finished or diverged."""

    folder: Path
    summary: dict[str, Any]  # summary.json
    # A row a round: round, accuracy_mean, parameters and bytes (sent and received so far by all clients), to_model and
    # bytes_to_model (those to be sent until the judged models are on the clients), and FURTHER as it is in rounds.csv.
    # NaN where the run did not record a figure.
    rounds: pd.DataFrame
    settings: dict[str, Any]  # config.yaml
    apart: str = ""  # the hyper-parameters that set it apart from other runs of its method, such as ",gamma=0.1"

    @property
    def algo(self) -> str:
        """The method, with what else was chosen that is not its own."""
        return self.summary["label"] + self.apart

    @property
    def conditions(self) -> dict[str, Any]:
        """What all runs of one comparison have in common: the data, and every setting that is not in OWN."""
        data = str(self.summary.get("samples_sha256", "unknown"))[:12]
        return {"data": data} | {key: value for key, value in complete(self.settings).items() if key not in OWN}

    @property
    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters, with LATER where the run does not name these."""
        return LATER | self.settings.get("hyper", {})

    @property
    def partition(self) -> tuple[int, str]:
        """Seed and content of the partition: equal for two runs whose clients can be compared one by one."""
        return self.summary["seed"], self.summary["partition_sha256"]


class Accuracy(BaseModel, allow_inf_nan=False):
    mean: float
    std: float
    worst_decile: float
    per_client: list[float]


class Summary(BaseModel, allow_inf_nan=False):
    """What a summary.json must hold to be compared."""

    algo: str
    dataset: str
    partition: str
    model: str
    seed: int
    rounds: int
    clients: int
    accuracy: Accuracy | None
    parameters_per_client_round: dict[Literal["up", "down"], int]
    transmitted: dict[str, int]
    partition_sha256: str


def load(folders: Sequence[Path]) -> list[EndedRun]:
    """Returns the runs below ``folders`` that have ended. Raises ReportError where there is none, or one is torn."""
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"there is no folder {folder}")
    found = sorted({path.parent for folder in folders for path in folder.rglob("summary.json")})
    if not found:
        raise ReportError(f"no run in {', '.join(map(str, folders))} has ended: there is no summary.json")
    return [_load_run(folder) for folder in found]


def find_unfinished(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of runs that have begun and not ended."""
    begun = {path.parent for folder in folders for path in folder.rglob("rounds.csv")}
    return sorted(folder for folder in begun if not (folder / "summary.json").exists())


def _load_run(folder: Path) -> EndedRun:
    try:
        summary = files.read_json(folder / "summary.json")
        config = files.read_yaml(folder / "config.yaml")
    except ValueError as error:
        raise ReportError(str(error)) from None
    if missing := sorted(Summary.model_fields.keys() - summary.keys()):
        raise ReportError(f"{folder / 'summary.json'} lacks {', '.join(missing)}")
    try:
        Summary.model_validate(summary)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        wrong = ".".join(map(str, first["loc"]))[:80]
        raise ReportError(f"{folder / 'summary.json'} cannot be used: {wrong}: {first['msg']}") from None
    try:
        metrics = recorded_metrics([summary])
    except (AttributeError, TypeError):
        raise ReportError(f"{folder / 'summary.json'} cannot be used: metrics holds no metrics' words") from None
    if not isinstance(config.get("hyper", {}), dict):
        raise ReportError(f"{folder / 'config.yaml'} cannot be used: hyper holds no names and values")
    summary.setdefault("label", summary["algo"])
    for name in complete(config)["shown"]:  # what sets whole comparisons apart stands in their titles
        if name in config and name not in OWN:
            summary["label"] = summary["label"].replace(f",{show(name, config[name])}", "")
    weights = summary.get("parameterization", "dense")
    if summary["algo"] == "fedavg" and weights != "dense":  # as FedAvg on factors was called once
        summary |= {"algo": weights, "label": summary["label"].removeprefix("fedavg-")}
    return EndedRun(
        folder, summary, _load_rounds(folder / "rounds.csv", {f"{metric.name}_mean" for metric in metrics}), config
    )


def _load_rounds(path: Path, means: set[str]) -> pd.DataFrame:
    needed = {"round", "accuracy_mean", "parameters_up", "parameters_down"}
    strict = [*needed, "parameters_to_model"]
    known = {*strict, "bytes_up", "bytes_down", "bytes_to_model", *FURTHER, *means}
    try:
        text = pd.read_csv(path, usecols=lambda name: name in known, skip_blank_lines=False)
        rounds = pd.DataFrame({name: pd.to_numeric(text[name], errors="coerce") for name in needed.union(text)})
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    wrong = rounds.filter(strict).isna().any(axis=1) | (rounds["round"].diff() <= 0)
    if wrong.any():
        row = int(wrong.idxmax())
        values = ", ".join(f"{name} {text[name][row]!s:.40}" for name in text if name in strict)
        raise ReportError(f"{path}, line {row + 2}, is no row of a round that follows the one before: {values}")
    rounds = rounds.reindex(columns=sorted(known))
    rounds["to_model"] = rounds["parameters_to_model"]
    for unit in ("parameters", "bytes"):
        rounds[unit] = rounds[f"{unit}_up"] + rounds[f"{unit}_down"]
    return rounds
