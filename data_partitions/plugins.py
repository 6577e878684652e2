"""Parts that lie outside this repository: methods, models, data sets and metrics, found by name.

A name is ``module:attribute``, looked for in the current folder first, or the name under which an installed package
offers its part: an entry point of the group in ``GROUPS``. Every rank finds a part for itself.
"""

import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from data_partitions.errors import DataError

GROUPS = {
    "algo": "pfedpara.methods",
    "model": "pfedpara.models",
    "dataset": "pfedpara.datasets",
    "metric": "pfedpara.metrics",
    "track": "pfedpara.trackers",
}
"""The groups of entry points, by the option that takes the name."""

FOREIGN = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
ROOMS = ("baselines", "benchmarks", "data_partitions", "pfedpara")
SUITE = tuple(f"{Path(__file__).resolve().parents[1] / room}{os.sep}" for room in ROOMS)
FOUND: set[str] = set()  # the packages that parts were found in


class PluginError(DataError):
    """A part cannot be used; the message says why, and the line of its file where there is one."""


@cache
def installed(option: str) -> dict[str, EntryPoint]:
    """Returns what installed packages offer for an option, by name."""
    return {point.name: point for point in entry_points(group=GROUPS[option])}


def find(option: str, name: str, known: Iterable[str]) -> Any:
    """Returns the part of that name, which is none of the ``known`` ones.

    Raises PluginError where there is none, or it fails while it is imported.
    """
    point = installed(option).get(name)
    if not point and not re.fullmatch(r"[\w.]+:\w+", name):
        there = ", ".join([*known, *installed(option), "module:name"])
        near = get_close_matches(name, [*known, *installed(option)], 1)
        raise PluginError(f"--{option}: no {name!r}{f', did you mean {near[0]!r}' if near else ''}; there are {there}")
    module_name, _, attribute = (point.value if point else name).partition(":")
    return _attribute(option, name, _import(option, name, module_name), attribute.partition(" ")[0])


def check_call(option: str, name: str, part: Any, arguments: int, right: str) -> None:
    """Raises PluginError unless a ``part`` can be called with so many values. ``right``: what it must be, in words."""
    try:
        inspect.signature(part).bind(*range(arguments))
    except (TypeError, ValueError) as error:
        reason = f"{error}, called with {arguments}" if callable(part) else "it cannot be called"
        raise wrong(option, name, part, f"{reason}; {right} is right") from None


def wrong(option: str, name: str, part: object, sentence: str) -> PluginError:
    """Returns the error that says in a sentence what is wrong with a ``part``, and where it was written."""
    return PluginError(f"--{option} {name}: {_place_of(part)}{sentence}")


def place(error: BaseException) -> str:
    """Returns ``file, line N`` of the newest call that is neither Python's nor an installed package's nor the suite's.

    A package in which a part was found counts as the user's. Empty where there is none.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}, line {error.lineno}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__)) if FOUND else []):
        path = frame.f_code.co_filename
        root = str(frame.f_globals.get("__name__")).partition(".")[0]
        theirs = path.startswith("<frozen") or os.path.realpath(path).startswith((*FOREIGN, *SUITE))
        if root in FOUND or not theirs:
            return f"{_short(path)}, line {line}"
    return ""


def explain(error: BaseException) -> str:
    """Returns what went wrong in one line, with its place in the user's file where there is one."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    there = place(error)
    return f"{f'{there}: ' if there else ''}{type(error).__name__}{f': {text}' if text else ''}"


def _import(option: str, name: str, module_name: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:  # a file that is run has its own folder there instead
        sys.path.insert(0, here)
    FOUND.add(module_name.partition(".")[0])
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise PluginError(f"--{option} {name}: there is no module {error.name!r} in {here} or installed") from None
        raise PluginError(f"--{option} {name}: {explain(error)}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"--{option} {name}: {explain(error)}") from error


def _attribute(option: str, name: str, module: ModuleType, attribute: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        near = get_close_matches(attribute, vars(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        file = _short(module.__file__) if getattr(module, "__file__", None) else f"module {module.__name__}"
        raise PluginError(f"--{option} {name}: {file} has no {attribute!r}{hint}") from None


def _place_of(part: object) -> str:
    """Returns ``file, line N: `` where a class or function was written, empty for what has no such place."""
    try:
        written = inspect.unwrap(part) if callable(part) else None
        return f"{_short(inspect.getsourcefile(written))}, line {inspect.getsourcelines(written)[1]}: "  # type: ignore[arg-type]
    except (TypeError, OSError):
        return ""


def _short(path: str | None) -> str:
    """Returns a path from the current folder on, where it lies below."""
    found = Path(path or "?")
    return str(found.relative_to(Path.cwd())) if found.is_relative_to(Path.cwd()) else str(found)
