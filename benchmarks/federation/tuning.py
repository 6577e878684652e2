"""The search for hyper-parameters: what is tried, what a trial scores, and what is recorded of it."""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import yaml

from benchmarks.federation.options import layer, settings_of
from benchmarks.federation.registry import build_trainer, find_method
from benchmarks.federation.settings import Settings
from benchmarks.federation.suites import UsageError, find_suite, read_suite
from benchmarks.federation.sweeps import combinations
from benchmarks.terminal import printable
from data_partitions import DataError, open_store, prepare
from pfedpara.trainer import Method

PROGRAM = Path(__file__).resolve().parents[1] / "run.py"
RANDOM_TRIALS = 2  # after the defaults and before the Gaussian process has something to go by


OWN = {
    "algo",
    "parameterization",
    "dataset",
    "model",
    "data_dir",
    "partition",
    "seed",
    "rounds",
    "out",
    "name",
    "dense",
}
OWN |= {
    "quantize",
    "quantize_down",
    "codec",
    "dp_clip",
    "dp_noise",
    "dp_seed",
    "eval_every",
    "checkpoint_every",
    "tuning",
    "hyper",
    "shown",
    "tuned",
}
"""The settings that trials do not take over from a suite."""


class Tuning(NamedTuple):
    """One method on its weights, and what has been tried of it."""

    settings: Settings  # of its first run
    weights: str | None  # the parameterization that was asked for; None: the method's own
    method: Method
    study: optuna.Study
    trials: list[dict[str, Any]]  # the values of each, its score, and whether it diverged


def take_suite(name: str) -> dict[str, Any]:
    """Returns what tune.py takes from a suite: its methods, data, model and budget; and for each trial the ``settings``
    and the hyper-parameters of one value (``fixed``) that all its runs have. Raises UsageError.
    """
    settings_of(argparse.Namespace(suite=name))  # checks all of it
    suite = read_suite(name)
    common = layer(suite)
    runs = [common.options | layer(run).options for run in suite["runs"]]
    several = {"algo": "pfedpara", "parameterization": None}
    found: dict[str, Any]
    found = {key: list(dict.fromkeys(v for run in runs for v in run.get(key, [own]))) for key, own in several.items()}
    for key in ("dataset", "model", "data_dir"):
        values = list(dict.fromkeys(str(run.get(key, Settings.model_fields[key].default)) for run in runs))
        if len(values) > 1:
            raise UsageError(
                f"{find_suite(name)}: {key} {' and '.join(values)}: what is tuned has one; split the suite"
            )
        found[key] = Path(values[0]) if key == "data_dir" else values[0]
    fixed = [choice for choice in common.chosen if len(choice.values) == 1]
    found |= {choice.field: choice.values[0] for choice in fixed if choice.field == "optimizer"}
    settings = {key: value for key, value in common.options.items() if key not in OWN}
    return found | dict(suite["tune"]) | {"settings": settings, "fixed": fixed}


def base(algo: str, weights: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the hyper-parameters that every trial of the method has, but for those that are searched."""
    (fixed,) = combinations(algo, weights, options.fixed)
    return fixed | {"optimizer": options.optimizer}


def begin(settings: Settings, weights: str | None) -> Tuning:
    """Returns a study of the method that begins with its defaults."""
    method = find_method(settings.algo, settings.parameterization)
    start = method.complete({"optimizer": settings.local_optimizer or "sgd"})
    sampler = optuna.samplers.GPSampler(seed=0, n_startup_trials=1 + RANDOM_TRIALS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({name: start[name] for name in spaces(method, start["optimizer"])})
    return Tuning(settings, weights, method, study, [])


def spaces(method: Method, optimizer: str = "sgd") -> dict[str, dict[str, Any]]:
    """Returns low, high and log of each hyper-parameter that is searched with that local ``optimizer``."""
    extras = {name: field.json_schema_extra for name, field in method.fields.items()}
    found: dict[str, Any] = {name: extra["search"] for name, extra in extras.items() if isinstance(extra, dict)}
    hyper = method.trainer.hyper_class
    rate = hyper.rate(optimizer)
    return found | {hyper.stepped: {"low": rate.low, "high": rate.high, "log": True}}


def propose(tuning: Tuning) -> tuple[optuna.Trial, dict[str, Any]]:
    """Returns the next trial and its values, to three digits."""
    trial = tuning.study.ask()
    values: dict[str, float] = {}
    for name, space in spaces(tuning.method, tuning.settings.hyper["optimizer"]).items():
        if tuning.method.fields[name].annotation is int:
            values[name] = trial.suggest_int(name, **space)
        else:
            values[name] = float(f"{trial.suggest_float(name, **space):.3g}")
    return trial, values


def run(tunings: list[Tuning], chosen: dict[str, dict[str, Any]], options: argparse.Namespace, out: Path) -> None:
    """Runs one trial of each of ``tunings``, on the same weights, in one process group. Raises UsageError."""
    ranks = str((os.cpu_count() or 1) + 1)
    command = ["mpirun", "-np", ranks, sys.executable, str(PROGRAM), "--dataset", options.dataset]
    command += ["--data-dir", str(options.data_dir), "--model", options.model, "--rounds", str(options.rounds)]
    command += ["--partition", *options.partition, "--seed", *map(str, options.seed), "--out", str(out)]
    command += ["--tuning", "--eval-every", "0", "--checkpoint-every", "0"]
    for name, value in options.settings.items():
        command += (
            ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])] if value is not False else []
        )
    command += ["--algo", *(t.settings.algo for t in tunings)]
    command += ["--parameterization", weights] if (weights := tunings[0].weights) else []
    command += ["--set"]
    for tuning in tunings:
        values = base(tuning.settings.algo, weights, options) | chosen[tuning.settings.variant]
        every = tuning.method.complete(values)  # so that none is from an earlier tuning
        command += [f"{tuning.settings.algo}.{name}={value}" for name, value in every.items()]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UsageError(f"a trial on {options.dataset} failed, as said above; what it has run is in {out}")


def score(settings: Settings, options: argparse.Namespace, out: Path) -> tuple[float, bool]:
    """Returns the score of the runs in ``out``, and whether one of them diverged."""
    found = []
    for partition, seed in itertools.product(options.partition, options.seed):
        directory = settings.model_copy(update={"partition": partition, "seed": seed, "out": out}).directory
        validation = json.loads((directory / "summary.json").read_text())["validation_accuracy"]
        found.append(validation["mean"] if validation else None)
    return sum(accuracy or 0.0 for accuracy in found) / len(found), None in found


def find_tunings(options: argparse.Namespace) -> list[Tuning]:
    """Returns the methods on the weights that were asked for; says which of them this model or data rules out."""
    tunings: dict[str, Tuning] = {}
    partition, seed = options.partition[0], options.seed[0]
    for weights, algo in itertools.product(options.parameterization, options.algo):
        try:
            method = find_method(algo, weights)
            settings = Settings(
                tuning=True,
                **{name: getattr(options, name) for name in ("dataset", "model", "rounds", "data_dir", "out")},
                **{"algo": algo, "parameterization": method.parameterization, "partition": partition, "seed": seed},
                **{"clients_per_round": options.settings.get("clients", 10)} | options.settings,
                hyper=method.complete(base(algo, weights, options)),
            )
            folder = options.out / "data"
            recipe = (options.dataset, options.data_dir, partition, settings.clients, seed, folder, settings.fraction)
            store = prepare(*recipe, tuning=settings.tuning, choices=settings.choices)
            with open_store(store) as opened:
                build_trainer(settings, opened)
        except DataError:
            raise
        except ValueError as error:
            print(printable(f"left out: {algo} on {weights or 'its own'} weights: {error}"), flush=True)
            continue
        tunings.setdefault(settings.variant, begin(settings, weights))
    return list(tunings.values())


def load_record(path: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what ``path`` records, and in it what it does of this data set and model.

    Raises UsageError where methods there were tuned in another way.
    """
    record = yaml.safe_load(path.read_text()) if path.exists() else {}
    how = {
        "samples": "set aside for tuning",
        "partitions": options.partition,
        "seeds": options.seed,
        "rounds": options.rounds,
        "trials": options.trials,
        "settings": {name: str(value) for name, value in options.settings.items()}
        | {f"{owner}.{field}".lstrip("."): str(values[0]) for owner, field, values in options.fixed},
    }
    words = ["python", "benchmarks/tune.py", "--dataset", options.dataset, "--model", options.model]
    words += ["--partition", *options.partition, "--seed", *map(str, options.seed)]
    words += ["--rounds", str(options.rounds), "--trials", str(options.trials)]
    words += ["--suite", options.suite] if options.suite else []
    said = {key: value for key, value in how.items() if value}
    section = record.setdefault(options.dataset, {}).setdefault(
        options.model,
        {"command": shlex.join(words), "score": "mean validation accuracy after the last round", **said, "methods": {}},
    )
    for key, value in how.items():
        if (found := section.get(key, {} if key == "settings" else "of another kind")) != value:
            raise UsageError(
                f"{path} holds methods tuned with {key} {found}, not {value}: what is compared is tuned alike; "
                "choose another --record, or remove them there to tune all anew"
            )
    return record, section["methods"]


def tune(options: argparse.Namespace) -> None:
    """Runs all trials and writes the record."""
    record, methods = load_record(options.record, options)
    tunings = find_tunings(options)
    for number in range(1, options.trials + 1):
        out = options.out / f"trial-{number}"
        proposed = [propose(tuning) for tuning in tunings]
        chosen = {tuning.settings.variant: values for tuning, (_, values) in zip(tunings, proposed, strict=True)}
        for _, group in itertools.groupby(tunings, lambda tuning: tuning.weights):
            run(list(group), chosen, options, out)
        for tuning, (trial, values) in zip(tunings, proposed, strict=True):
            reached, diverged = score(tuning.settings, options, out)
            tuning.study.tell(trial, reached)
            tuning.trials.append({**values, "score": round(reached, 4), **({"diverged": True} if diverged else {})})
            print(f"trial {number}  {tuning.settings.variant:20} {tuning.trials[-1]}", flush=True)
    for tuning in tunings:
        best = tuning.trials[tuning.study.best_trial.number]
        methods[tuning.settings.variant] = {
            "chosen": {name: best[name] for name in spaces(tuning.method)},  # the same names with any optimizer
            "trials": tuning.trials,
        }
    options.record.write_text(yaml.safe_dump(record, sort_keys=False, default_flow_style=None, width=120))
