"""Reads recorded runs and sets the methods side by side, one comparison for each data set and partition."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError
from scipy.special import stdtrit

from benchmarks.federation import files
from benchmarks.federation.recorder import whose

TARGET = 0.95
"""The default target accuracy, as a share of the best method's final accuracy."""

REFERENCE = "pfedpara"
"""The method that all are compared with, seed by seed."""

OWN = {"algo", "parameterization", "quantize", "quantize_down", "hyper", "tuned", "seed", "partition_sha256"}
"""The settings in which the runs of one comparison may differ."""


class ReportError(Exception):
    """The runs cannot be compared; the text says why in one sentence."""


class Run(NamedTuple):
    """One run that has ended, finished or diverged."""

    folder: Path
    summary: dict[str, Any]  # summary.json
    # A row a round: round, accuracy_mean, parameters (sent and received so far by all clients), and to_model (those
    # to be sent until the judged models are on the clients; NaN where the run did not count them).
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
        return {"data": data} | {key: value for key, value in self.settings.items() if key not in OWN}

    @property
    def partition(self) -> tuple[int, str]:
        """Seed and content of the partition: equal for two runs whose clients can be compared one by one."""
        return self.summary["seed"], self.summary["partition_sha256"]


class Comparison(NamedTuple):
    """The methods on one data set and partition, under the same conditions."""

    dataset: str
    partition: str
    apart: str  # the conditions that set it apart from other comparisons on the same
    shared: str  # model, clients, rounds and seeds, in words
    table: pd.DataFrame  # indexed by method, best first: the columns of `tabulate`, and diverged, seeds
    target: float  # accuracy, a fraction
    notes: list[str]  # what keeps the rows from being alike
    runs: dict[str, list[Run]]  # the finished runs by method, in the table's order
    commands: list[str]  # what runs each method again

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.dataset, self.partition, self.apart)))

    @property
    def name(self) -> str:
        """The title as part of a file's name."""
        return re.sub(r"[^\w.]+", "-", self.title)


def load(folders: Sequence[Path]) -> list[Run]:
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


def _load_run(folder: Path) -> Run:
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
    if not isinstance(config.get("hyper", {}), dict):
        raise ReportError(f"{folder / 'config.yaml'} cannot be used: hyper holds no names and values")
    summary.setdefault("label", summary["algo"])
    return Run(folder, summary, _load_rounds(folder / "rounds.csv"), config)


def _load_rounds(path: Path) -> pd.DataFrame:
    needed = {"round", "accuracy_mean", "parameters_up", "parameters_down"}
    known = needed | {"parameters_to_model"}
    try:
        text = pd.read_csv(path, usecols=lambda name: name in known, dtype=str, skip_blank_lines=False)
        rounds = pd.DataFrame({name: pd.to_numeric(text[name], errors="coerce") for name in needed.union(text)})
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    wrong = rounds.isna().any(axis=1) | (rounds["round"].diff() <= 0)
    if wrong.any():
        row = int(wrong.idxmax())
        values = ", ".join(f"{name} {text[name][row]!s:.40}" for name in text)
        raise ReportError(f"{path}, line {row + 2}, is no row of a round that follows the one before: {values}")
    rounds["to_model"] = rounds.get("parameters_to_model", np.nan)
    rounds["parameters"] = rounds["parameters_up"] + rounds["parameters_down"]
    return rounds


def half_interval(values: Sequence[float]) -> float:
    """Returns half the width of the 95 % interval of the mean (Student's t); NaN for fewer than two values."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def mean_of_all(values: pd.Series) -> float:
    """Returns the mean; NaN where one value is."""
    return float(values.mean(skipna=False))


def mean_curve(runs: list[Run]) -> pd.DataFrame:
    """Returns parameters, to_model, accuracy and half_interval, a row for each round that every run recorded.

    Means over the runs; NaN where one of them lacks the figure.
    """
    rounds = pd.concat([run.rounds for run in runs]).groupby("round")
    curve = pd.DataFrame(
        {
            "parameters": rounds["parameters"].mean(),
            "to_model": rounds["to_model"].agg(mean_of_all),
            "accuracy": rounds["accuracy_mean"].mean(),
            "half_interval": rounds["accuracy_mean"].agg(half_interval),
        }
    )
    return curve[rounds.size() == len(runs)]


def differences_to_local(runs: list[Run], local: list[Run]) -> list[np.ndarray]:
    """Returns each client's accuracy less the same client's on its own: (clients,) for each run with a partner."""
    alone = {run.partition: run.summary["accuracy"]["per_client"] for run in local}
    return [
        np.subtract(run.summary["accuracy"]["per_client"], alone[run.partition])
        for run in runs
        if run.algo != "local" and run.partition in alone
    ]


def differences_to_reference(runs: list[Run], reference: list[Run]) -> list[float]:
    """Returns each run's mean accuracy less the reference's on the same seed and partition."""
    theirs = {run.partition: run.summary["accuracy"]["mean"] for run in reference}
    return [
        run.summary["accuracy"]["mean"] - theirs[run.partition]
        for run in runs
        if run.algo != REFERENCE and run.partition in theirs
    ]


def reached_alone(local: list[Run]) -> float:
    """Returns the highest accuracy after any round of the ``local`` runs, a mean over them; NaN where there is none."""
    return float(mean_curve(local)["accuracy"].max()) if local else float("nan")


def choose_target(best: float, alone: float) -> float:
    """Returns the default target: TARGET of the ``best`` method's final accuracy, but above what training ``alone``
    reaches. Where that is not above, the middle between the two accuracies; NaN where no method is better than alone.
    """
    if not TARGET * best <= alone:
        return TARGET * best
    return (alone + best) / 2 if best > alone else float("nan")


def tabulate(runs: dict[str, list[Run]], target: float | None) -> tuple[pd.DataFrame, float]:
    """Returns a row for each method of ``runs``, best first, and the target accuracy that its last column is about.

    Means over seeds: accuracy with half_interval, difference (to the REFERENCE on the same seed and partition) with
    half_interval_of_difference, worst_decile and below_local (share of clients), as fractions; up and down, parameters
    a client and round, and bytes_up and bytes_down; transmitted, parameters in all, and bytes; to_model and
    bytes_to_model, those to be sent until the models judged last are on the clients; to_target, these parameters for
    the round in which the mean over seeds first reaches the target. NaN where a method has no such figure. Without a
    ``target``, ``choose_target`` takes one.
    """
    columns = ["accuracy.mean", "accuracy.worst_decile", "parameters_per_client_round.up"]
    columns += ["parameters_per_client_round.down"]
    columns += [f"transmitted.{what}_{way}" for what in ("parameters", "bytes") for way in ("up", "down")]
    flat = pd.json_normalize([run.summary | {"label": run.algo} for finished in runs.values() for run in finished])
    to_model = ["traffic_to_model.parameters", "traffic_to_model.bytes"]
    seeds = flat.reindex(columns=["label", *columns, *to_model]).groupby("label")
    mean = seeds[columns].mean()
    if target is None:
        target = choose_target(mean["accuracy.mean"].max(), reached_alone(runs.get("local", [])))
    sent = {  # bytes of a message; 0 where none was sent
        way: mean[f"transmitted.bytes_{way}"]
        / mean[f"transmitted.parameters_{way}"].clip(lower=1)
        * mean[f"parameters_per_client_round.{way}"]
        for way in ("up", "down")
    }
    below, to_target, paired = {}, {}, {}
    for algo, finished in runs.items():
        if differences := differences_to_local(finished, runs.get("local", [])):
            below[algo] = np.mean(np.concatenate(differences) < 0)
        paired[algo] = differences_to_reference(finished, runs.get(REFERENCE, []))
        if finished:
            curve = mean_curve(finished)
            to_target[algo] = curve.loc[curve["accuracy"] >= target, "to_model"].head(1).min()
    table = pd.DataFrame(
        {
            "seeds": seeds.size(),
            "accuracy": mean["accuracy.mean"],
            "half_interval": seeds["accuracy.mean"].agg(half_interval),
            "difference": pd.Series({algo: np.mean(found) for algo, found in paired.items() if found}, dtype=float),
            "half_interval_of_difference": pd.Series(
                {algo: half_interval(found) for algo, found in paired.items()}, dtype=float
            ),
            "worst_decile": mean["accuracy.worst_decile"],
            "below_local": pd.Series(below, dtype=float),
            "up": mean["parameters_per_client_round.up"],
            "down": mean["parameters_per_client_round.down"],
            "bytes_up": sent["up"],
            "bytes_down": sent["down"],
            "transmitted": mean["transmitted.parameters_up"] + mean["transmitted.parameters_down"],
            "bytes": mean["transmitted.bytes_up"] + mean["transmitted.bytes_down"],
            "to_model": seeds["traffic_to_model.parameters"].agg(mean_of_all),
            "bytes_to_model": seeds["traffic_to_model.bytes"].agg(mean_of_all),
            "to_target": pd.Series(to_target, dtype=float),
        },
        index=pd.Index(runs, name="method"),
    )
    table["seeds"] = table["seeds"].fillna(0).astype(int)
    return table.sort_values("accuracy", ascending=False, kind="stable"), target


def arrange(comparison: Comparison) -> dict[tuple[str, str, str, str], str]:
    """Returns the method of the table by optimizer, parameterization, bits up and bits down, where one finished."""
    found = {}
    for method, (run, *_) in comparison.runs.items():
        bits = (run.settings.get(key, "32") for key in ("quantize", "quantize_down"))
        found[run.summary["algo"] + run.apart, run.summary.get("parameterization", "dense"), *bits] = method
    return found


def take_notes(ended: dict[str, list[Run]], finished: dict[str, list[Run]]) -> list[str]:
    """Returns a sentence for each thing that keeps the rows of a table from being alike."""
    notes = []
    for algo, runs in ended.items():
        for run in runs:
            if d := run.summary.get("diverged"):
                place = f"round {d['round']}, {whose(d['client'])}, learning rate {d['lr']:g}"
                notes.append(f"{algo}, seed {run.summary['seed']}, diverged ({place}): {d['reason']}.")
    if uncounted := [algo for algo, runs in finished.items() if any("traffic_to_model" not in r.summary for r in runs)]:
        notes.append(f"Run again to count what is sent up to the model, older runs did not: {', '.join(uncounted)}.")
    if single := [algo for algo, runs in finished.items() if len(runs) == 1]:
        notes.append(f"One seed, so no interval: {', '.join(single)}.")
    seeds: dict[str, list[str]] = {}
    for algo, runs in finished.items():
        if runs:
            seeds.setdefault(_values(runs, "seed"), []).append(algo)
    if len(seeds) > 1:
        parts = [f"{found} ({', '.join(algos)})" for found, algos in seeds.items()]
        notes.append(f"Different seeds: {'; '.join(parts)}.")
    partitions = {run.partition for runs in ended.values() for run in runs}
    contents: dict[int, set[str]] = {}
    for seed, content in sorted(partitions):
        contents.setdefault(seed, set()).add(content)
    if split := [str(seed) for seed, found in contents.items() if len(found) > 1]:
        notes.append(f"With seed {', '.join(split)} the methods used different partitions: they do not compare.")
    if len({content for _, content in partitions}) > 1:
        notes.append("Seeds used different partitions, so an interval covers the draw of the partition as well.")
    return notes


def _values(runs: Iterable[Run], key: str) -> str:
    return " ".join(map(str, sorted({run.summary[key] for run in runs})))


def command(runs: list[Run]) -> str:
    """Returns the command line that gives one method's ``runs`` again."""
    no_options = ("hyper", "tuned", "partition_sha256")
    options = {key: value for key, value in runs[0].settings.items() if key not in no_options}
    options["seed"] = _values(runs, "seed").split()
    options["set"] = [f"{key}={value}" for key, value in runs[0].settings.get("hyper", {}).items()]
    words = ["python", "benchmarks/run.py"]
    for key, value in options.items():
        if isinstance(value, bool):  # a flag
            words += ["--" + key.replace("_", "-")] * value
            continue
        values = value if isinstance(value, list) else [value]
        if values:
            words += ["--" + key.replace("_", "-"), *map(str, values)]
    return shlex.join(words)


def tell_apart(several: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the entries of each mapping that are not the same in all, as "name=value"."""
    names = [name for name in dict.fromkeys(name for each in several for name in each) if _differ(several, name)]
    return [[f"{name}={each[name]!s:.40}" if name in each else f"no {name}" for name in names] for each in several]


def _differ(several: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(name not in each or each[name] != several[0].get(name) for each in several)


def name_methods(runs: list[Run]) -> list[Run]:
    """Returns the runs, those of one method with different hyper-parameters under names that tell them apart."""
    named = []
    for label in sorted({run.algo for run in runs}):
        alike = [run for run in runs if run.algo == label]
        texts = tell_apart([run.settings.get("hyper", {}) for run in alike])
        for run, text in zip(alike, texts, strict=True):
            named.append(run._replace(apart="".join(f",{each}" for each in text)))
    return named


def count_once(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Returns the runs without those that repeat another one, and a note for each of these.

    Raises ReportError where the same run came out differently.
    """
    kept: dict[tuple[str, int], Run] = {}
    notes = []
    for run in runs:
        first = kept.setdefault((run.algo, run.summary["seed"]), run)
        if first is run:
            continue
        if any(first.summary.get(key) != run.summary.get(key) for key in ("accuracy", "partition_sha256")):
            raise ReportError(
                f"{first.folder} and {run.folder} hold the same method, partition and seed with different results: "
                "name one of them only"
            )
        notes.append(f"{run.folder} repeats {first.folder} and is counted once.")
    return list(kept.values()), notes


def compare(runs: Iterable[Run], target: float | None = None) -> list[Comparison]:
    """Returns a comparison for each data set and partition, and for each choice of what is no method's own.

    ``target`` is an accuracy, the same for all; None has ``choose_target`` take one in each.
    Raises ReportError where two runs contradict each other.
    """
    places: dict[tuple[str, str], list[tuple[dict[str, Any], list[Run]]]] = {}
    for run in runs:
        groups = places.setdefault((run.summary["dataset"], run.summary["partition"]), [])
        group = next((group for conditions, group in groups if conditions == run.conditions), None)
        if group is None:
            groups.append((run.conditions, group := []))
        group.append(run)
    found = []
    for (dataset, partition), groups in sorted(places.items()):
        apart = tell_apart([conditions for conditions, _ in groups])
        for text, (_, group) in zip(apart, groups, strict=True):
            once, repeated = count_once(name_methods(group))
            found.append(_compare(dataset, partition, ", ".join(text), once, target, repeated))
    return found


def _compare(
    dataset: str, partition: str, apart: str, runs: list[Run], target: float | None, notes: list[str]
) -> Comparison:
    ended: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.algo, run.summary["seed"])):
        ended.setdefault(run.algo, []).append(run)
    finished = {algo: [run for run in found if run.summary["accuracy"]] for algo, found in ended.items()}
    table, reached = tabulate(finished, target)
    table.insert(1, "diverged", [len(ended[algo]) - len(finished[algo]) for algo in table.index])
    shared = "{}, {} clients, {} rounds, seeds {}".format(
        *(_values(runs, key) for key in ("model", "clients", "rounds", "seed"))
    )
    order = {algo: finished[algo] for algo in table.index if finished[algo]}
    commands = [command(ended[algo]) for algo in table.index]
    notes = take_notes(ended, finished) + notes
    if reached <= reached_alone(finished.get("local", [])):
        notes.append(f"Training alone reaches the target, {100 * reached:.1f} %: choose it above.")
    return Comparison(dataset, partition, apart, shared, table, reached, notes, order, commands)
