"""Suites: what is compared stands in a YAML file, for run.py, tune.py and report.py alike. docs/suites.md has one.

Nothing here knows PyTorch, so that a report reads its part of a suite without it.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from benchmarks.federation import files
from benchmarks.federation.settings import Settings

FOLDER = Path(__file__).resolve().parents[1] / "suites"
HYPER_OPTIONS = ("lr", "lr_decay", "epochs", "batch_size", "clip_norm", "gamma", "optimizer", "weight_decay")
HYPER_FLAGS = ("keep_optimizer", "augment")
"""The hyper-parameters with an option of their own."""
RUN = {*Settings.model_fields, *HYPER_OPTIONS, *HYPER_FLAGS, "preset", "partition_sha256", "links_sha256"}
"""The keys of a suite, of each of its runs, and of a run's config.yaml, which is a suite of one."""


class UsageError(ValueError):
    """What the user asked for cannot be done; the text says what was wrong and what would be right."""


class TuneSection(BaseModel, extra="forbid"):
    """What tune.py does in another way than the runs."""

    trials: int = Field(6, ge=1)
    rounds: int = Field(10, ge=1)
    partition: list[str] = ["dirichlet:0.5", "shards:2"]
    seed: list[int] = [100]


class ReportSection(BaseModel, extra="forbid"):
    """What report.py shows; ``page`` and ``command`` of a suite that was run as it stands (``--run``)."""

    target: float | None = Field(None, gt=0, le=1)
    grid: bool = False
    page: Path | None = None
    command: str = ""


SECTIONS: dict[str, type[BaseModel]] = {"tune": TuneSection, "report": ReportSection}


def unknown(what: str, word: object, known: Iterable[str]) -> str:
    """Returns the sentence that there is no such ``word``, with the nearest one that there is."""
    near = difflib.get_close_matches(str(word), names := list(known), 1)
    return f"no {what} {word!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}")


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def find_suite(name: str) -> Path:
    """Returns the file of a suite by its name or path. Raises UsageError where there is none."""
    suites = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if name in suites:
        return suites[name]
    if not Path(name).is_file():
        raise UsageError(f"--suite: there is no file {name!r}, and {unknown('suite', name, suites)}")
    return Path(name)


def read_suite(name: str) -> dict[str, Any]:
    """Returns what a suite says: options by name, ``runs`` as a list of such mappings, and the sections' models.

    Raises UsageError for a file that cannot be read, a key that there is not, or a section's value out of its range.
    """
    path = find_suite(name)
    try:
        suite = _whole(path)
        _check_keys(suite, [*RUN, "runs", *SECTIONS])
        runs = suite.get("runs", [{}])
        if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
            raise ValueError("runs: a list of mappings is right, such as - algo: fedavg")
        suite["runs"] = [_with_underscores(run) for run in runs]
        for run in suite["runs"]:
            _check_keys(run, RUN)
        for section, model in SECTIONS.items():
            suite[section] = _check_section(section, model, suite.get(section) or {})
    except ValueError as error:
        text = str(error)
        raise UsageError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    return suite


def _whole(path: Path, *above: Path) -> dict[str, Any]:
    """Returns what the file says, over what the suite says that it names by ``suite``. Raises ValueError."""
    own = _with_underscores(files.read_yaml(path))
    if (base := own.pop("suite", None)) is None:
        return own
    if (below := find_suite(str(base))) in (path, *above):
        raise ValueError(f"suite: {base!r} builds on this one; name a suite that does not")
    return _whole(below, path, *above) | own


def _with_underscores(suite: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in suite.items()}


def _check_keys(suite: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ValueError for a key that is not ``known``, and a hyper-parameter that is no mapping's."""
    if strange := [key for key in suite if key not in known]:
        raise ValueError(unknown("option", strange[0], sorted(known)))
    if not isinstance(suite.get("hyper", {}), dict):
        raise ValueError(f"hyper: names with values are right, such as gamma: 0.5, got {suite['hyper']!r}")


def _check_section(section: str, model: type[BaseModel], values: Any) -> BaseModel:
    if not isinstance(values, dict):
        raise ValueError(f"{section}: names with values are right, got {values!r}")
    if strange := [key for key in values if key not in model.model_fields]:
        raise ValueError(f"{section}: {unknown('option', strange[0], model.model_fields)}")
    several = {name: field.annotation for name, field in model.model_fields.items()}
    try:
        return model(**{k: listed(v) if several[k] in (list[str], list[int]) else v for k, v in values.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{section}: {first['loc'][0]}: {first['msg'].lower()}, got {first['input']!r}") from None
