"""Which of the runs that were asked for are due, checked before anything of an earlier run is touched."""

import argparse
import importlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from baselines.aggregator import Aggregator
from baselines.base import Trainer
from benchmarks.federation import files, lock, poison, poisoners, privacy, robust
from benchmarks.federation.experiment import Experiment
from benchmarks.federation.metrics import check_metrics
from benchmarks.federation.models import check_logits
from benchmarks.federation.names import MODELS
from benchmarks.federation.options import settings_of
from benchmarks.federation.pace import Pace, links_of
from benchmarks.federation.participation import able_clients, faulty
from benchmarks.federation.registry import build_trainer, find_method
from benchmarks.federation.settings import NAMING, Settings, complete, flatten, show
from benchmarks.federation.suites import UsageError, read_suite
from benchmarks.federation.sweeps import differing
from benchmarks.federation.trackers import check_trackers
from benchmarks.terminal import printable
from data_partitions import DataError, Store, find_built, open_store, plugins, prepare
from pfedpara.parameterize import summarize


def explain_tuning(experiments: list[Experiment]) -> str:
    """Returns the line that says which hyper-parameters are tuned, and the learning rates of the other methods."""
    tuned, others = dict[str, str](), dict[str, str]()
    for s in (e.settings for e in experiments):
        said = ", ".join(f"{name} {s.hyper[name]}" for name in s.tuned or ["lr"])
        (tuned if s.tuned else others)[s.label] = said
    parts = {"tuned on validation data (benchmarks/tuned.yaml)": tuned, "not tuned": others}
    return "; ".join(
        f"{what}: {', '.join(f'{v} ({said})' for v, said in of.items())}" for what, of in parts.items() if of
    )


def what_is_there(config: Path, experiment: Settings) -> dict[str, Any]:
    """Returns what a ``config.yaml`` says, with today's default of what an earlier version did not write there yet.

    Raises ValueError where it cannot be read.
    """
    if "algo" not in (found := files.read_yaml(config)):
        raise ValueError(f"{config} is no run's: it names no algo")
    there = complete(found)
    if isinstance(there["hyper"], dict):
        method = find_method(experiment.algo, experiment.parameterization)
        there["hyper"] = {name: field.default for name, field in method.fields.items()} | there["hyper"]
    return there


def make_way(wanted: list[Settings]) -> list[Settings]:
    """Returns the runs, under a label that shows what differs where other settings have their folder already.

    Says so, once for each label.
    """
    labels: dict[Path, list[str]] = {}
    for s in wanted:
        folder = s.directory.parent
        if folder not in labels:
            configs = sorted(folder.glob("seed*/config.yaml"))
            try:
                there = what_is_there(configs[0], s) if configs else s.record()
            except ValueError:
                there = s.record()  # is_due says it
            if names := differing([s.record(), there]):
                apart = s.model_copy(update={"shown": list(dict.fromkeys([*s.shown, *names]))})
                differ = ", ".join(show(name, flatten(there).get(name)) for name in names)
                print(printable(f"{folder} holds runs with {differ}; {apart.label} is this one"), flush=True)
            labels[folder] = names
    return [
        s.model_copy(update={"shown": list(dict.fromkeys([*s.shown, *labels[s.directory.parent]]))}) for s in wanted
    ]


def explain_head(experiments: list[Experiment]) -> str:
    """Returns the line that says what pFedPara's last layer would cost if it were dense; none where it is dense."""
    ours = [e for e in experiments if e.settings.algo == "pfedpara" and not e.settings.dense]
    if not ours:
        return ""
    with open_store(ours[0].store, ours[0].partition_sha256, tried=True) as store:
        rows = summarize(build_trainer(ours[0].settings, store).model)
    head = next(row for row in reversed(rows) if len(row.shape) > 1)
    if not head.rank:
        return ""
    name, sent = head.name.rpartition(".")[0], sum(row.shared for row in rows)
    return (
        f"pfedpara: {name}, the last layer, has factors of rank {head.rank}; --dense {name} would send "
        f"{sent - head.shared + head.dense:,} parameters a client and round, not {sent:,}"
    )


def is_due(experiment: Experiment, overwrite: bool) -> bool:
    """Returns whether the run is to be made: it has not ended yet, or ``overwrite`` is asked for.

    Raises UsageError where its directory holds something else; ``overwrite`` replaces another run, but no other files.
    """
    directory, config = experiment.settings.directory, experiment.settings.directory / "config.yaml"
    if not config.exists():
        begun = {lock.NAME, "config.yaml.partial"}  # what a job leaves that is killed at once
        if directory.exists() and {path.name for path in directory.iterdir()} - begun:
            raise UsageError(f"{directory} holds files that are not a run's; choose another --out or remove them")
        return True
    ended, here = (directory / "summary.json").exists(), experiment.record()
    try:
        there = {"partition_sha256": experiment.partition_sha256} | what_is_there(config, experiment.settings)
        if ended:
            there["partition_sha256"] = files.read_json(directory / "summary.json").get("partition_sha256")
    except ValueError as error:
        raise UsageError(f"{error}; choose another --out or remove {directory}") from None
    here, there = ({n: v for n, v in each.items() if n not in NAMING} for each in (here, there))
    if there != here and not overwrite:
        key = next(key for key in {**here, **there} if there.get(key, "nothing") != here.get(key, "nothing"))
        what = "a run on other data or another partition" if key == "partition_sha256" else "a different experiment"
        raise UsageError(
            f"{directory} holds {what} ({key!s:.40}: {there.get(key)!s:.200} there, {here.get(key)} here); "
            "choose another --out or replace it with --overwrite"
        )
    return overwrite or not ended


def take_up(experiments: list[Experiment], overwrite: bool) -> list[Experiment]:
    """Returns the runs that are due, each with its directory locked, and empty with ``overwrite``.

    Raises UsageError, with nothing touched, where one of them cannot be taken up.
    """
    due = [experiment for experiment in experiments if is_due(experiment, overwrite)]
    try:
        for experiment in due:
            lock.hold(experiment.settings.directory)
        for experiment in list(due):
            if not is_due(experiment, overwrite):  # it has ended just now
                due.remove(experiment)
                lock.release(experiment.settings.directory)
    except (OSError, UsageError) as error:
        for experiment in due:
            lock.release(experiment.settings.directory)
        if not isinstance(error, BlockingIOError):
            raise
        raise UsageError(
            f"another job writes into {error.filename} ({error.strerror}); wait for its end or choose another --out"
        ) from None
    for experiment in due if overwrite else ():
        content = experiment.settings.directory.iterdir()
        for path in sorted(content, key=lambda path: path.name == "config.yaml"):  # a run's, until all else is gone
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != lock.NAME:
                path.unlink()
    return due


def check_writable(folder: Path) -> None:
    """Raises UsageError where no file can be made in ``folder``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--out: cannot write to {folder}: {os.strerror(error.errno or 0)}") from None


def find_store(s: Settings) -> Path:
    """Returns the run's partition: one that was built, or one that is prepared beside the runs. Raises DataError."""
    built = None if s.tuning or s.new_clients else find_built(s.dataset, s.partition, s.clients, s.seed, s.fraction)
    folder, embed = (built.parent, built.stem.endswith("-embedded")) if built else (s.out / "data", False)
    recipe = s.dataset, s.data_dir, s.partition, s.clients, s.seed, folder, s.fraction
    return prepare(*recipe, embed, s.tuning, s.choices, s.new_clients)


def check_partition_of_suite(experiments: list[Experiment], options: argparse.Namespace) -> None:
    """Raises UsageError where the suite is a run's config.yaml, and another partition comes out of it here."""
    name, chosen = getattr(options, "suite", None), vars(options).keys()
    if not name or chosen & {"dataset", "data_dir", "partition", "clients", "seed", "fraction", "tuning", "preset"}:
        return
    if there := read_suite(name).get("partition_sha256"):
        for here in (e.partition_sha256 for e in experiments if e.partition_sha256 != there):
            raise UsageError(
                f"{name} is of a run on other data or another partition (partition_sha256: {there!s:.64} there, {here} "
                "here); restore the data, or remove that line"
            )


def check_stock() -> None:
    """Raises UsageError where a package is missing that FedML's own managers import, and this suite does not."""
    try:
        importlib.import_module("fedml.simulation.mpi.fedavg.FedAvgAPI")
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"--runtime fedml needs the package {missing.name}; pip install -r requirements-stock.txt"
        ) from None


def check_runtime(s: Settings, trainer: Trainer, sizes: Sequence[int], ranks: int | None) -> None:
    """Raises ValueError where FedML's own managers cannot run this: each rank but the first trains each round.

    ``sizes``: samples of each client. ``ranks``: of this job, where that is known.
    """
    able = 1 if trainer.pools else len(able_clients(sizes[: s.clients]))
    taking_part = min(s.clients_per_round, able)
    if trainer.kept and taking_part < able:
        raise ValueError(
            f"--runtime fedml: clients keep private tensors, which FedML loses where they take turns; take "
            f"--clients-per-round {s.clients}, not {s.clients_per_round}, or --runtime own"
        )
    if trainer.addressed:
        raise ValueError(
            f"--runtime fedml sends all clients the same, but {s.algo} sends each a head of its own; take --runtime own"
        )
    if ranks not in (None, taking_part + 1):
        raise ValueError(
            f"--runtime fedml needs a rank for each of the {taking_part} participants of a round and one more: "
            f"-np {taking_part + 1}, not {ranks}"
        )


def check_links(s: Settings, trainer: Trainer, sizes: Sequence[int]) -> None:
    """Raises ValueError where the links cannot be had, or nobody is in time with them. ``sizes``: of each client."""
    links_of(s)
    if s.deadline_seconds:
        Pace(s, trainer, sizes).check()


def check_rule(s: Settings, trainer: Trainer, sizes: Sequence[int]) -> None:
    """Raises ValueError where ``--aggregate`` has nothing to choose from, or the method needs the mean.

    ``sizes``: samples of each client.
    """
    if not (rule := robust.parse(s.aggregate)[1]):
        return
    if trainer.aggregator_class.needs_mean:
        raise ValueError(f"--aggregate {s.aggregate}: what the method's server does needs the mean; take mean")
    if trainer.aggregator_class.aggregate is not Aggregator.aggregate:
        raise ValueError(f"--aggregate {s.aggregate}: the method aggregates by itself; take mean")
    taking_part = min(s.clients_per_round, len(able_clients(sizes[: s.clients])))
    if taking_part < rule.needs:
        raise ValueError(
            f"--aggregate {s.aggregate} needs {rule.needs} updates in each round, and {taking_part} clients take part; "
            "take more of them, or --aggregate median"
        )
    if rule.needs > 1 and faulty(s):
        raise ValueError(
            f"--aggregate {s.aggregate} needs {rule.needs} updates in each round, and with --dropout or --deadline "
            "fewer may arrive; take --aggregate median"
        )


def check_poison(s: Settings, trainer: Trainer, store: Store) -> None:
    """Raises ValueError where nobody would be left to judge, or the trigger fits no sample."""
    if s.poison != poison.NONE and trainer.pools:
        raise ValueError(f"--poison {s.poison}: one client trains on the samples of all; take another method")
    poisoners.check(s.poison, store, able_clients(store.sizes("train").tolist()[: s.clients]))


def plan(options: argparse.Namespace, ranks: int | None = None) -> tuple[list[Experiment], list[Path]]:
    """Checks all that was asked for, prepares the partitions and clears the way for each run.

    Returns the experiments that are due, and the directories of those that have ended before. Raises UsageError or
    DataError before anything of an earlier run is touched. ``ranks``: of the job that is to run them, if there is one.
    """
    wanted = settings_of(options)
    if not options.overwrite and not any(s.tuning for s in wanted):  # a trial is read under its plain label
        wanted = make_way(wanted)
    if wanted[0].device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: torch finds no GPU for cuda here; take cpu")
    if wanted[0].runtime == "fedml":
        check_stock()
    check_trackers(wanted[0].track)
    for folder in dict.fromkeys(s.out for s in wanted):
        check_writable(folder)
    stores: dict[tuple[Any, ...], Path] = {}  # verifying one reads all its samples, and every method shares it
    experiments = []
    trainers: dict[Path, Trainer] = {}
    for s in wanted:
        data = (s.dataset, s.data_dir, s.choices, s.fraction, s.tuning)
        recipe = (*data, s.partition, s.clients, s.new_clients, s.seed, s.out)
        if recipe not in stores:
            stores[recipe] = find_store(s)
        store, label = stores[recipe], s.directory.parent
        try:
            with open_store(store) as opened:
                experiments.append(Experiment(s, store, opened.sha256))
                check_metrics(s.metric, len(opened.classes))
                if label not in trainers:
                    trainers[label] = trainer = build_trainer(s, opened)
                    if s.model not in MODELS:
                        batch = torch.from_numpy(opened.samples(0, "train")[0][:2])
                        check_logits(s.model, trainer.model, batch, len(opened.classes))
                sizes = opened.sizes("train").tolist()
                for samples in sizes:
                    trainers[label].check_client(samples)
                privacy.check(s, trainers[label], sizes[: s.clients])
                if s.links:
                    check_links(s, trainers[label], sizes)
                check_rule(s, trainers[label], sizes)
                check_poison(s, trainers[label], opened)
                if s.runtime == "fedml":
                    check_runtime(s, trainers[label], sizes, ranks)
        except DataError:
            raise
        except ValueError as error:
            there = f"{place}: " if (place := plugins.place(error)) else ""
            raise UsageError(f"{s.label}: {there}{error}") from None
    check_partition_of_suite(experiments, options)
    due = take_up(experiments, options.overwrite)
    locked = [experiment.settings.directory for experiment in due]
    return due, [s.directory for s in wanted if s.directory not in locked]
