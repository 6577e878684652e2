"""Where the figures of a comparison come from: the report's box of dates, versions, machines, settings and configs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import yaml

from benchmarks.analysis import TARGET
from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.load import EndedRun
from benchmarks.analysis.statistics import choose_target, reached_alone
from benchmarks.analysis.tables import percent

UNKNOWN = "not recorded"
RUN_SPECIFIC = ("seed", "partition_sha256")


class Settings(NamedTuple):
    """The settings of a method's runs, which differ in their seeds alone."""

    method: str
    hyper: list[tuple[str, str, str]]  # name, value, and where it comes from
    config: str  # as YAML, without what differs
    runs: list[tuple[str, str]]  # seed, and the address of its config.yaml from the page


class Box(NamedTuple):
    facts: list[tuple[str, list[str]]]  # what, and its values, most often one
    settings: list[Settings]


def boxed(comparison: Comparison, out: Path) -> Box:
    """Returns the box of a comparison, for a page in the folder ``out``."""
    runs = [run for found in comparison.ended.values() for run in found]
    facts = [
        ("Finished", span(_of(runs, "finished"))),
        ("Commit", _of(runs, "commit")),
        ("Versions", once(_listed(run.summary.get("versions")) for run in runs)),
        ("Machine", once(machine(run) for run in runs)),
        ("Duration", [duration(runs)]),
        ("Tuning", once(tuning(run) for run in runs)),
        ("Target", [target(comparison)]),
        ("Command", _of(runs, "command")),
    ]
    return Box(facts, [one for method, found in comparison.ended.items() for one in settings(method, found, out)])


def _recorded(run: EndedRun) -> dict[str, Any]:
    found = run.summary.get("provenance")
    return found if isinstance(found, dict) else {}


def once(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(str(value or UNKNOWN) for value in values))


def _of(runs: list[EndedRun], key: str) -> list[str]:
    return once(_recorded(run).get(key) for run in runs)


def _listed(values: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else ""


def span(dates: list[str]) -> list[str]:
    """Returns the first and the last of ISO dates, and whether some are not recorded."""
    known = sorted(date for date in dates if date != UNKNOWN)
    between = [known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"] if known else []
    return between + [UNKNOWN] * (UNKNOWN in dates)


def machine(run: EndedRun) -> str:
    found = _recorded(run)
    if not isinstance(of := found.get("machine"), dict):
        return ""
    memory = of.get("memory")
    size = f", {memory / 1e9:.0f} GB" if isinstance(memory, int) else ""
    return f"{of.get('processor')}, {of.get('cores')} cores{size}, {of.get('system')}; {found.get('workers')} workers"


def duration(runs: list[EndedRun]) -> str:
    totals = [run.summary.get("seconds", {}).get("total") for run in runs]
    known = [total for total in totals if isinstance(total, int | float)]
    if not known:
        return UNKNOWN
    return f"{sum(known):,.0f} s for {len(known)} runs, {min(known):,.0f} to {max(known):,.0f} s each"


def tuning(run: EndedRun) -> str:
    if not run.settings.get("tuned"):
        return "none"
    if not isinstance(of := _recorded(run).get("tuning"), dict):
        return "tuned.yaml; at which cost is not recorded"
    places, seeds = (", ".join(map(str, of.get(key, []))) for key in ("partitions", "seeds"))
    return (
        f"{of.get('trials')} trials a method, each of {of.get('rounds')} rounds on {places} with seed {seeds}, "
        f"on samples set aside: {of.get('command')}"
    )


def target(comparison: Comparison) -> str:
    """Returns the target and how it was chosen."""
    if np.isnan(comparison.target):
        return "none, for no method is better than training alone"
    best = comparison.table["accuracy"].max()
    alone = reached_alone(comparison.runs.get("local", []))
    if comparison.target != choose_target(best, alone):
        how = "as given"
    elif comparison.target == TARGET * best:
        how = f"{100 * TARGET:.0f} % of the best method's {percent(best)} %"
    else:
        how = f"the middle between local training's {percent(alone)} % and the best method's {percent(best)} %"
    return f"{percent(comparison.target)} %, {how}"


def settings(method: str, runs: list[EndedRun], out: Path) -> list[Settings]:
    found: dict[str, tuple[dict[str, Any], list[EndedRun]]] = {}
    for run in runs:
        common = {name: value for name, value in run.settings.items() if name not in RUN_SPECIFIC}
        found.setdefault(repr(common), (common, []))[1].append(run)
    return [
        Settings(
            method,
            hyper(alike[0]),
            yaml.safe_dump(common, sort_keys=False, allow_unicode=True),
            [(str(run.summary["seed"]), address(run, out)) for run in alike],
        )
        for common, alike in found.values()
    ]


def hyper(run: EndedRun) -> list[tuple[str, str, str]]:
    origins = _recorded(run).get("origins")
    if not isinstance(origins, dict):
        origins = dict.fromkeys(run.settings.get("tuned") or [], "tuned.yaml")
    values = run.settings.get("hyper", {})
    return [(str(name), str(value), str(origins.get(name, UNKNOWN))) for name, value in values.items()]


def address(run: EndedRun, out: Path) -> str:
    return quote(os.path.relpath(run.folder / "config.yaml", out), errors="surrogateescape")
