"""Sets the methods side by side: one comparison for each data set and partition, under the same conditions."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.analysis.load import EndedRun, ReportError
from benchmarks.analysis.statistics import FEWEST, reached_alone, tabulate
from benchmarks.federation.compress import NONE
from benchmarks.federation.poison import NONE as CLEAN
from benchmarks.federation.recorder import whose
from benchmarks.federation.robust import MEAN
from benchmarks.federation.settings import noised


class Comparison(NamedTuple):
    """The methods on one data set and partition, under the same conditions."""

    dataset: str
    partition: str
    apart: str  # the conditions that set it apart from other comparisons on the same
    shared: str  # model, clients, rounds and seeds, in words
    table: pd.DataFrame  # indexed by method, best first: the columns of `tabulate`, and diverged, seeds
    target: float  # accuracy, a fraction
    notes: list[str]  # what keeps the rows from being alike
    runs: dict[str, list[EndedRun]]  # the finished runs by method, in the table's order
    ended: dict[str, list[EndedRun]]  # as ``runs``, with those that diverged
    commands: list[str]  # what runs each method again

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.dataset, self.partition, self.apart)))

    @property
    def name(self) -> str:
        """The title as part of a file's name."""
        return re.sub(r"[^\w.]+", "-", self.title)


def arrange(comparison: Comparison) -> dict[tuple[str, str, str, str], str]:
    """Returns the method of the table by optimizer, parameterization, bits up and bits down, where one finished."""
    found = {}
    for method, (run, *_) in comparison.runs.items():
        bits = (run.settings.get(key, "32") for key in ("quantize", "quantize_down"))
        weights = run.summary.get("parameterization", "dense")
        optimizer = "fedavg" if run.summary["algo"] == weights else run.summary["algo"]
        local = run.hyper["optimizer"]
        apart = [f"-{local}" * (local != "sgd"), *(f"-dense-{name}" for name in run.settings.get("dense", []))]
        apart += ["-alternate"] * run.settings.get("alternate", False)
        apart += [noised(run.settings.get("dp_clip", 0), run.settings.get("dp_noise", 0))]
        apart += [f"-{rule}" for rule in (run.settings.get("aggregate", MEAN),) if rule != MEAN]
        apart += [f"-{codec}" for codec in (run.settings.get("codec", NONE),) if codec != NONE]
        found["".join([optimizer, *apart, run.apart]), weights, *bits] = method
    return found


def take_notes(ended: dict[str, list[EndedRun]], finished: dict[str, list[EndedRun]]) -> list[str]:
    """Returns a sentence for each thing that keeps the rows of a table from being alike."""
    notes = []
    for algo, runs in ended.items():
        for run in runs:
            if d := run.summary.get("diverged"):
                place = f"round {d['round']}, {whose(d['client'])}, learning rate {d['lr']:g}"
                notes.append(f"{algo}, seed {run.summary['seed']}, diverged ({place}): {d['reason']}.")
    if (spec := next(iter(ended.values()))[0].settings.get("poison", CLEAN)) != CLEAN:
        notes.append(f"Clients that poison ({spec}) are in no figure of accuracy: those are of the other clients.")
    if uncounted := [algo for algo, runs in finished.items() if any("traffic_to_model" not in r.summary for r in runs)]:
        notes.append(f"Run again to count what is sent up to the model, older runs did not: {', '.join(uncounted)}.")
    if few := [algo for algo, runs in finished.items() if 0 < len(runs) < FEWEST]:
        notes.append(f"Fewer than {FEWEST} seeds, so no interval: {', '.join(few)}.")
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
    if len({content for _, content in partitions}) > 1 and any(len(runs) >= FEWEST for runs in finished.values()):
        notes.append("Seeds used different partitions, so an interval covers the draw of the partition as well.")
    return notes


def _values(runs: Iterable[EndedRun], key: str) -> str:
    return " ".join(map(str, sorted({run.summary[key] for run in runs})))


def command(runs: list[EndedRun]) -> str:
    """Returns the command line that gives one method's ``runs`` again."""
    no_options = ("hyper", "tuned", "shown", "partition_sha256", "links_sha256")
    given = {key: value for key, value in runs[0].settings.items() if value not in (None, "")}
    options = {key: value for key, value in given.items() if key not in no_options}
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
    every = dict.fromkeys(name for each in several for name in each)
    names = [n for n in every if any(n not in each or each[n] != several[0].get(n) for each in several)]
    return [[f"{name}={each[name]!s:.40}" if name in each else f"no {name}" for name in names] for each in several]


def name_methods(runs: list[EndedRun]) -> list[EndedRun]:
    """Returns the runs, those of one method with different hyper-parameters under names that tell them apart."""
    named = []
    for label in sorted({run.algo for run in runs}):
        alike = [run for run in runs if run.algo == label]
        texts = tell_apart([run.hyper for run in alike])
        for run, text in zip(alike, texts, strict=True):
            named.append(run._replace(apart="".join(f",{each}" for each in text)))
    return named


def count_once(runs: list[EndedRun]) -> tuple[list[EndedRun], list[str]]:
    """Returns the runs without those that repeat another one, and a note for each of these.

    Raises ReportError where the same run came out differently.
    """
    kept: dict[tuple[str, int], EndedRun] = {}
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


def check_names(known: Iterable[str], names: Iterable[str]) -> None:
    """Raises ReportError where one of the ``names`` is not ``known``."""
    known = sorted(set(known))
    if unknown := [name for name in names if name not in known]:
        raise ReportError(f"no run is of a method {unknown[0]}; there are: {', '.join(known)}")


def compare(
    runs: Iterable[EndedRun], target: float | None = None, methods: Collection[str] | None = None
) -> list[Comparison]:
    """Returns a comparison for each data set and partition, and for each choice of what is no method's own.

    ``target`` is an accuracy, the same for all; None has ``choose_target`` take one in each. With ``methods`` the
    tables hold these alone; targets and differences come from all.
    Raises ReportError where two runs contradict each other, or none is of one of the methods.
    """
    places: dict[tuple[str, str], list[tuple[dict[str, Any], list[EndedRun]]]] = {}
    for run in runs:
        groups = places.setdefault((run.summary["dataset"], run.summary["partition"]), [])
        group = next((group for conditions, group in groups if conditions == run.conditions), None)
        if group is None:
            groups.append((run.conditions, group := []))
        group.append(run)
    found, known = [], []
    for (dataset, partition), groups in sorted(places.items()):
        apart = tell_apart([conditions for conditions, _ in groups])
        for text, (_, group) in zip(apart, groups, strict=True):
            once, repeated = count_once(name_methods(group))
            known += [run.algo for run in once]
            if methods is None or any(run.algo in methods for run in once):
                found.append(_compare(dataset, partition, ", ".join(text), once, target, repeated, methods))
    check_names(known, methods or ())
    return found


def _compare(
    dataset: str,
    partition: str,
    apart: str,
    runs: list[EndedRun],
    target: float | None,
    notes: list[str],
    methods: Collection[str] | None,
) -> Comparison:
    ended: dict[str, list[EndedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.algo, run.summary["seed"])):
        ended.setdefault(run.algo, []).append(run)
    finished = {algo: [run for run in found if run.summary["accuracy"]] for algo, found in ended.items()}
    table, reached = tabulate(finished, target)
    alone = reached_alone(finished.get("local", []))
    if methods is not None:
        table = table[table.index.isin(methods)]
        ended = {algo: found for algo, found in ended.items() if algo in table.index}
        finished = {algo: finished[algo] for algo in ended}
        runs = [run for found in ended.values() for run in found]
    table.insert(1, "diverged", [len(ended[algo]) - len(finished[algo]) for algo in table.index])
    shared = "{}, {} clients, {} rounds, seeds {}".format(
        *(_values(runs, key) for key in ("model", "clients", "rounds", "seed"))
    )
    order = {algo: finished[algo] for algo in table.index if finished[algo]}
    every = {algo: ended[algo] for algo in table.index}
    commands = [command(found) for found in every.values()]
    notes = take_notes(ended, finished) + notes
    if reached <= alone:
        notes.append(f"Training alone reaches the target, {100 * reached:.1f} %: choose it above.")
    return Comparison(dataset, partition, apart, shared, table, reached, notes, order, every, commands)
