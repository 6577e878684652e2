"""From a recipe to a partition store: what the harness and the command line call."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_partitions import partitioners, splits
from data_partitions.datasets import AS_READ, DATASETS, Choices, check_name, may_be_natural
from data_partitions.errors import DataError
from data_partitions.files import OldVersionError
from data_partitions.normalisation import PER_PARTITION, constants
from data_partitions.samples import Samples, read_samples, write_samples
from data_partitions.sources import load, locate
from data_partitions.store import open_store, write_partition
from pfedpara.streams import stream_seed

RECIPE_VERSION = 3
"""How owners and splits follow from the rest of a recipe. A store of another version is built anew."""


BUILT = Path("data/partitions")
"""Where ``python -m data_partitions build`` puts a store, and a run looks for one of its recipe."""

NAMED = "{}-{partition}-clients{clients}-seed{seed}-fraction{fraction}"
"""What a store of samples is called, where it has no marks; colons become underscores."""


def find_built(dataset: str, partition: str, clients: int, seed: int, fraction: float) -> Path | None:
    """The store in `BUILT` whose name is that of this recipe, if any; `prepare` there verifies it."""
    stem = re.sub(r"[^\w.-]", "_", Path(dataset.partition(":")[2]).stem or dataset)
    form = partitioners.parse(partition).spec
    name = NAMED.format(f"{stem}*", partition=form, clients=clients, seed=seed, fraction=fraction).replace(":", "_")
    found = sorted(path for end in ("", "-embedded") for path in BUILT.glob(f"{name}{end}.h5"))
    return found[0] if found else None


def check(dataset: str, partition: str, clients: int | None, choices: Choices = AS_READ) -> None:
    """Reject an unknown data set or partition and a senseless number of clients before anything is loaded.

    clients None is for `natural` only. Raises DataError.
    """
    natural = partitioners.parse(partition).assign is None
    try:
        dataset.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of data set {dataset!r} is not UTF-8; give a name that is") from None
    check_name(dataset, choices)
    if natural and not may_be_natural(dataset):
        raise DataError(f"data set {dataset} has no natural clients; choose another partition than 'natural'")
    if clients is None and not natural:
        raise DataError(f"partition {partition!r} needs a number of clients; give 1 or more")
    if clients is not None and (isinstance(clients, bool) or not isinstance(clients, int) or clients < 1):
        raise DataError(f"{clients!r} clients are not possible; give a whole number from 1")


def prepare(
    dataset: str,
    data_dir: Path | None,
    partition: str,
    clients: int | None,
    seed: int,
    folder: Path,
    fraction: float = 1.0,
    embed: bool = False,
    tuning: bool = False,
    choices: Choices = AS_READ,
    new_clients: int = 0,
) -> Path:
    """The partition store of a recipe in `folder`: an existing one, verified, or a new one.

    data_dir: where raw data lie or are downloaded to. clients: None for all natural clients. fraction: of each client's
    training samples that is kept. embed: keep the samples in the store instead of beside it. tuning: of the samples set
    aside for it alone, none of which is in the test split of a partition that is not for tuning, whatever its recipe.
    choices: of columns and of pictures' size, for data of one's own. new_clients: so many further clients come last; of
    natural clients, which those are is drawn by `seed`.
    Raises DataError for bad input, and for existing files that are damaged or of another recipe or source.
    """
    clients = clients and clients + new_clients
    check(dataset, partition, clients, choices)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise DataError(f"seed {seed!r} is not possible; give a whole number from 0 to 2**64 - 1")
    if not (0 < fraction <= 1):
        raise DataError(f"fraction {fraction!r} is not possible; give a number above 0 and at most 1")
    samples_path, samples = _samples(dataset, data_dir, folder, choices)
    form = partitioners.parse(partition)
    # Of the data set's content alone, so that no seed and no partition tests on what another tunes on.
    aside_stream = np.random.default_rng(stream_seed("set aside", int(samples.sha256, 16)))
    aside = splits.set_aside(samples.y, samples.client, samples.is_test, aside_stream)
    used = np.flatnonzero(aside) if tuning else np.arange(len(samples.y))
    is_test, names = None, []
    if form.assign is None:
        if samples.client is None:
            named = dataset.partition(":")[0] in ("csv", "hf")
            advice = "give their column by --client-column" if named else "add an array 'client'"
            raise DataError(f"{samples.meta.dataset} names no clients for 'natural'; {advice}")
        is_test = None if tuning else samples.is_test
        part_of = partitioners.natural(samples.client[used], is_test, clients)
        if new_clients:
            part_of = partitioners.draw_last(part_of, new_clients, _stream("new clients", seed))
    else:
        # The source's own test part is everyone's; here each client is judged on samples of its own.
        try:
            part_of = _assign(samples.y[used], form, clients or 0, seed)
        except DataError as error:
            aside_note = f" (of {len(samples.y)} samples {len(used)} are set aside for tuning)" * tuning
            raise DataError(f"{error}{aside_note}") from None
        if not tuning:
            part_of = splits.exchange(samples.y, part_of, ~aside, _stream("exchange", seed))
    owner = np.full(len(samples.y), splits.UNUSED)
    owner[used] = part_of
    if form.assign is None and samples.client is not None:
        _, first = np.unique(owner[owner >= 0], return_index=True)
        names = [samples.meta.client_names[client] for client in samples.client[owner >= 0][first]]
    recipe: dict[str, Any] = {
        "version": RECIPE_VERSION,
        "dataset": samples.meta.dataset,
        "samples_sha256": samples.sha256,
        "partition": form.spec,
        "clients": int(owner.max()) + 1,
        "seed": seed,
        "fraction": float(fraction),
        "tuning": tuning,
    }
    drawn = {"new_clients": new_clients} if new_clients and form.assign is None else {}
    recipe |= drawn
    name = NAMED.format(samples_path.stem, **recipe)
    marks = f"-new{new_clients}" * bool(drawn) + "-tuning" * tuning + "-embedded" * embed
    path = folder / (name.replace(":", "_") + marks + ".h5")
    if path.exists():
        with open_store(path) as store:
            found = store.recipe
        if found == recipe:
            return path
        if found.get("version") == RECIPE_VERSION:
            raise DataError(f"{path} holds another recipe, {found}; remove it")
    testable = None if tuning else ~aside
    part = splits.split(samples.y, owner, is_test, recipe["fraction"], _stream("split", seed), testable)
    meta = replace(samples.meta, client_names=names)
    published = dataset in DATASETS and DATASETS[dataset].normalisation not in (None, PER_PARTITION)
    if not published and meta.task != "text":
        mean, std = constants(samples.x, np.flatnonzero((owner >= 0) & (part == splits.SPLITS.index("train"))))
        meta = replace(meta, mean=mean, std=std)
    samples = replace(samples, meta=meta)
    write_partition(path, recipe, samples, owner, part, "" if embed else samples_path.name)
    return path


def _assign(labels: np.ndarray, form: partitioners.Partition, clients: int, seed: int) -> np.ndarray:
    """Owners by a partitioner, checked: every client has a sample for every split."""
    assert form.assign is not None
    fewest = len(splits.SPLITS)
    if len(labels) < fewest * clients:
        raise DataError(
            f"{clients} clients are too many for {len(labels)} samples: each needs one for every split; "
            f"give at most {len(labels) // fewest}"
        )
    owner = form.assign(labels, clients, form.parameter, _stream("owner", seed))
    smallest = np.bincount(owner, minlength=clients).min()
    if smallest < fewest:
        raise DataError(f"{form.spec} with {clients} clients leaves one with {smallest} samples; give fewer clients")
    return owner


def _samples(dataset: str, data_dir: Path | None, folder: Path, choices: Choices) -> tuple[Path, Samples]:
    """The sample file of a data set, written if there is none, and the samples mapped from it."""
    source = locate(dataset, data_dir, choices)
    stem = re.sub(r"[^\w.-]", "_", source.name)
    # Two files of one name are two data sets.
    path = folder / (f"{stem}-{source.sha256[:8]}.h5" if dataset not in DATASETS else f"{stem}.h5")
    try:
        samples = read_samples(path) if path.exists() else None
    except OldVersionError:
        samples = None
    if samples is None:
        write_samples(path, load(source))
        samples = read_samples(path)
    if samples.source_sha256 != source.sha256:
        raise DataError(f"{path} was made from other files than {source.files[0]}; remove it")
    return path, samples


def _stream(purpose: str, seed: int) -> np.random.Generator:
    """One for each purpose, so that none shifts another."""
    return np.random.default_rng(stream_seed(purpose, seed))
