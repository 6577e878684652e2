"""Data sets: every loader on a small file in the real format, bad files, downloads from a server in this process."""

import gzip
import hashlib
import io
import json
import pickle
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_partitions import DataError, Store, open_store, prepare
from data_partitions.download import Remote, fetch
from data_partitions.readers.arrays import Arrays
from data_partitions.readers.characters import LETTERS
from data_partitions.readers.clients import tff
from data_partitions.sources import Source, load, locate

RNG = np.random.default_rng(0)
SPLITS = ("train", "validation", "test")


def built(dataset: str, data_dir: Path | None, out: Path, partition: str = "iid", clients: int | None = 2) -> Store:
    return open_store(prepare(dataset, data_dir, partition, clients, 0, out))


def everything(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """All x and y of a store, in the order of the sample file."""
    parts = [(store.indices(c, s), *store.samples(c, s)) for c in range(store.clients) for s in SPLITS]
    rows, x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x[np.argsort(rows)], y[np.argsort(rows)]


def write_idx(path: Path, array: np.ndarray) -> None:
    data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_idx_set(folder: Path, names: tuple[str, ...], suffix: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = RNG.integers(0, 256, (20, 28, 28), np.uint8), RNG.permutation(np.arange(20, dtype=np.uint8) % 10)
    for name, array in zip(names, (x[:15], y[:15], x[15:], y[15:]), strict=True):
        write_idx(folder / f"{name}{suffix}", array)
    return x, y


MNIST = tuple(
    f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw"), ("mnist", ".")]
)
def test_idx(name: str, folder: str, suffix: str, tmp_path: Path) -> None:
    x, y = write_idx_set(tmp_path / folder, MNIST, suffix)
    with built(name, tmp_path, tmp_path / "out") as store:
        found_x, found_y = everything(store)
        assert (found_x == x).all()
        assert (found_y == y).all()
        assert store.classes[9] == ("9" if name == "mnist" else "Ankle boot")


def test_compressed_or_not_is_the_same_content(tmp_path: Path) -> None:
    x, y = write_idx_set(tmp_path / "plain", MNIST, "")
    for name, array in zip(MNIST, (x[:15], y[:15], x[15:], y[15:]), strict=True):
        write_idx(tmp_path / "MNIST/raw" / f"{name}.gz", array)
    with (
        built("mnist", tmp_path / "plain", tmp_path / "a") as first,
        built("mnist", tmp_path, tmp_path / "b") as second,
    ):
        assert first.sha256 == second.sha256
        assert first.provenance["source_sha256"] != second.provenance["source_sha256"]


def test_samples_of_other_files_are_not_reused(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST/raw", MNIST, "")
    built("mnist", tmp_path, tmp_path / "out").close()
    write_idx_set(tmp_path / "MNIST/raw", MNIST, "")
    with pytest.raises(DataError, match=r"out/mnist\.h5 was made from other files than .*; remove it"):
        built("mnist", tmp_path, tmp_path / "out")


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    names = tuple(f"emnist-balanced-{name.replace('t10k', 'test')}" for name in MNIST)
    x, _ = write_idx_set(tmp_path / "EMNIST/raw/gzip", names, ".gz")
    with built("emnist", tmp_path, tmp_path / "out") as store:
        assert (everything(store)[0] == x.transpose(0, 2, 1)).all()
        assert (len(store.classes), store.classes[46]) == (47, "t")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_binary(name: str, tmp_path: Path) -> None:
    count, label_bytes, classes = (6, 1, 10) if name == "cifar10" else (2, 2, 100)
    folder = tmp_path / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    folder.mkdir()
    x, y = RNG.integers(0, 256, (count * 5, 32, 32, 3), np.uint8), RNG.integers(0, 10, count * 5, np.uint8)
    files = (
        [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
        if name == "cifar10"
        else ["train.bin", "test.bin"]
    )
    (folder / ("batches.meta.txt" if name == "cifar10" else "fine_label_names.txt")).write_text(
        "\n".join(f"class{n}" for n in range(classes)) + "\n\n"
    )
    for part, file in enumerate(files):
        rows = slice(5 * part, 5 * part + 5)
        records = [
            bytes(label_bytes - 1) + bytes([b]) + a.transpose(2, 0, 1).tobytes()
            for a, b in zip(x[rows], y[rows], strict=True)
        ]
        (folder / file).write_bytes(b"".join(records))
    with built(name, tmp_path, tmp_path / "out") as store:
        found_x, found_y = everything(store)
        assert (found_x == x).all()
        assert (found_y == y).all()
        assert store.classes == [f"class{n}" for n in range(classes)]


def test_cinic10_image_folders(tmp_path: Path) -> None:
    colours = {}
    for part in ("train", "valid", "test"):
        for label, name in enumerate(("airplane", "truck")):
            for number in range(3):
                colour = tuple(int(value) for value in RNG.integers(0, 256, 3))
                colours[colour] = label
                path = tmp_path / "CINIC-10" / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), colour).save(path)
    with built("cinic10", tmp_path, tmp_path / "out") as store:
        x, y = everything(store)
        assert {tuple(int(v) for v in image[0, 0]): int(label) for image, label in zip(x, y, strict=True)} == colours
        assert (store.input_shape, store.classes) == ((32, 32, 3), ["airplane", "truck"])


def write_tff(path: Path, clients: dict[str, dict]) -> None:
    with h5py.File(path, "w") as file:
        for name, data in clients.items():
            for key, value in data.items():
                file[f"examples/{name}/{key}"] = value


def pixels(count: int) -> dict:
    return {"pixels": RNG.random((count, 28, 28)).astype(np.float32), "label": np.arange(count, dtype=np.int32) % 10}


@pytest.mark.parametrize("dataset", ["femnist", "femnist10", "h5"])
def test_tff_images_keep_writers_and_the_sources_test_part(dataset: str, tmp_path: Path) -> None:
    stem = {"femnist": "fed_emnist", "femnist10": "fed_emnist_digitsonly", "h5": "own"}[dataset]
    train = {"f0": pixels(20), "f1": pixels(9), "tiny": pixels(1), "f2": pixels(30)}
    test = {"f0": pixels(4), "f1": pixels(2), "tiny": pixels(1), "f2": pixels(8)}
    write_tff(tmp_path / f"{stem}_train.h5", train)
    write_tff(tmp_path / f"{stem}_test.h5", test)
    name = f"h5:{tmp_path}/own_train.h5" if dataset == "h5" else dataset
    with built(name, tmp_path, tmp_path / "out", "natural", None) as store:
        assert store.meta.client_names == ["f0", "f1", "f2"]
        assert len(store.classes) == (62 if dataset == "femnist" else 10)
        for client, writer in enumerate(store.meta.client_names):
            x, _ = store.samples(client, "test")
            assert (x == np.rint(test[writer]["pixels"] * 255)).all()
            assert store.sizes("validation")[client] == max(1, (len(train[writer]["label"]) + 4) // 8)
    with built(name, tmp_path, tmp_path / "out", "natural", 2) as store:
        assert store.meta.client_names == ["f0", "f2"]
    with built(name, tmp_path, tmp_path / "out", "dirichlet:1", 5) as store:
        assert len(everything(store)[0]) == 75


def text_of(role: int, length: int) -> str:
    return "".join(LETTERS[(role + step * step) % 80] for step in range(length))


def test_tff_shakespeare(tmp_path: Path) -> None:
    text = {
        "train": {"A:x": text_of(1, 500), "B:y": text_of(2, 300), "mute": "", "curt": "No."},
        "test": {"A:x": text_of(3, 170), "B:y": text_of(4, 100)},
    }
    for split, roles in text.items():
        # Text that has line ends of its own comes in snippets that are cut there.
        write_tff(
            tmp_path / f"shakespeare_{split}.h5",
            {role: {"snippets": t.encode().split(b"\n")} for role, t in roles.items()},
        )
    with built("shakespeare", tmp_path, tmp_path / "out", "natural", None) as store:
        assert (store.task, store.input_shape, store.classes) == ("text", (80,), LETTERS)
        assert (store.mean, store.std) == ((0.0,), (1.0,))
        assert store.meta.client_names == ["A:x", "B:y"]
        for client, role in enumerate(store.meta.client_names):
            x, y = store.samples(client, "test")
            read = "".join(LETTERS[i] for row in np.column_stack([x, y]) for i in row)
            whole = text["test"][role]
            assert read == whole[: len(whole) // 81 * 81]
            assert (
                len(store.indices(client, "train")) + len(store.indices(client, "validation"))
                == len(text["train"][role]) // 81
            )


def test_leaf_shakespeare_keeps_windows_that_share_no_character(tmp_path: Path) -> None:
    text = text_of(5, 81 * 5 + 40)
    moving = [(text[i : i + 80], text[i + 80]) for i in range(len(text) - 80)]
    for split in ("train", "test"):
        folder = tmp_path / "shakespeare/data" / split
        folder.mkdir(parents=True)
        x, y = zip(*moving, strict=True)
        (folder / "all.json").write_text(json.dumps({"users": ["A"], "user_data": {"A": {"x": x, "y": y}}}))
    with built("shakespeare", tmp_path, tmp_path / "out", "natural", None) as store:
        x, y = store.samples(0, "test")
        assert "".join(LETTERS[i] for row in np.column_stack([x, y]) for i in row) == text[: 81 * 5]


@pytest.mark.parametrize(("dataset", "kept"), [("femnist", 12), ("femnist10", 10)])
def test_leaf_femnist(dataset: str, kept: int, tmp_path: Path) -> None:
    labels = list(range(12))
    for split in ("train", "test"):
        folder = tmp_path / "femnist/data" / split
        folder.mkdir(parents=True)
        for number in range(2):
            data = {"x": RNG.random((12, 784)).round(3).tolist(), "y": labels}
            file = {"users": [f"w{number}"], "num_samples": [12], "user_data": {f"w{number}": data}}
            (folder / f"{number}.json").write_text(json.dumps(file))
    with built(dataset, tmp_path, tmp_path / "out", "natural", None) as store:
        assert store.meta.client_names == ["w0", "w1"]
        assert sorted(store.samples(1, "test")[1]) == labels[:kept]


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_own_arrays(kind: str, tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (40, 8, 6, 3), np.uint8), np.arange(40) % 4
    client = np.array([b"ann", b"bob"] * 20)
    path = tmp_path / f"my data.{kind}"
    pooled = tmp_path / f"pooled.{kind}"
    arrays = {"x": x / 255, "y": y, "client": client}
    divided = {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]}
    for file, content in ((path, arrays), (pooled, divided)):
        write_arrays(file, content)
    with built(f"{kind}:{path}", None, tmp_path / "out", "natural", None) as store:
        assert store.meta.client_names == ["ann", "bob"]
        assert (everything(store)[0] == x).all()
        assert store.recipe["dataset"] == f"{kind}:{path.name}"
    with built(f"{kind}:{pooled}", None, tmp_path / "out") as store:
        assert (everything(store)[0] == x).all()
    with pytest.raises(DataError, match="names no clients for 'natural'; add an array 'client'"):
        built(f"{kind}:{pooled}", None, tmp_path / "out", "natural", None)


IMAGES = np.zeros((20, 4, 4), np.uint8)
LABELS = np.arange(20) % 2
PIXELS = RNG.integers(2, 256, (20, 4, 4)).astype(np.uint8)


def write_arrays(path: Path, arrays: dict) -> None:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES, "y": LABELS[:19]}, "x in .* holds 20 samples and y 19 labels"),
        ({"x": IMAGES, "y": LABELS, "client": LABELS[:5]}, r"client in .* has shape \(5,\); one for each of 20"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "at least one"),
        ({"x": IMAGES, "y": LABELS - 1}, "labels from -1 to 0"),
        ({"x": IMAGES, "y": LABELS * 10**6}, "labels from 0 to 1000000"),
        ({"x": IMAGES, "y": LABELS / 2}, r"y in .* has labels such as 0\.5; whole numbers"),
        ({"x": IMAGES, "y": LABELS * 0}, "has one class, '0'; two or more are needed"),
        ({"x": IMAGES, "y": LABELS.astype(complex)}, "labels of type complex"),
        ({"x": np.full((20, 4, 4), np.nan), "y": LABELS}, "has NaN or infinity"),
        (
            {"x": np.where(LABELS, 1, np.nan)[:, None], "y": LABELS},
            "NaN or infinity in 10 of 20 samples, the first in number 0;",
        ),
        ({"x": np.full((20, 4, 4), 1e300), "y": LABELS}, "values that float32 does not hold, such as 1e\\+300"),
        ({"x": IMAGES.astype(str), "y": LABELS}, "x in .* has pixels of type <U"),
        ({"x": LABELS, "y": LABELS}, r"samples of shape \(\)"),
        ({"x": np.zeros((20, 5, 8, 8), np.uint8), "y": LABELS}, "height, width, channels"),
        ({"a": IMAGES}, "holds a; arrays x and y, or"),
        ({"x": IMAGES[:, :0, :0], "y": LABELS}, r"samples of shape \(0, 0\), without a value"),
        ({"x": IMAGES, "y": np.eye(20)[LABELS] + 1}, r"labels of shape \(20, 20\)"),
        ({"x": IMAGES, "y": LABELS * np.nan}, "has labels such as nan"),
        # As many in all, but from the ninth on every label would belong to another image.
        (
            {"x_train": IMAGES[:12], "y_train": LABELS[:8], "x_test": IMAGES[12:], "y_test": LABELS[8:]},
            "x_train in .* holds 12 samples and y_train 8 labels; give as many of both",
        ),
        (
            {"x_train": IMAGES[:12], "y_train": LABELS[:12], "x_test": IMAGES[12:, :3], "y_test": LABELS[12:]},
            r"x_test in .* has samples of shape \(3, 4\) and x_train in .* of \(4, 4\)",
        ),
        ({"x": IMAGES, "y": LABELS, "client": LABELS.astype(object)}, r"client in .* Python objects.*astype\(str\)"),
    ],
)
def test_bad_arrays(arrays: dict, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        built(f"npz:{tmp_path}/bad.npz", None, tmp_path / "out")
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


class Mine:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.path,)


def test_pickled_content_is_never_run(tmp_path: Path) -> None:
    trap, bad = tmp_path / "trap", tmp_path / "bad.npz"
    np.savez(bad, x=np.array([Mine(trap)], object), y=LABELS[:1])
    with pytest.raises(DataError, match=r"x in .*bad\.npz holds Python objects, which are never unpickled"):
        built(f"npz:{bad}", None, tmp_path / "out")
    bad.write_bytes(pickle.dumps(Mine(trap)))
    with pytest.raises(DataError, match=r"bad\.npz is not a whole \.npz file; write one with numpy\.savez"):
        built(f"npz:{bad}", None, tmp_path / "out")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "name"), [(b"", "npz"), (b"", "h5"), (b"PK\3\4 cut", "npz"), (b"\x89HDF\r\n\x1a\n", "h5")]
)
def test_broken_files(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{name}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken.* is not a whole .* file.*get the file again"):
        built(f"{name}:{path}", None, tmp_path / "out")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a directory; npz:PATH names a file"):
        built(f"npz:{tmp_path}", None, tmp_path)
    with pytest.raises(DataError, match=r"is missing; h5:PATH names a file"):
        built(f"h5:{tmp_path}/none.h5", None, tmp_path)
    (tmp_path / MNIST[0]).mkdir()
    for name in MNIST[1:]:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read: Is a directory"):
        built("mnist", tmp_path, tmp_path)
    for name, folder in (("mnist", tmp_path / ("x" * 300)), (f"npz:{'x' * 300}", None)):
        with pytest.raises(DataError, match="x cannot be read: File name too long"):
            built(name, folder, tmp_path)
    with pytest.raises(DataError, match="mnist needs a data folder"):
        built("mnist", None, tmp_path)


def test_broken_idx_and_labels_beyond_the_classes(tmp_path: Path) -> None:
    x, y = write_idx_set(tmp_path, MNIST, "")
    write_idx(tmp_path / MNIST[1], y[:15] + 5)
    with pytest.raises(DataError, match=r"labels from \d to 14; 0 to 9 is right"):
        built("mnist", tmp_path, tmp_path / "out")
    (tmp_path / MNIST[0]).write_bytes(b"\0\0\x0d\3" + bytes(100))
    with pytest.raises(DataError, match="is not an IDX file of unsigned bytes; get the file again"):
        built("mnist", tmp_path, tmp_path / "out")
    write_idx(tmp_path / MNIST[0], x[:15])
    (tmp_path / MNIST[0]).write_bytes((tmp_path / MNIST[0]).read_bytes()[:-5])
    with pytest.raises(DataError, match="ubyte declares 11760 bytes after its header and holds 11755 bytes"):
        built("mnist", tmp_path, tmp_path / "out")


def test_the_file_and_client_at_fault_are_named(tmp_path: Path) -> None:
    good = pixels(9)
    write_tff(tmp_path / "fed_emnist_train.h5", {"a": good})
    for wrong, sentence in (
        ({"label": np.zeros(8, np.int32)}, "holds 9 samples and its y 8 labels"),
        ({"label": np.full(9, 62)}, "has labels from 62 to 62; 0 to 61 is right"),
        ({"label": np.full(9, 3.5)}, "has labels such as 3.5; whole numbers are needed"),
        ({"pixels": good["pixels"][:, 1:]}, r"has samples of shape \(27, 28\)"),
        ({"pixels": good["pixels"] - 1}, "has values from"),
    ):
        write_tff(tmp_path / "fed_emnist_test.h5", {"a": good, "b": good | wrong})
        with pytest.raises(DataError, match=rf"client 'b' in .*fed_emnist_test\.h5 {sentence}"):
            built("femnist", tmp_path, tmp_path / "out", "natural", None)
    write_tff(tmp_path / "fed_emnist_test.h5", {"b": {"words": np.zeros(3)}})
    with pytest.raises(DataError, match=r"test\.h5 has words; pixels and label, or snippets, are needed"):
        built("femnist", tmp_path, tmp_path / "out", "natural", None)
    (tmp_path / "fed_emnist_test.h5").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"fed_emnist_test\.h5 is not a whole HDF5 file .*; get the file again"):
        built("femnist", tmp_path, tmp_path / "out", "natural", None)


def test_clients_without_samples_are_left_out_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_tff(tmp_path / "own.h5", {"a": pixels(9), "b": pixels(0), "c": pixels(8)})
    with built(f"h5:{tmp_path}/own.h5", None, tmp_path / "out", "natural", None) as store:
        assert store.meta.client_names == ["a", "c"]
        assert [store.counts()[c].sum() for c in range(2)] == [9, 8]
    assert "own.h5: left out 1 of 3 clients, without samples: 'b'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"y": LABELS[:, None]}, r"labels of shape (n, 1) are taken as (n,)"),
        ({"y": np.eye(2)[LABELS]}, "one-hot labels are taken as whole numbers from 0 to 1"),
        ({"y": LABELS.astype(np.float32)}, "whole labels stored as float32 are taken as integers"),
        ({"x": PIXELS.astype(np.float64)}, "taken as whole numbers from 0 to 255, not as decimals from 0 to 1"),
        ({"more": LABELS}, "read x, y; left out 'more'"),
    ],
)
def test_what_is_taken_is_said(kind: str, arrays: dict, sentence: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / f"own.{kind}"
    write_arrays(path, {"x": PIXELS, "y": LABELS} | arrays)
    with built(f"{kind}:{path}", None, tmp_path / "out") as store:
        x, y = everything(store)
        assert (x == PIXELS).all()
        assert (y == LABELS).all()
    noted = capsys.readouterr().err
    assert sentence in noted
    assert str(path) in noted
    assert noted.count("\n") == 1


def test_classes_without_samples_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "own.npz", x=IMAGES, y=LABELS * 2 + 1)
    with built(f"npz:{tmp_path}/own.npz", None, tmp_path / "out") as store:
        assert (store.counts().sum(axis=0) == [0, 10, 0, 10]).all()
    assert "note: npz:own.npz: 2 of 4 classes without a sample: '0', '2'" in capsys.readouterr().err


def test_clients_of_a_divided_set_keep_its_test_part(tmp_path: Path) -> None:
    """Of each of two clients 6 samples are in x_train and 4 in x_test."""
    divided = {"x_train": PIXELS[:12], "y_train": LABELS[:12], "x_test": PIXELS[12:] / 255, "y_test": LABELS[12:]}
    np.savez(tmp_path / "own.npz", **divided, client=LABELS)
    with built(f"npz:{tmp_path}/own.npz", None, tmp_path / "out", "natural", None) as store:
        assert [store.indices(c, "test").tolist() for c in range(2)] == [[12, 14, 16, 18], [13, 15, 17, 19]]
        assert (everything(store)[0] == PIXELS).all()


def declaring(shape: tuple[int, ...]) -> bytes:
    """An .npy file that says it has this shape, and has no values."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.mark.parametrize("case", ["npz", "npz_file", "h5", "gz"])
def test_what_a_file_declares_is_compared_with_the_memory_there_is(case: str, tmp_path: Path) -> None:
    """2 TiB, of which nothing may be asked for. (An .npz may also declare less than it unpacks to.)"""
    huge = (1 << 21, 1 << 10, 1 << 10)
    path, sentence = tmp_path / f"own.{case}", r" declares 2\.05e\+03 GiB, and .* GiB of memory are free"
    if case == "gz":
        write_idx_set(tmp_path, MNIST, ".gz")
        path = tmp_path / f"{MNIST[2]}.gz"
        path.write_bytes(gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", *huge)))
    elif case == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", huge, np.uint8, chunks=(1, 1 << 10, 1 << 10), compression="gzip")
            file["y"] = LABELS
    else:
        path = tmp_path / "own.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", declaring(huge if case == "npz" else (20, 4, 4)) + bytes(20 * 4 * 4 + 1))
            archive.writestr("y.npy", b"")
        sentence = sentence if case == "npz" else " declares 320 bytes and has others; get the file again"
    with pytest.raises(DataError, match=f"{path.name}{sentence}"):
        built("mnist" if case == "gz" else f"{path.suffix[1:]}:{path}", tmp_path, tmp_path / "out")


def linked_x(file: h5py.File, group: h5py.Group) -> None:
    group["x"] = h5py.ExternalLink("good.h5", "/x")


def soft_x(file: h5py.File, group: h5py.Group) -> None:
    file["elsewhere"] = h5py.ExternalLink("good.h5", "/x")
    group["x"] = h5py.SoftLink("/elsewhere")


def external_x(file: h5py.File, group: h5py.Group) -> None:
    group.create_dataset("x", (20, 4, 4), np.uint8, external=[("secret", 0, h5py.h5f.UNLIMITED)])


def virtual_x(file: h5py.File, group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((20, 4, 4), np.uint8)
    layout[:] = h5py.VirtualSource("good.h5", "x", (20, 4, 4))
    group.create_virtual_dataset("x", layout)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("trap", [linked_x, soft_x, external_x, virtual_x])
def test_hdf5_reads_nothing_outside_the_file(trap, grouped: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").write_bytes(bytes(20 * 4 * 4))
    write_arrays(Path("good.h5"), {"x": IMAGES, "y": LABELS})
    with h5py.File("own.h5", "w") as file:
        group = file.create_group("examples/a") if grouped else file
        trap(file, group)
        group["y"] = LABELS
    with pytest.raises(DataError, match=r"x in own\.h5 is (missing, or a link|kept in a way)"):
        built("h5:own.h5", None, Path("out"))
    assert not Path("out").exists()


def test_a_group_of_another_file_is_not_entered(tmp_path: Path) -> None:
    write_tff(tmp_path / "good.h5", {"a": pixels(9)})
    for name, target in (("examples", "/examples"), ("examples/a", "/examples/a")):
        with h5py.File(tmp_path / "own.h5", "w") as file:
            file[name] = h5py.ExternalLink("good.h5", target)
        with pytest.raises(DataError, match=r"in .*own\.h5 is missing, or a link, which is not followed"):
            built(f"h5:{tmp_path}/own.h5", None, tmp_path / "out")


def pictures(folder: Path, names: list[str], size: int = 4) -> None:
    """One grey each, of 0, 10, 20, …, as train, valid and test/<name>."""
    for part in ("train", "valid", "test"):
        for number, name in enumerate(names):
            path = folder / "CINIC-10" / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (10 * number,) * 3).save(path)


def test_every_picture_is_read_whatever_its_ending(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures(tmp_path, ["a/1.png", "b/2.PNG", "c/3.jpg", "d/4.bmp", "d/5.tiff"])
    for name in (".DS_Store", "a/Thumbs.db", "a/._1.png", ".ipynb_checkpoints/1-checkpoint.png"):
        path = tmp_path / "CINIC-10/train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not a picture")
    with built("cinic10", tmp_path, tmp_path / "out") as store:
        x, y = everything(store)
    assert y.tolist() == [0, 1, 2, 3, 3] * 3
    assert x.tolist() == [[[[grey] * 3] * 4] * 4 for grey in (0, 10, 20, 30, 40)] * 3
    assert store.classes == ["a", "b", "c", "d"]
    assert capsys.readouterr().err == ""


def test_pictures_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures(tmp_path, ["a/1.png", "b/2.png"])
    (tmp_path / "CINIC-10/train/c").mkdir()
    for name in ("a/2.svg", "b/readme", "c/1.svg"):
        (tmp_path / "CINIC-10/train" / name).write_text("")
    with built("cinic10", tmp_path, tmp_path / "out") as store:
        assert len(everything(store)[0]) == 6
    assert capsys.readouterr().err.splitlines() == [
        "note: read 6 of 9 files: 3 of a kind not known (.svg, no ending)",
        "note: left out 1 of 3 classes, without pictures: 'c'",
    ]


@pytest.mark.parametrize(("ending", "kind"), [("png", "<u2"), ("tiff", "<u2"), ("tiff", ">u2"), ("pgm", ">u2")])
def test_16_bits_are_scaled_not_clipped(ending: str, kind: str, tmp_path: Path) -> None:
    grey = np.array([[0, 128, 129, 257], [25700, 32767, 65407, 65535], [1, 2, 3, 4], [5, 6, 7, 8]], np.uint16)
    pictures(tmp_path, ["a/1.png", "b/2.png"])
    for part in ("train", "valid", "test"):
        path = tmp_path / "CINIC-10" / part / f"a/16.{ending}"
        if ending == "pgm":
            path.write_bytes(b"P5 4 4 65535\n" + grey.astype(kind).tobytes())
        else:
            Image.fromarray(grey.astype(kind)).save(path)
    with built("cinic10", tmp_path, tmp_path / "out") as store:
        found = everything(store)[0][1]
    right = [[0, 0, 1, 1], [100, 127, 255, 255], [0] * 4, [0] * 4]
    assert (found == np.array(right)[..., None]).all()


def test_the_picture_at_fault_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, ["a/1.png", "b/2.png"])
    wrong = tmp_path / "CINIC-10/valid/b/2.png"
    Image.new("RGB", (5, 4)).save(wrong)
    with pytest.raises(DataError, match=r"valid/b/2\.png has samples of shape \(4, 5, 3\) and .*1\.png of \(4, 4, 3\)"):
        built("cinic10", tmp_path, tmp_path / "out")
    wrong.write_bytes(wrong.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"valid/b/2\.png .*; "):
        built("cinic10", tmp_path, tmp_path / "out")
    Image.new("F", (4, 4)).save(wrong, format="TIFF")
    with pytest.raises(DataError, match=r"valid/b/2\.png has pixels of 32 bits; give 8 or 16"):
        built("cinic10", tmp_path, tmp_path / "out")
    frames = [Image.new("L", (4, 4), grey) for grey in (0, 255)]
    frames[0].save(wrong, format="GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"valid/b/2\.png holds 2 pictures; give one a file"):
        built("cinic10", tmp_path, tmp_path / "out")


def test_idx_files_are_paired(tmp_path: Path) -> None:
    """As many images as labels in all, but five test labels would belong to training images."""
    y = write_idx_set(tmp_path, MNIST, "")[1]
    write_idx(tmp_path / MNIST[1], y[:10])
    write_idx(tmp_path / MNIST[3], y[10:])
    with pytest.raises(DataError, match=rf"{MNIST[0]} holds 15 samples and .*{MNIST[1]} 10 labels; give"):
        built("mnist", tmp_path, tmp_path / "out")
    write_idx(tmp_path / MNIST[2], y[10:])
    with pytest.raises(DataError, match=rf"{MNIST[2]} has 1 dimensions and 3 are needed"):
        built("mnist", tmp_path, tmp_path / "out")


def test_raw_and_gzipped_files_may_be_mixed(tmp_path: Path) -> None:
    x, y = write_idx_set(tmp_path, MNIST, "")
    for name, array in ((MNIST[2], x[15:]), (MNIST[3], y[15:])):
        (tmp_path / name).unlink()
        write_idx(tmp_path / f"{name.replace('-idx', '.idx')}.gz", array)
    with built("mnist", tmp_path, tmp_path / "out") as store:
        assert (everything(store)[0] == x).all()


def test_a_text_set_brings_its_own_alphabet(tmp_path: Path) -> None:
    """Of the 81 characters acac…a the first c is a z, which this alphabet lacks: it is read as a space."""
    write_tff(tmp_path / "own.h5", {"a": {"snippets": [("ac" * 41)[:81].replace("c", "z", 1).encode()]}})
    found = tff([tmp_path / "own.h5"], alphabet=["c", "a", " "])
    assert found.classes == ["c", "a", " "]
    assert found.x.tolist() == [[1, 2] + [1, 0] * 39]
    assert found.y.tolist() == [1]


def write_leaf(folder: Path, **users: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all.json").write_text(json.dumps({"users": list(users), "user_data": users}))


def grey(count: int, top: int = 1) -> dict:
    return {"x": RNG.integers(0, 256, (count, 784)).tolist() if top > 1 else RNG.random((count, 784)).tolist()} | {
        "y": list(range(count))
    }


def test_leaf_at_fault_is_named(tmp_path: Path) -> None:
    data = tmp_path / "femnist/data"
    write_leaf(data / "train", a=grey(6))
    for wrong, sentence in (
        (grey(6) | {"y": [3.5] * 6}, "client 'b' in .*test/all.json has labels such as 3.5"),
        (grey(6) | {"y": [62] * 6}, "client 'b' in .*test/all.json has labels from 62 to 62; 0 to 61 is right"),
        (grey(6) | {"y": [1] * 5}, "client 'b' in .*test/all.json holds 6 samples and its y 5 labels"),
        (
            {"x": [[0.5] * 784, [0.5] * 783], "y": [1, 2]},
            "client 'b' in .*test/all.json has other than x, lists",
        ),
        (grey(6, 255), "all.json has whole numbers to 255 and .*train/all.json decimals from 0 to 1; give one scale"),
        ({"x": ["a" * 80], "y": ["b"]}, "client 'b' in .*test/all.json has texts; images are right"),
    ):
        write_leaf(data / "test", a=grey(6), b=wrong)
        with pytest.raises(DataError, match=sentence):
            built("femnist", tmp_path, tmp_path / "out")
    path = data / "test/all.json"
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"test/all\.json has no user_data; LEAF's files have users"):
        built("femnist", tmp_path, tmp_path / "out")
    path.write_text('{"users"')
    with pytest.raises(DataError, match=r"test/all\.json is not a whole JSON file .*; get the file again"):
        built("femnist", tmp_path, tmp_path / "out")


def test_leaf_whole_numbers_have_one_scale(tmp_path: Path) -> None:
    """One user's pixels are 0 and 1 alone: of 255, as others' show."""
    dark = {"x": [[1] * 784] * 4, "y": [0] * 4}
    for split in ("train", "test"):
        write_leaf(tmp_path / "femnist/data" / split, bright={"x": [[200] * 784] * 4, "y": [0] * 4}, dark=dark)
    with built("femnist", tmp_path, tmp_path / "out", "natural", None) as store:
        assert [store.samples(c, "test")[0].max() for c in range(2)] == [200, 1]


def test_a_split_by_user_is_named_as_such(tmp_path: Path) -> None:
    for split, users in (("train", "ab"), ("test", "c")):
        write_leaf(tmp_path / "femnist/data" / split, **{user: grey(6) for user in users})
    with pytest.raises(DataError, match=r"is split by user, so that no client has both.*-t sample"):
        built("femnist", tmp_path, tmp_path / "out", "natural", None)
    with built("femnist", tmp_path, tmp_path / "out", "iid", 2) as store:
        assert len(everything(store)[0]) == 18


def test_letters_outside_the_alphabet_are_spaces(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In LEAF's JSON and in TensorFlow Federated's UTF-8 alike; a user without text does not matter."""
    line = "Thou art ’ more temperaté 漢" * 3 + "and more lovely than the summers of this year of ours and all others"
    text = (line * 3)[: 3 * 81]
    right = "".join(letter if letter in LETTERS else " " for letter in text)
    outside = sum(letter not in LETTERS for letter in text)
    assert outside > 3
    samples = {"x": [text[i : i + 80] for i in range(163)], "y": [text[i + 80] for i in range(163)]}
    for split in ("train", "test"):
        write_leaf(tmp_path / "leaf/shakespeare/data" / split, a=samples, mute={"x": [], "y": []})
        (tmp_path / "tff").mkdir(exist_ok=True)
        write_tff(tmp_path / f"tff/shakespeare_{split}.h5", {"a": {"snippets": [text.encode()]}})
    for kind in ("leaf", "tff"):
        with built("shakespeare", tmp_path / kind, tmp_path / "out" / kind, "natural", None) as store:
            x, y = store.samples(0, "test")
            assert "".join(LETTERS[i] for row in np.column_stack([x, y]) for i in row) == right
        assert (
            f"{2 * outside} of {6 * 81} characters are outside the alphabet, read as spaces" in capsys.readouterr().err
        )


def test_a_text_set_may_have_an_alphabet_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own").touch()
    read = Arrays(np.zeros((20, 80), np.uint8), LABELS, ["a", "b"], text=True)
    samples = load(Source("own", [tmp_path / "own"], "", lambda files: read, None))
    assert (samples.meta.task, samples.meta.classes, samples.meta.input_shape) == ("text", ["a", "b"], (80,))


BODY = np.random.default_rng(1).bytes(1_000_000)
RIGHT = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves BODY under any path but /404; breaks off after `limit` bytes; ignores ranges where told to."""

    limit: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Range"])
        if self.path == "/404":
            self.send_error(404)
            return
        start = int(self.headers["Range"][6:-1]) if self.headers["Range"] and self.server.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start:][: self.server.limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_with_progress(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    fetch([Remote(f"{server.url}a", RIGHT, "deep/a.bin")], tmp_path)
    assert (tmp_path / "deep/a.bin").read_bytes() == BODY
    assert "1.00M/1.00M" in capfd.readouterr().err
    fetch([Remote(f"{server.url}a", RIGHT, "deep/a.bin")], tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(server: Server, ranges: bool, tmp_path: Path) -> None:
    server.limit, server.ranges = 300_000, ranges
    with pytest.raises(DataError, match="there is no connection, or it broke off; try again"):
        fetch([Remote(f"{server.url}a", RIGHT, "a.bin")], tmp_path)
    arrived = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < arrived <= 300_000
    assert not (tmp_path / "a.bin").exists()
    server.limit = None
    fetch([Remote(f"{server.url}a", RIGHT, "a.bin")], tmp_path)
    assert server.asked == [None, f"bytes={arrived}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_download_that_had_all_but_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(BODY)
    fetch([Remote(f"{server.url}a", RIGHT, "a.bin")], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_wrong_checksum_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its checksum is not md5:0000"):
        fetch([Remote(f"{server.url}a", f"md5:{'0' * 32}", "a.bin")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"/404 failed: the server answered 404; try again, or put in place .*/404 as .*/a\.bin"
    ):
        fetch([Remote(f"{server.url}404", RIGHT, "a.bin")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_is_unpacked_beside_itself(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("in/wanted", "in/not"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    checksum = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    # An archive that someone put there needs no server.
    fetch([Remote("http://127.0.0.1:9/a", checksum, "a.tar.gz", ["in/wanted"])], tmp_path)
    assert (tmp_path / "in/wanted").read_bytes() == b"abc"
    assert not (tmp_path / "in/not").exists()


def test_the_sentence_on_a_failed_download_says_what_is_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    write_idx_set(tmp_path / "FashionMNIST/raw", MNIST, "")
    (tmp_path / "FashionMNIST/raw" / MNIST[3]).unlink()
    with pytest.raises(DataError, match=rf"{tmp_path} lacks FashionMNIST/raw/{MNIST[3]}, and download of .* failed"):
        locate("fashion-mnist", tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"another archive")
    with pytest.raises(DataError, match=r"a\.tar\.gz is there, but its checksum is not sha256:.*no connection"):
        fetch([Remote("http://127.0.0.1:9/a", RIGHT, "a.tar.gz", ["in"])], tmp_path)


@pytest.mark.parametrize(
    "name",
    ["mnist", "fashion-mnist", "emnist", "femnist", "femnist10", "cifar10", "cifar100", "cinic10", "shakespeare"],
)
def test_offline_lists_files_and_places(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for scheme in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(scheme, f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(DataError, match=f"no connection.*put in place http.* as {tmp_path}/") as error:
            locate(name, tmp_path)
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
