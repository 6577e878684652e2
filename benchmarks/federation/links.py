"""The clients' links: rates drawn by the seed, or read from a file. Needs no PyTorch."""

import csv
import hashlib
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

LOGNORMAL = "lognormal:"
LARGEST_FILE = 1 << 24  # characters of a file of links
RIGHT = f"{LOGNORMAL}MEDIAN,SIGMA with a median above 0 in Mb/s and a sigma from 0 on"


def lognormal(spec: str) -> tuple[float, float]:
    """Returns the median, in Mb/s, and the deviation of the rate's logarithm. Raises ValueError."""
    try:
        median, sigma = map(float, spec.removeprefix(LOGNORMAL).split(","))
    except ValueError:
        median = sigma = math.nan
    if not (0 < median < math.inf and 0 <= sigma < math.inf):
        raise ValueError(f"--links: {spec!r:.60} is not right; {RIGHT} is")
    return median, sigma


def canonical(spec: str) -> str:
    """Returns the one spelling of ``spec``; a file's name as it is. Raises ValueError."""
    if not spec.startswith(LOGNORMAL):
        return spec
    return LOGNORMAL + ",".join(f"{number:g}" for number in lognormal(spec))


class Links(NamedTuple):
    """Mb/s of each client, float64 (clients,)."""

    down: np.ndarray
    up: np.ndarray

    @property
    def speed(self) -> np.ndarray:
        """Mb/s of a message that goes both ways: the harmonic mean."""
        return 2 / (1 / self.down + 1 / self.up)


def draw_links(spec: str, clients: int, stream: np.random.Generator) -> Links:
    """Returns the links of ``spec``. Raises ValueError.

    ``lognormal:MEDIAN,SIGMA`` is a rate for both ways, ln(rate / MEDIAN) ~ N(0, SIGMA²). A CSV file has columns
    ``down`` and ``up``. With a column ``client`` each client has its row; without, it draws one, with replacement.
    """
    if spec.startswith(LOGNORMAL):
        median, sigma = lognormal(spec)
        rates = median * np.exp(sigma * stream.standard_normal(clients))
        return Links(rates, rates)
    rows = read_links(Path(spec))
    if "client" not in rows[0]:
        chosen = stream.integers(len(rows), size=clients)
    else:
        places = {row["client"]: place for place, row in enumerate(rows)}
        if missing := [client for client in range(clients) if client not in places]:
            raise ValueError(f"--links {spec}: client {missing[0]} has no row; one for each of {clients} is right")
        chosen = np.array([places[client] for client in range(clients)])
    down, up = (np.array([row[way] for row in rows])[chosen] for way in ("down", "up"))
    return Links(down, up)


def read_links(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a CSV file of links. Raises ValueError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} characters")
        table = csv.DictReader(text.splitlines())
        names = [name for name in ("client", "down", "up") if name in (table.fieldnames or ())]
        if not {"down", "up"} <= {*names}:
            raise ValueError("its first line must name the columns down and up, in Mb/s")
        rows = [{name: _number(row[name], name, table.line_num) for name in names} for row in table]
    except OSError as error:
        right = f"{RIGHT}, or a CSV file with columns down and up, is right"
        raise ValueError(f"--links: {str(path)!r:.60} cannot be read ({error.strerror}); {right}") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"--links {path}: {error}") from None
    if not rows:
        raise ValueError(f"--links {path}: it has no rows")
    clients = sorted(row["client"] for row in rows if "client" in row)
    if twice := [one for one, next_one in pairwise(clients) if one == next_one]:
        raise ValueError(f"--links {path}: client {twice[0]:g} has more than one row")
    return rows


def _number(text: str | None, name: str, line: int) -> float:
    """Returns the value of a column. Raises ValueError unless it is a rate above 0, or a client's number."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if name == "client" and not (value >= 0 and value.is_integer()):
        raise ValueError(f"line {line}: client is {text!r:.40}; a whole number from 0 on is right")
    if name != "client" and not 0 < value < math.inf:
        raise ValueError(f"line {line}: {name} is {text!r:.40}; a rate above 0, in Mb/s, is right")
    return value


def digest(spec: str) -> dict[str, str]:
    """Returns the SHA-256 of the file that ``spec`` names, under its name in ``config.yaml``; nothing of no file."""
    if not spec or spec.startswith(LOGNORMAL):
        return {}
    return {"links_sha256": hashlib.sha256(Path(spec).read_bytes()).hexdigest()}
