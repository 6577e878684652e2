"""Files that survive a crash: written whole or not at all, on the disk before the next step, named where that fails.

And files that anybody may have written: read within bounds.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

LARGEST_JSON = 1 << 24  # bytes of a summary.json: 10,000 clients need a tenth of it
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as safe, ten times as fast, and not in every build
LARGEST_YAML = 1 << 18  # bytes of a config.yaml, which holds options
MOST_BRACKETS = 1000  # in one: the scanner's time grows with the square of their depth


def write(path: Path, content: bytes) -> int:
    """Puts ``content`` in the place of ``path`` in one step. Returns its size. Raises OSError with the path in it."""
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return len(content)


def append(path: Path, content: bytes, size: int) -> int:
    """Adds ``content`` to a file of ``size`` bytes, and returns how many it has then. It never makes the file.

    In a single write, so that a killed run leaves whole rows only. Raises OSError as ``write``, and ValueError where
    the file has another size: somebody else changed it.
    """
    with naming(path), path.open("r+b", buffering=len(content) + 2) as file:
        if (found := file.seek(0, os.SEEK_END)) != size:
            raise ValueError(f"{path} has {found} bytes instead of {size}: another program changed it during the run")
        file.write(content)
    return size + len(content)


def sync(path: Path) -> None:
    """Waits until the disk holds the file, or the folder's list of names. Raises OSError as ``write``."""
    with naming(path):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an OSError, such as a full disk's, says which file it was about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises ValueError with a short sentence where there is none."""
    return _read(path, json.loads, LARGEST_JSON)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file of plain values. Raises ValueError with a short sentence where there is none.

    What this project writes has no aliases; a few lines of them stand for gigabytes.
    """

    def parse(text: str) -> Any:
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError(f"it has more than {MOST_BRACKETS} brackets")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, LOADER)):
            raise ValueError("it has aliases")
        loader = LOADER(text)
        try:
            return loader.get_single_data()
        except yaml.YAMLError:  # the one in C takes no name that is not UTF-8
            return yaml.safe_load(text)
        finally:
            loader.dispose()

    return _read(path, parse, LARGEST_YAML)


def _read(path: Path, parse: Callable[[str], Any], largest: int) -> dict[str, Any]:
    try:
        with naming(path), path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"it is larger than {largest} bytes")
        if not isinstance(found := parse(content.decode()), dict):
            raise ValueError("it holds something else than names and values")
    except (OSError, ValueError, RecursionError, TypeError, OverflowError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return found
