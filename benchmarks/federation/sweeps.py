"""Hyper-parameters with several values, a run each, and the labels that tell such runs apart."""

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.federation.registry import find_method
from benchmarks.federation.settings import Settings, flatten, one_name
from benchmarks.federation.suites import HYPER_FLAGS, HYPER_OPTIONS, UsageError, listed


class Choice(NamedTuple):
    """Values of a hyper-parameter, a run each."""

    owner: str  # a method's name; empty: every method that has it
    field: str
    values: list[Any]


def choices(given: Mapping[str, Any]) -> list[Choice]:
    """Returns the hyper-parameters that a suite or the command line has given, a method's own last.

    Raises UsageError for a ``set`` that is not of its form.
    """
    named = [(name, listed(given[name])) for name in (*HYPER_OPTIONS, *HYPER_FLAGS) if name in given]
    named += [(str(name), listed(values)) for name, values in given.get("hyper", {}).items()]
    several: list[tuple[str, list[Any]]] = []
    for item in given.get("set", []):
        name, equals, value = item.partition("=")
        if equals:
            several.append((name, [value]))
        elif several:
            several[-1][1].append(item)
        else:
            raise UsageError(f"--set takes [ALGO.]NAME=VALUE, got {item!r}")
    found = [Choice(*name.rpartition(".")[::2], values) for name, values in named + several]
    return sorted(found, key=lambda choice: bool(choice.owner))


def check(chosen: Iterable[Choice], methods: Iterable[tuple[str, str | None]]) -> None:
    """Raises UsageError for a hyper-parameter that none of the ``methods``, each on its weights, has."""
    fields: dict[str, set[str]] = {}
    for algo, weights in methods:
        for name in (algo, one_name(algo, weights)[0]):
            fields.setdefault(name, set()).update(find_method(algo, weights).fields)
    for owner, field, values in chosen:
        if owner and owner not in fields:
            item = f"{owner}.{field}={' '.join(map(str, values))}"
            raise UsageError(f"--set takes [ALGO.]NAME=VALUE for one of the methods {', '.join(fields)}, got {item!r}")
        known = set().union(*(fields[name] for name in ([owner] if owner else fields)))
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            who = owner or ", ".join(fields)
            raise UsageError(f"no hyper-parameter {field!r} in {who} (--algo help lists them){hint}")


def combinations(algo: str, weights: str | None, chosen: Iterable[Choice]) -> list[dict[str, Any]]:
    """Returns each combination of the values ``chosen`` for ``algo``; of several choices of a field the last wins."""
    fields, names = find_method(algo, weights).fields, ("", algo, one_name(algo, weights)[0])
    swept = {field: values for owner, field, values in chosen if owner in names and field in fields}
    return [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]


def differing(records: Collection[Mapping[str, Any]]) -> list[str]:
    """Returns the names of settings and hyper-parameters, but for partition and seed, in which the records differ."""
    flat = [flatten(record) for record in records]
    names = dict.fromkeys(name for each in flat for name in each)
    beside = {"partition", "seed", "partition_sha256", "links_sha256"}
    return [name for name in names if name not in beside and any(each.get(name) != flat[0].get(name) for each in flat)]


def label_apart(experiments: Iterable[Settings]) -> list[Settings]:
    """Returns the experiments without repetitions; where some share a label, it shows the settings that differ.

    Raises UsageError where it cannot tell them apart.
    """
    once = list({repr(s): s for s in experiments}.values())  # 00 is seed 0, .50 is α 0.5
    alike: dict[Any, list[Settings]] = {}
    for s in once:
        alike.setdefault(s.model_copy(update={"partition": "", "seed": 0}).directory, []).append(s)
    shown = {folder: differing([s.record() for s in several]) for folder, several in alike.items()}
    found: dict[Any, Settings] = {}
    for s in once:
        names = shown[s.model_copy(update={"partition": "", "seed": 0}).directory]
        s = s.model_copy(update={"shown": list(dict.fromkeys([*s.shown, *names]))})
        if (first := found.setdefault(s.directory, s)) is not s and differing([first.record(), s.record()]):
            raise UsageError(f"two runs would be written into {s.directory}; give each a name of its own (--name)")
    return list(found.values())
