"""What the command line and suites mean, and the sentence that nonsense is answered with."""

import argparse
import itertools
from collections.abc import Iterable, Mapping
from inspect import getdoc
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError

from benchmarks.federation import poison
from benchmarks.federation.command_line import FIELDS, SEVERAL
from benchmarks.federation.models import find_model
from benchmarks.federation.registry import METHODS, find_method
from benchmarks.federation.settings import TUNED, Settings, sentence
from benchmarks.federation.suites import UsageError, find_suite, listed, read_suite, unknown
from benchmarks.federation.sweeps import Choice, check, choices, combinations, label_apart
from data_partitions import check_partition, plugins
from data_partitions.presets import PRESETS
from pfedpara.trainer import FEDAVG_ON


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


def tuned_section(dataset: str, model: str) -> dict[str, Any]:
    """Returns what ``benchmarks/tune.py`` recorded of this data set and model; empty where it was not run for them."""
    record = yaml.safe_load(TUNED.read_text()) if TUNED.exists() else {}
    return record.get(dataset, {}).get(model, {})


def load_tuned(dataset: str, model: str) -> dict[str, dict[str, Any]]:
    """Returns what ``benchmarks/tune.py`` chose for each variant, empty where it was not run for this case."""
    methods = tuned_section(dataset, model).get("methods", {})
    chosen = {variant: entry["chosen"] for variant, entry in methods.items()}
    earlier = {name: chosen[f"fedavg-{name}"] for name in FEDAVG_ON if f"fedavg-{name}" in chosen}  # its former name
    return earlier | chosen


def find_tuned(chosen: dict[str, dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Returns which of the ``chosen`` values serve: those on dense weights on others too, not those of SGD for Adam."""
    return chosen.get(settings.variant, {} if settings.local_optimizer else chosen.get(settings.algo, {}))


class Layer(NamedTuple):
    """What one source says: a suite, one of its runs, or the command line. A later one wins."""

    options: dict[str, Any]
    chosen: list[Choice]


def layer(given: Mapping[str, Any]) -> Layer:
    """Returns the settings and hyper-parameters that are ``given``, a preset's below them. Raises UsageError."""
    options = {name: value for name, value in given.items() if value is not None and name in FIELDS}
    if preset := str(given.get("preset") or ""):
        if preset not in PRESETS:
            raise UsageError(f"--preset: {unknown('preset', preset, PRESETS)}")
        options = PRESETS[preset]._asdict() | options
    for name in options:
        if name in SEVERAL or FIELDS[name].annotation == list[str]:
            options[name] = [str(value) for value in listed(options[name])]  # 8 bits are "8"
    return Layer(options, choices(given))


def settings_of(options: argparse.Namespace) -> list[Settings]:
    """Returns the experiments of the command line, or of its suite: see ``expand``. Raises UsageError."""
    given = layer(vars(options))
    if not (name := getattr(options, "suite", None)):
        return expand([[given]])
    suite = read_suite(name)
    try:  # by itself first, so that the sentence names the file
        runs = [[layer(suite), layer(run)] for run in suite["runs"]]
        found = expand(runs)
    except ValueError as error:
        raise UsageError(f"{find_suite(name)}: {error}") from None
    return expand([[*layers, given] for layers in runs]) if given.options or given.chosen else found


def expand(runs: list[list[Layer]]) -> list[Settings]:
    """Returns for each of the ``runs``, given in layers, one experiment for each partition, seed, method and value.

    In this order, and each under a label of its own. Raises UsageError.
    """
    merged = [{name: value for layer in layers for name, value in layer.options.items()} for layers in runs]
    methods = [check_methods(options) for options in merged]
    found = []
    for layers, options, own in zip(runs, merged, methods, strict=True):
        for place, layer in enumerate(layers):  # what a suite's run says is for its own methods
            there = own if place == 1 else list(itertools.chain(*methods))
            check(layer.chosen, there)
            words = ["--dense", *dense] if (dense := layer.options.get("dense")) else []
            words += ["--alternate"] * bool(layer.options.get("alternate"))
            if words and not any(find_method(*each).factors for each in there):
                raise UsageError(
                    f"{' '.join(words)}: {', '.join(dict(there))} has no factors; take pfedpara, fedpara or "
                    "lowrank, or --parameterization"
                )
        found += expand_one(options, [choice for layer in layers for choice in layer.chosen])
    return label_apart(found)


def check_methods(options: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Returns the methods with the weights that were asked for, None for their own. Raises UsageError."""
    algos, weights = options.get("algo", [FIELDS["algo"].default]), options.get("parameterization", [None])
    for algo in algos:
        find_method(algo)
    find_model(str(options.get("model", FIELDS["model"].default)))
    known = get_args(FIELDS["parameterization"].annotation)
    if strange := [each for each in weights if each not in (None, *known)]:
        raise UsageError(f"--parameterization: no {strange[0]!r}; there are {', '.join(known)}")
    try:
        for pair in (pairs := list(itertools.product(algos, weights))):
            find_method(*pair)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return pairs


def expand_one(options: dict[str, Any], chosen: list[Choice]) -> list[Settings]:
    common = {"clients_per_round": options.get("clients", FIELDS["clients"].default)} | options
    lists = [common.get(name, [FIELDS[name].default]) for name in ("partition", "seed", "algo")]
    lists += [common.get("parameterization", [None])]
    several = "quantize", "codec", "dp_clip", "dp_noise", "aggregate", "poison"
    lists += [common.get(name, [FIELDS[name].default]) for name in several]
    found: list[Settings] = []
    known: dict[str, dict[str, Any]] | None = None  # all runs are of one data set and model
    restated = options.get("tuned", ())
    for partition, seed, algo, weights, *others in itertools.product(*lists):
        try:
            method = find_method(algo, weights)
            own = {"parameterization": method.parameterization} | dict(zip(several, others, strict=True))
            own |= {"hyper": {}, "tuned": []}
            own |= {} if method.factors else {"dense": [], "alternate": False}
            s = Settings(**common | {"partition": partition, "seed": seed, "algo": algo} | own)
            if s.poison != poison.NONE:  # lest its folder is taken for a run without
                s = s.model_copy(update={"shown": list(dict.fromkeys([*s.shown, "poison"]))})
        except ValidationError as error:
            raise UsageError(sentence(error)) from None
        except ValueError as error:
            raise UsageError(str(error)) from None
        known = load_tuned(s.dataset, s.model) if known is None else known
        for chosen_values in combinations(algo, weights, chosen):
            try:
                asked = s.model_copy(update={"hyper": method.complete(chosen_values)})
                best = find_tuned(known, asked)
                hyper = method.complete(best | chosen_values)
            except ValidationError as error:
                raise UsageError(f"{algo}: {sentence(error)}") from None
            tuned = [n for n in best if n not in chosen_values or (n in restated and hyper[n] == best[n])]
            found.append(s.model_copy(update={"hyper": hyper, "tuned": sorted(tuned)}))
        check_partition(s.dataset, s.partition, s.clients + s.new_clients, s.choices)
    return found
