"""Build, show and list partitions: python -m data_partitions build | show | list."""

import argparse
import sys
from io import TextIOWrapper
from pathlib import Path

import numpy as np

from data_partitions.build import BUILT, prepare
from data_partitions.datasets import NAMES, Choices, may_be_natural
from data_partitions.errors import DataError
from data_partitions.partitioners import FORMS
from data_partitions.presets import PRESETS
from data_partitions.show import contact_sheet, duplicates, heat_map, label_distance, printable, title
from data_partitions.splits import SPLITS
from data_partitions.store import open_store

ROWS = 20
"""Clients that `show` lists one by one."""


def main() -> int:
    """Run one command; the exit status is 1 for bad input, with one sentence on the error stream."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks is written as an escape
    parser = argparse.ArgumentParser(prog="python -m data_partitions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    # SUPPRESS: only what is typed counts, so that it can change one setting of a preset.
    build = commands.add_parser("build", help="make a partition store", argument_default=argparse.SUPPRESS)
    build.add_argument("--preset", choices=PRESETS, help="settings named after the paper; other options change them")
    build.add_argument("--dataset", help=f"{' | '.join(NAMES)} (default mnist5k)")
    build.add_argument("--partition", help=f"{' | '.join(FORMS)} (default dirichlet:0.5)")
    build.add_argument("--clients", type=int, help="how many (default 10; natural: all there are)")
    build.add_argument("--fraction", type=float, help="share of each client's training samples to keep (default 1)")
    build.add_argument("--seed", type=int, help="of all random choices (default 0)")
    build.add_argument("--data-dir", type=Path, help="where raw data lie or are downloaded to")
    build.add_argument("--image-size", type=int, help="pixels a side that pictures of folder: and hf: are resized to")
    build.add_argument("--label-column", help="the classes of csv: and hf: (default label)")
    build.add_argument("--client-column", help="the clients of csv: and hf: (default client, where there is one)")
    build.add_argument("--out", dest="folder", type=Path, help=f"folder of the stores (default {BUILT})")
    build.add_argument("--embed", action="store_true", help="keep the samples in the store, not in a file beside it")
    show = commands.add_parser("show", help="print a store's numbers and draw it")
    show.add_argument("file", type=Path)
    commands.add_parser("list", help="print data sets, partitions and presets")
    options = vars(parser.parse_args())
    command = options.pop("command")
    try:
        if command == "build":
            _build(options)
        elif command == "show":
            _show(options["file"])
        else:
            _list()
    except (DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _build(options: dict) -> None:
    preset = PRESETS[options.pop("preset")]._asdict() if "preset" in options else {}
    settings = {"dataset": "mnist5k", "partition": "dirichlet:0.5", "seed": 0, "data_dir": None} | preset | options
    settings.setdefault("clients", None if settings["partition"] == "natural" else 10)
    settings.setdefault("folder", BUILT)
    choices = Choices(**{name: settings.pop(name) for name in Choices._fields if name in settings})
    path = prepare(**settings, choices=choices)
    with open_store(path) as store:
        print(f"{printable(path)}\ncontent hash {store.sha256}")


def _show(path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    with open_store(path) as store:
        sizes, counts = [store.sizes(split) for split in SPLITS], store.counts()
        clients = Table("client", *SPLITS, "classes", "largest class", title=title(store))
        names = store.meta.client_names or range(store.clients)
        for client, name in enumerate(names[:ROWS]):
            row = counts[client]
            share = f"{store.classes[row.argmax()]!r} {row.max() / row.sum():.0%}"
            clients.add_row(printable(name), *(str(size[client]) for size in sizes), str(np.count_nonzero(row)), share)
        totals = counts.sum(axis=1)
        facts = {
            "clients": str(store.clients) + (f" (the first {ROWS} above)" if store.clients > ROWS else ""),
            "samples": ", ".join(f"{split} {size.sum()}" for split, size in zip(SPLITS, sizes, strict=True)),
            "samples per client": _spread(totals),
            "classes per client": _spread(np.count_nonzero(counts, axis=1)),
            "imbalance": f"the largest client has {totals.max() / totals.min():.1f} times the samples of the smallest",
            "label distance of two clients": _spread(label_distance(store)) + " (0 same mix, 1 no class in common)",
        }
        for split, (own, other) in duplicates(store).items():
            facts[f"{split} samples trained on"] = f"{own} by the same client, {other} by any client (exact duplicates)"
        facts["content hash"] = store.sha256
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(clients)
        for name, fact in facts.items():
            console.print(f"{name}: {fact}", soft_wrap=True)
        for kind, draw in {"heatmap": heat_map, "samples": contact_sheet}.items():
            picture = path.with_suffix(f".{kind}.png")
            try:
                draw(store).savefig(picture, dpi=120)
            except OSError as error:
                raise DataError(f"{picture} cannot be written: {error.strerror}; copy the store elsewhere") from error
            console.print(f"{kind}: {printable(picture)}", soft_wrap=True)


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "none"
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}"


def _list() -> None:
    print("data sets:", *NAMES)
    print("  with natural clients:", *(name for name in NAMES if may_be_natural(name)))
    print("partitions:", *FORMS)
    print("presets:")
    for name, preset in PRESETS.items():
        clients = f"{preset.clients} clients"
        kept = f", {preset.fraction:.0%} of the training samples" if preset.fraction < 1 else ""
        print(f"  {name:16} {preset.dataset}, {preset.partition}, {clients}{kept}")


if __name__ == "__main__":
    sys.exit(main())
