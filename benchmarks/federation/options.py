"""The command line: what it offers, what it means, and the sentence it answers nonsense with."""

import argparse
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import yaml
from pydantic import ValidationError

from baselines.base import Trainer
from benchmarks.federation import files, lock
from benchmarks.federation.experiment import Experiment
from benchmarks.federation.models import MODELS
from benchmarks.federation.registry import METHODS, build_trainer, find_method
from benchmarks.federation.settings import Settings, sentence
from data_partitions import check_partition, open_store, prepare

TUNED = Path(__file__).resolve().parents[1] / "tuned.yaml"
HYPER_OPTIONS = ("lr", "lr_decay", "epochs", "batch_size", "clip_norm", "gamma")


DESCRIPTION = """Runs methods of personalized federated learning side by side, through FedML's MPI runtime:

    mpirun -np 11 python benchmarks/run.py --algo pfedpara       # one server, ten clients

Where benchmarks/tuned.yaml covers the data set and the model, its hyper-parameters are the defaults."""


class UsageError(ValueError):
    """What the user asked for cannot be done; the text says what was wrong and what would be right."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the options)")


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="benchmarks/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def option(name: str, **kwargs: Any) -> None:
        field = Settings.model_fields[name]
        flag = "--" + name.replace("_", "-")
        default = [field.default] if kwargs.get("nargs") else field.default
        p.add_argument(flag, default=default, help=f"{field.description} (default: {field.default})", **kwargs)

    option("algo", nargs="+", metavar="NAME")
    option("dataset", metavar="NAME")
    option("data_dir", metavar="DIR")
    option("partition", nargs="+", metavar="SPEC")
    option("fraction", metavar="X")
    option("tuning", action="store_true")
    option("clients", metavar="N")
    p.add_argument("--clients-per-round", metavar="N", help="clients drawn for each round (default: all)")
    option("rounds", metavar="N")
    option("model", metavar="NAME")
    p.add_argument(
        "--parameterization",
        nargs="+",
        default=[None],
        metavar="NAME",
        help=Settings.model_fields["parameterization"].description,
    )
    option("quantize", nargs="+", metavar="BITS")
    option("quantize_down", metavar="BITS")
    option("seed", nargs="+", metavar="N")
    option("out", metavar="DIR")
    option("eval_every", metavar="N")
    option("checkpoint_every", metavar="N")
    option("checkpoint_minutes", metavar="M")
    option("comm_timeout", metavar="S")
    option("state_dir", metavar="DIR")
    option("dropout", metavar="P")
    option("stragglers", metavar="P")
    option("deadline", metavar="X")
    option("threads", metavar="N")
    option("device", metavar="NAME")
    option("histograms", action="store_true")
    for name in HYPER_OPTIONS:
        meaning = next(
            m.hyper_class.model_fields[name].description for m in METHODS.values() if name in m.hyper_class.model_fields
        )
        p.add_argument(
            "--" + name.replace("_", "-"),
            metavar="X",
            help=f"{meaning} (default: the method's; --algo help)",
        )
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="[ALGO.]NAME=VALUE",
        help="any other hyper-parameter (--algo help lists them)",
    )
    p.add_argument("--overwrite", action="store_true", help="run anew what is finished or begun, instead of going on")
    p.add_argument("--resume", action="store_true", help="go on where runs stopped, which is always done")
    p.add_argument("--verbose", action="store_true", help="show the libraries' warnings and log lines, and tracebacks")
    return p


def hyper_parameters(
    algo: str, parameterization: str | None, options: argparse.Namespace, tuned: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Returns all hyper-parameters of ``algo``: the method's own defaults, then the tuned, then the command line's; and
    the names of those that are the tuned ones.

    Raises UsageError for a name that none of the chosen methods has, or a value out of its range.
    """
    chosen: dict[str, set[str]] = {}  # names of each method's hyper-parameters, on any of the chosen weights
    for method, weights in itertools.product(options.algo, options.parameterization):
        chosen.setdefault(method, set()).update(find_method(method, weights).hyper_class.model_fields)
    Hyper = find_method(algo, parameterization).hyper_class
    given = [("", name, value) for name in HYPER_OPTIONS if (value := getattr(options, name)) is not None]
    for item in options.set:
        name, equals, value = item.partition("=")
        owner, dot, field = name.rpartition(".")
        if not equals or (dot and owner not in chosen):
            raise UsageError(f"--set takes [ALGO.]NAME=VALUE for one of the methods {', '.join(chosen)}, got {item!r}")
        given.append((owner, field, value))
    values, left = dict(tuned), set(tuned)
    for owner, field, value in sorted(given, key=lambda choice: bool(choice[0])):  # a method's own choice comes last
        if not any(field in chosen[a] for a in ([owner] if owner else chosen)):
            raise UsageError(f"no hyper-parameter {field!r} in {owner or ', '.join(chosen)} (--algo help lists them)")
        if owner in ("", algo) and field in Hyper.model_fields:
            values[field] = value
            left.discard(field)
    try:
        return Hyper(**values).model_dump(), sorted(left)
    except ValidationError as error:
        raise UsageError(f"{algo}: {sentence(error)}") from None


def explain_methods() -> str:
    """Returns a line for each method and one for each hyper-parameter that it does not share with FedAvg."""
    lines, common = [], METHODS["fedavg"].hyper_class.model_fields
    for name, trainer in METHODS.items():
        lines.append(f"{name:10} {(trainer.__doc__ or '').splitlines()[0]}")
        for field, info in trainer.hyper_class.model_fields.items():
            if name == "fedavg" or field not in common or info.default != common[field].default:
                lines.append(f"{'':10}   {field:15} {info.description} (default: {info.default})")
    return "\n".join(lines) + "\nEvery method has FedAvg's hyper-parameters as well."


def load_tuned(dataset: str, model: str) -> dict[str, dict[str, Any]]:
    """Returns the values that ``benchmarks/tune.py`` chose for each method, empty where it was not run for this case.

    What was chosen on dense weights also serves on others that were not tuned.
    """
    record = yaml.safe_load(TUNED.read_text()) if TUNED.exists() else {}
    section = record.get(dataset, {}).get(model, {"methods": {}})
    return {variant: entry["chosen"] for variant, entry in section["methods"].items()}


def explain_tuning(experiments: list[Experiment]) -> str:
    """Returns the line that says whose hyper-parameters are tuned."""
    tuned = {e.settings.variant: ", ".join(e.settings.tuned) for e in experiments if e.settings.tuned}
    others = dict.fromkeys(e.settings.variant for e in experiments if not e.settings.tuned)
    parts = [f"tuned on validation data (benchmarks/tuned.yaml): {', '.join(f'{v} ({n})' for v, n in tuned.items())}"]
    parts = parts * bool(tuned) + [f"not tuned: {', '.join(others)}"] * bool(others)
    return "; ".join(parts)


def settings_of(options: argparse.Namespace) -> list[Settings]:
    """Returns one experiment for each partition, seed and method, in this order. Raises UsageError."""
    if unknown := [algo for algo in options.algo if algo not in METHODS]:
        raise UsageError(f"--algo: no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    if options.model not in MODELS:
        raise UsageError(f"--model: no model {options.model!r}; there are {', '.join(MODELS)}")
    known = get_args(Settings.model_fields["parameterization"].annotation)
    if unknown := [weights for weights in options.parameterization if weights not in (None, *known)]:
        raise UsageError(f"--parameterization: no {unknown[0]!r}; there are {', '.join(known)}")
    common = {name: getattr(options, name) for name in Settings.model_fields if hasattr(options, name)}
    common["clients_per_round"] = options.clients_per_round or options.clients
    found = []
    chosen = load_tuned(options.dataset, options.model)
    lists = (options.partition, options.seed, options.algo, options.parameterization, options.quantize)
    for partition, seed, algo, weights, form in itertools.product(*lists):
        try:
            own = {"parameterization": find_method(algo, weights).parameterization, "quantize": form}
            settings = Settings(**common | {"partition": partition, "seed": seed, "algo": algo} | own)
        except ValidationError as error:
            raise UsageError(sentence(error)) from None
        except ValueError as error:
            raise UsageError(str(error)) from None
        hyper, tuned = hyper_parameters(algo, weights, options, chosen.get(settings.variant, chosen.get(algo, {})))
        found.append(settings.model_copy(update={"hyper": hyper, "tuned": tuned}))
        check_partition(settings.dataset, settings.partition, settings.clients)
    return list({settings.directory: settings for settings in found}.values())  # 00 is seed 0, .50 is α 0.5


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
        there = files.read_yaml(config)
        if ended:
            there["partition_sha256"] = files.read_json(directory / "summary.json").get("partition_sha256")
    except ValueError as error:
        raise UsageError(f"{error}; choose another --out or remove {directory}") from None
    there.setdefault("partition_sha256", here["partition_sha256"])  # runs of earlier versions
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


def plan(options: argparse.Namespace) -> tuple[list[Experiment], list[Path]]:
    """Checks all that was asked for, prepares the partitions and clears the way for each run.

    Returns the experiments that are due, and the directories of those that have ended before. Raises UsageError or
    DataError before anything of an earlier run is touched.
    """
    wanted = settings_of(options)
    if wanted[0].device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: torch finds no GPU for cuda here; take cpu")
    check_writable(Path(options.out))
    stores: dict[tuple[str, int], Path] = {}  # verifying one reads all its samples, and every method shares it
    for s in wanted:
        if (s.partition, s.seed) not in stores:
            stores[s.partition, s.seed] = prepare(
                s.dataset, s.data_dir, s.partition, s.clients, s.seed, s.out / "data", s.fraction, tuning=s.tuning
            )
    experiments = []
    trainers: dict[tuple[str, str], Trainer] = {}
    for s in wanted:
        try:
            with open_store(stores[s.partition, s.seed]) as opened:
                experiments.append(Experiment(s, stores[s.partition, s.seed], opened.sha256))
                if (s.label, s.partition) not in trainers:
                    trainers[s.label, s.partition] = build_trainer(s, opened)
                for samples in opened.sizes("train").tolist():
                    trainers[s.label, s.partition].check_client(samples)
        except ValueError as error:
            raise UsageError(f"{s.label}: {error}") from None
    due = take_up(experiments, options.overwrite)
    locked = [experiment.settings.directory for experiment in due]
    return due, [s.directory for s in wanted if s.directory not in locked]
