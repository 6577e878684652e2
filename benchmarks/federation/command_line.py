"""The command line of run.py: what it offers, and what completes it in a shell. Without PyTorch, to answer at once."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import shtab

from baselines.hyper import Hyper
from benchmarks.federation import compress, poison, robust
from benchmarks.federation.names import METHODS, MODELS
from benchmarks.federation.settings import FACTORS, Settings
from benchmarks.federation.suites import FOLDER, HYPER_FLAGS, HYPER_OPTIONS, UsageError
from data_partitions import Choices
from data_partitions.datasets import NAMES
from data_partitions.partitioners import FORMS
from data_partitions.presets import PRESETS
from pfedpara import __version__
from pfedpara.hyper import FactorHyper

METAVARS = {
    **dict.fromkeys(("data_dir", "out", "state_dir"), "DIR"),
    **dict.fromkeys(("quantize", "quantize_down"), "BITS"),
    **dict.fromkeys(("partition", "codec", "aggregate", "poison"), "SPEC"),
    **dict.fromkeys(("fraction", "deadline"), "X"),
    **dict.fromkeys(("dropout", "stragglers"), "P"),
    **{"dp_clip": "C", "dp_noise": "SIGMA", "dp_seed": "N"},
    **{
        "checkpoint_minutes": "M",
        "comm_timeout": "S",
        "deadline_seconds": "S",
        "links": "SPEC|FILE",
        "optimizer": "NAME",
        "image_size": "N",
    },
}
SEVERAL = (
    *("algo", "partition", "parameterization", "quantize", "codec", "dp_clip", "dp_noise", "aggregate", "poison"),
    "seed",
)
DEFAULT_FOLLOWS = ("clients_per_round", "parameterization")  # from other options
FIELDS = Settings.model_fields
HYPER = FactorHyper.model_fields | Hyper.model_fields
CHECKPOINTS = ("checkpoint_every", "checkpoint_minutes")
WEIGHTS = ("parameterization", "dense", "alternate")
GROUPS = {
    "what is compared": ("suite", "preset", "algo", *WEIGHTS, "quantize", "codec", "aggregate", "poison", "seed"),
    "data and model": ("dataset", *Choices._fields, "data_dir", "partition", "fraction", "tuning", "clients", "model"),
    "rounds": ("rounds", "clients_per_round", "new_clients", "quantize_down", "dropout", "stragglers", "deadline"),
    "privacy": ("dp_clip", "dp_noise", "dp_seed"),
    "links": ("links", "deadline_seconds"),
    "local training": (*HYPER_OPTIONS, *HYPER_FLAGS, "set"),
    "results": ("out", "name", "eval_every", *CHECKPOINTS, "histograms", "track", "overwrite"),
}
"""Under which heading ``--help`` shows an option; the others stand under the job's."""
DESCRIPTION = """Runs methods of personalized federated learning side by side, through FedML's managers on MPI:

    mpirun -np 11 python benchmarks/run.py --algo pfedpara       # one server, ten clients

Where benchmarks/tuned.yaml covers the data set and the model, its hyper-parameters are the defaults."""


COMPLETED: dict[str, Iterable[str]] = {
    "suite": sorted(path.stem for path in FOLDER.glob("*.yaml")),
    "preset": PRESETS,
    "algo": [*METHODS, *FACTORS],
    "dataset": NAMES,
    "partition": FORMS,
    "codec": [*(f"{name}:" if kind.number else name for name, kind in compress.CODECS.items()), compress.NONE],
    "aggregate": [robust.MEAN, *robust.FORMS],
    "poison": [*poison.KINDS, poison.NONE],
    "model": MODELS,
}
"""What a shell completes, beside the values of options that have no others."""


class Known(tuple[str, ...]):
    """Choices that a shell shows, and argparse does not enforce: the job has a better sentence, and knows plug-ins."""

    def __contains__(self, word: object) -> bool:
        return True


def known(name: str, annotation: Any) -> Known:
    """Returns what completes that option; of forms such as csv:FILE all up to the colon."""
    names = COMPLETED.get(name, get_args(annotation) if get_origin(annotation) is Literal else ())
    return Known(form[: form.find(":") + 1] or form for form in names)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the options)")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of run.py. What was not typed is not in the namespace, so that a suite can say it."""
    p = Parser(
        prog="pfl-run" if Path(sys.argv[0]).name == "pfl-run" else "benchmarks/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    shtab.add_argument_to(p, help="print what completes this command in bash, zsh or tcsh")
    p.add_argument("--version", action="version", version=f"pfedpara {__version__}")
    groups = dict[str, argparse._ArgumentGroup]()
    for title, names in GROUPS.items():
        groups |= dict.fromkeys(names, p.add_argument_group(title))
    job = p.add_argument_group("the job")

    def add(name: str, said: str, annotation: Any = None, **kind: Any) -> None:
        if "metavar" in kind:
            kind["choices"] = known(name, annotation)
        action = groups.get(name, job).add_argument("--" + name.replace("_", "-"), help=said, **kind)
        if action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]

    add("suite", "what else is run: a suite's name, a YAML file, a config.yaml", metavar="NAME|FILE")
    add("preset", f"data of the FedPara paper: {' | '.join(PRESETS)}", metavar="NAME")
    flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
    for name, field in FIELDS.items():
        if name in ("hyper", "tuned", "shown"):
            continue
        said = " | ".join([*MODELS, "MODULE:NAME"]) if name == "model" else f"{field.description}"
        if name not in DEFAULT_FOLLOWS and field.default not in (None, "", [], False):
            said += f" (default: {field.default})"
        kind = {"metavar": METAVARS.get(name, "N" if field.annotation is int else "NAME")}
        if name in SEVERAL or field.annotation == list[str]:
            kind["nargs"] = "+"
        add(name, said, field.annotation, **flag if field.annotation is bool else kind)
    for name in (*HYPER_OPTIONS, *HYPER_FLAGS):
        said = f"{HYPER[name].description}"
        if name in HYPER_FLAGS:
            add(name, said, **flag)
        else:
            said += ", one run each (default: the method's; --algo help)"
            add(name, said, HYPER[name].annotation, nargs="+", metavar=METAVARS.get(name, "X"))
    add(
        "set",
        "any other hyper-parameter (--algo help lists them); further values, one run each, follow it",
        nargs="+",
        action="extend",
        metavar="[ALGO.]NAME=VALUE",
    )
    add("overwrite", "run anew what is finished or begun, instead of going on", action="store_true")
    add("resume", "go on where runs stopped, which is always done", action="store_true")
    add("verbose", "show the libraries' warnings and log lines, and tracebacks", action="store_true")
    p.set_defaults(overwrite=False, resume=False, verbose=False)
    return p
