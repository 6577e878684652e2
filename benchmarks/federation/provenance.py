"""Where a run comes from: what the report's box says of it beside its settings."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from benchmarks.federation.options import tuned_section
from benchmarks.federation.registry import find_method
from benchmarks.federation.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@cache
def commit() -> str | None:
    """Returns the commit of this program, with "-dirty" where files differ from it; None outside its repository."""
    if not (ROOT / ".git").exists():
        return None
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def command() -> str:
    """Returns what started this process, as a shell takes it."""
    return shlex.join(["python", *sys.argv])


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def origins(settings: Settings) -> dict[str, str]:
    """Returns where each hyper-parameter comes from. One that was given as it is by default counts as that."""
    fields = find_method(settings.algo, settings.parameterization).fields
    return {
        name: "tuned.yaml"
        if name in settings.tuned
        else "default"
        if name in fields and fields[name].default == value
        else "given"
        for name, value in settings.hyper.items()
    }


def tuning(settings: Settings) -> dict[str, Any] | None:
    """Returns how the tuned hyper-parameters were found; None where there are none, or the record is gone."""
    if not settings.tuned or not (section := tuned_section(settings.dataset, settings.model)):
        return None
    return {key: section[key] for key in ("command", "partitions", "seeds", "rounds", "trials") if key in section}


def provenance(settings: Settings, workers: int) -> dict[str, Any]:
    """Returns what is the same in no other run: all plain values."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command(),
        "workers": workers,
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory": psutil.virtual_memory().total,
        },
        "origins": origins(settings),
        "tuning": tuning(settings),
    }
