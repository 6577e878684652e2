"""The command line: what it offers, what it means, and the sentence it answers nonsense with."""

import argparse
import itertools
from collections.abc import Iterable
from inspect import getdoc
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from pydantic import ValidationError

from benchmarks.federation.models import find_model
from benchmarks.federation.registry import METHODS, find_method
from benchmarks.federation.settings import Settings, one_name, sentence
from data_partitions import check_partition, plugins
from pfedpara.trainer import FEDAVG_ON

TUNED = Path(__file__).resolve().parents[1] / "tuned.yaml"

METAVARS = {
    **dict.fromkeys(("data_dir", "out", "state_dir"), "DIR"),
    **dict.fromkeys(("quantize", "quantize_down"), "BITS"),
    **dict.fromkeys(("fraction", "deadline"), "X"),
    **dict.fromkeys(("dropout", "stragglers"), "P"),
    **{"partition": "SPEC", "checkpoint_minutes": "M", "comm_timeout": "S", "optimizer": "NAME"},
}
SEVERAL = ("algo", "partition", "parameterization", "quantize", "seed")
DEFAULT_FOLLOWS = ("clients_per_round", "parameterization")  # from other options
HYPER_OPTIONS = ("lr", "lr_decay", "epochs", "batch_size", "clip_norm", "gamma", "optimizer", "weight_decay")
HYPER_FLAGS = ("keep_optimizer", "augment")
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

    for name, field in Settings.model_fields.items():
        if name in ("hyper", "tuned"):
            continue
        default = None if name in DEFAULT_FOLLOWS else field.default
        said = field.description or ""
        if default not in (None, []):
            said += f" (default: {default})"
        kind: dict[str, Any] = {"metavar": METAVARS.get(name, "N" if field.annotation is int else "NAME")}
        if field.annotation is bool:
            kind = {"action": "store_true"}
        elif name in SEVERAL:
            kind["nargs"], default = "+", [default]
        elif field.annotation == list[str]:
            kind["nargs"] = "+"
        p.add_argument("--" + name.replace("_", "-"), default=default, help=said, **kind)
    for name in (*HYPER_OPTIONS, *HYPER_FLAGS):
        meaning = next(m.fields[name].description for m in METHODS.values() if name in m.fields)
        kind = {"metavar": METAVARS.get(name, "X"), "help": f"{meaning} (default: the method's; --algo help)"}
        if name in HYPER_FLAGS:
            kind = {"action": "store_true", "default": None, "help": meaning}
        p.add_argument("--" + name.replace("_", "-"), **kind)
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
    for asked, weights in itertools.product(options.algo, options.parameterization):
        for name in (asked, one_name(asked, weights)[0]):
            chosen.setdefault(name, set()).update(find_method(asked, weights).fields)
    method, names = find_method(algo, parameterization), ("", algo, one_name(algo, parameterization)[0])
    every = (*HYPER_OPTIONS, *HYPER_FLAGS)
    given = [("", name, value) for name in every if (value := getattr(options, name)) is not None]
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
        if owner in names and field in method.fields:
            values[field] = value
            left.discard(field)
    try:
        return method.complete(values), sorted(left)
    except ValidationError as error:
        raise UsageError(f"{algo}: {sentence(error)}") from None


def explain_methods(others: Iterable[str] = ()) -> str:
    """Returns a line for each method and one for each hyper-parameter that it does not share with FedAvg.

    ``others``: plug-ins to explain beside those that are installed.
    """
    lines, common = [], METHODS["fedavg"].fields
    for name in dict.fromkeys([*METHODS, *plugins.installed("algo"), *others]):
        try:
            method = find_method(name)
        except plugins.PluginError as error:
            lines.append(str(error))
            continue
        lines.append(f"{name:10} {FEDAVG_ON.get(name) or (getdoc(method.trainer) or '').partition(chr(10))[0]}")
        for field, info in method.fields.items():
            if name == "fedavg" or field not in common or info.default != common[field].default:
                lines.append(f"{'':10}   {field:15} {info.description} (default: {info.default})")
    return "\n".join(lines) + "\nEvery method has FedAvg's hyper-parameters as well."


def load_tuned(dataset: str, model: str) -> dict[str, dict[str, Any]]:
    """Returns what ``benchmarks/tune.py`` chose for each variant, empty where it was not run for this case."""
    record = yaml.safe_load(TUNED.read_text()) if TUNED.exists() else {}
    section = record.get(dataset, {}).get(model, {"methods": {}})
    chosen = {variant: entry["chosen"] for variant, entry in section["methods"].items()}
    earlier = {name: chosen[f"fedavg-{name}"] for name in FEDAVG_ON if f"fedavg-{name}" in chosen}  # its former name
    return earlier | chosen


def find_tuned(chosen: dict[str, dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Returns which of the ``chosen`` values serve: those on dense weights on others too, not those of SGD for Adam."""
    return chosen.get(settings.variant, {} if settings.local_optimizer else chosen.get(settings.algo, {}))


def settings_of(options: argparse.Namespace) -> list[Settings]:
    """Returns one experiment for each partition, seed and method, in this order. Raises UsageError or DataError."""
    for algo in options.algo:
        find_method(algo)
    find_model(options.model)
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
            method = find_method(algo, weights)
            own = {"parameterization": method.parameterization, "quantize": form}
            own["dense"] = options.dense if method.factors else []
            settings = Settings(**common | {"partition": partition, "seed": seed, "algo": algo} | own)
        except ValidationError as error:
            raise UsageError(sentence(error)) from None
        except ValueError as error:
            raise UsageError(str(error)) from None
        asked, _ = hyper_parameters(algo, weights, options, {})
        settings = settings.model_copy(update={"hyper": asked})
        hyper, tuned = hyper_parameters(algo, weights, options, find_tuned(chosen, settings))
        found.append(settings.model_copy(update={"hyper": hyper, "tuned": tuned}))
        check_partition(settings.dataset, settings.partition, settings.clients)
    if options.dense and not any(settings.dense for settings in found):
        raise UsageError(
            f"--dense {' '.join(options.dense)}: {', '.join(options.algo)} has no factors; take pfedpara, fedpara or "
            "lowrank, or --parameterization"
        )
    return list({settings.directory: settings for settings in found}.values())  # 00 is seed 0, .50 is α 0.5
