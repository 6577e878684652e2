"""The benchmark's commands, and its two functions for Python.

Standard output takes any text: what its encoding lacks is written as an escape.
"""

import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.api import load_results, run_experiment

__all__ = ["load_results", "run_experiment"]

if isinstance(sys.stdout, TextIOWrapper):  # standard error does so by itself
    sys.stdout.reconfigure(errors="backslashreplace")


def __getattr__(name: str) -> Any:
    """Imports pandas, and what reads runs, only where one of the functions is asked for."""
    if name in __all__:
        return getattr(import_module("benchmarks.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
