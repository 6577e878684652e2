"""A partition to look at: numbers, the class-by-client heat map and a contact sheet of samples."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.splits import SPLITS
from data_partitions.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label_distance(store: Store) -> np.ndarray:
    """float64 (pairs of clients,): total variation of their label distributions, 0 (the same) to 1 (nothing shared)."""
    from scipy.spatial.distance import pdist

    counts = store.counts()
    return pdist(counts / counts.sum(axis=1, keepdims=True), "cityblock") / 2


def duplicates(store: Store) -> dict[str, tuple[int, int]]:
    """Held-out samples whose exact pixels or characters are also trained on: (by the same client, by any client).

    Reads and verifies every sample.
    """
    keys, clients, splits = [], [], []
    for client in range(store.clients):
        for split in SPLITS:
            x, _ = store.samples(client, split)
            keys += [hashlib.blake2b(row, digest_size=8).digest() for row in x]
            clients += [client] * len(x)
            splits += [split] * len(x)
    _, content = np.unique(np.frombuffer(b"".join(keys), np.uint64), return_inverse=True)
    owned, split_of = content * store.clients + np.array(clients), np.array(splits)
    trained = split_of == "train"
    found = {}
    for split in SPLITS[1:]:
        by_same, by_any = (np.isin(code[split_of == split], code[trained]) for code in (owned, content))
        found[split] = int(by_same.sum()), int(by_any.sum())
    return found


WIDTH = 6.75
"""Inches of a figure: both columns of a paper."""

TICKS = 100
"""Classes whose names can still be read beside the rows."""


def heat_map(store: Store) -> "Figure":
    """How many samples of each class (rows) each client (columns) has, all splits together."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    counts = store.counts().T
    classes, clients = counts.shape
    figure = Figure(figsize=(WIDTH, min(1.4 + 0.18 * classes, 9)), layout="constrained")
    axes = figure.subplots()
    # Logarithmic, and zero stays white: a few must look neither like none nor like the rest beside the largest count.
    norm = LogNorm(1, max(counts.max(), 2))
    image = axes.imshow(counts, aspect="auto", cmap="viridis_r", interpolation="nearest", norm=norm)
    bar = figure.colorbar(image)
    bar.set_label("samples (white: none)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_xlabel("client", fontsize=8)
    axes.set_ylabel("class", fontsize=8)
    caption = "row: class; column: client; colour: its samples, all splits together"
    axes.set_title(f"{title(store)}\n{caption}", fontsize=8, parse_math=False)
    names = [f"{name[:11]}…" if len(name) > 12 else name for name in map(printable, store.classes)]
    if classes <= TICKS:
        axes.set_yticks(range(classes), names, fontsize=min(7, 600 / classes), parse_math=False)
    else:
        axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=7)
    if clients <= 30:
        axes.set_xticks(range(clients))
    return figure


def contact_sheet(store: Store) -> "Figure":
    """Training samples at even distances of up to ten clients, a row each."""
    from matplotlib.figure import Figure

    pictures = store.task == "image"
    rows, columns = min(store.clients, 10), 12 if pictures else 1
    figure = Figure(figsize=(WIDTH, (0.62 if pictures else 0.25) * rows + 0.6), layout="constrained")
    caption = f"row: client; column: a training sample, {'above it' if pictures else 'and after the arrow'} its class"
    figure.suptitle(f"{title(store)}\n{caption}", fontsize=8, parse_math=False)
    for client, row in enumerate(figure.subplots(rows, columns, squeeze=False)):
        x, y = store.samples(client, "train")
        for axes in row:
            axes.set_axis_off()
        for axes, sample in zip(row, np.arange(columns) * len(x) // columns, strict=True):
            if pictures:
                axes.imshow(_shades(x[sample], store), cmap="gray", vmin=0, vmax=255)
                axes.set_title(printable(store.classes[y[sample]]), fontsize=6, pad=1, parse_math=False)
            else:
                if store.task == "text":
                    text = "".join(store.classes[letter] for letter in x[sample]).replace("\n", "⏎")
                else:
                    text = " ".join(f"{value:.4g}" for value in x[sample][:12]) + " …" * (len(x[sample]) > 12)
                text = printable(f"{text} → {store.classes[y[sample]]!r}")
                axes.text(0, 0.4, text, family="monospace", fontsize=8, parse_math=False)
        row[0].text(-0.02, 0.5, f"{client} ", transform=row[0].transAxes, ha="right", va="center", fontsize=8)
    return figure


def _shades(picture: np.ndarray, store: Store) -> np.ndarray:
    """The picture as bytes; of numbers those within two deviations of their channel's mean."""
    if picture.dtype == np.uint8:
        return picture
    return (((picture - store.mean) / store.std + 2) / 4 * 255).clip(0, 255).astype(np.uint8)


def title(store: Store) -> str:
    """The recipe in a line."""
    return printable("{dataset}, {partition}, {clients} clients, seed {seed}".format(**store.recipe))


def printable(text: object) -> str:
    """The text on one line, with an escape for each character that a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
