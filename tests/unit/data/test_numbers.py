"""A user's own numbers, stored as they are and normalised by what is trained on, and the layouts they come in."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_partitions import DataError, Store, open_store, prepare
from data_partitions.files import canonical, digest
from data_partitions.samples import read_samples

RNG = np.random.default_rng(0)
SPLITS = ("train", "validation", "test")
LABELS = np.arange(40) % 2


def built(path: Path, partition: str = "iid", clients: int | None = 2, **options: bool) -> Store:
    return open_store(prepare(f"{path.suffix[1:]}:{path}", None, partition, clients, 0, path.parent / "out", **options))


def own(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


def everything(store: Store) -> np.ndarray:
    """All x in the order of the source."""
    parts = [(store.indices(c, s), store.samples(c, s)[0]) for c in range(store.clients) for s in SPLITS]
    rows, x = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x[np.argsort(rows)]


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("shape", [(13,), (5, 7), (5, 7, 3)])
def test_float32_is_stored_as_it_is(shape: tuple[int, ...], embed: bool, tmp_path: Path, capsys) -> None:
    x = (RNG.normal(size=(40, *shape)) * 1000).astype(np.float32)
    with built(own(tmp_path, x=x, y=LABELS), embed=embed) as store:
        found = everything(store)
        assert found.dtype == np.float32
        assert (found == x).all()
        assert (store.task, store.input_shape) == ("tabular" if len(shape) == 1 else "image", shape)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int16, bool])
def test_other_numbers_become_float32_which_is_said(kind: type, tmp_path: Path, capsys) -> None:
    x = RNG.integers(-300, 300, (40, 6)).astype(kind)
    with built(own(tmp_path, x=x, y=LABELS)) as store:
        assert (everything(store) == x.astype(np.float32)).all()
        assert everything(store).dtype == (np.float32 if kind is not bool else np.uint8)
    said = f"own.npz: {np.dtype(kind)} values are stored as float32\n" if kind is not bool else ""
    assert capsys.readouterr().err.partition("x in ")[2].endswith(said)


def test_decimals_between_grey_values_stay_as_they_are(tmp_path: Path) -> None:
    """Multiples of 1/255 are bytes, also after rounding to float16; all other decimals from 0 to 1 are numbers."""
    grey = RNG.integers(0, 256, (40, 4, 4), np.uint8)
    for kind in (np.float16, np.float32, np.float64):
        with built(own(tmp_path, x=(grey / 255).astype(kind), y=LABELS)) as store:
            assert (everything(store) == grey).all()
            assert everything(store).dtype == np.uint8
    between = RNG.random((40, 4, 4), np.float32)
    with built(own(tmp_path, x=between, y=LABELS)) as store:
        assert (everything(store) == between).all()


def test_constants_are_those_of_the_training_samples(tmp_path: Path) -> None:
    """Per feature, of this partition's training part alone; a feature that never changes there has deviation 1."""
    x = (RNG.normal(size=(40, 3)) * [1, 100, 0] + [0, 5000, 7]).astype(np.float32)
    for partition, fraction in (("iid", 1.0), ("dirichlet:1", 1.0), ("iid", 0.5)):
        path = prepare(f"npz:{own(tmp_path, x=x, y=LABELS)}", None, partition, 2, 0, tmp_path / "out", fraction)
        with open_store(path) as store:
            trained = np.concatenate([store.samples(c, "train")[0] for c in range(2)]).astype(np.float64)
            assert store.mean == pytest.approx(trained.mean(axis=0), rel=1e-6)
            assert store.std == pytest.approx([*trained.std(axis=0)[:2], 1.0], rel=1e-6)
    pictures = RNG.normal(size=(40, 6, 5, 3)).astype(np.float32)
    for values, unit in ((pictures, 1), (RNG.integers(0, 256, pictures.shape, np.uint8), 255)):
        with built(own(tmp_path, x=values, y=LABELS)) as store:
            trained = np.concatenate([store.samples(c, "train")[0] for c in range(2)]) / unit
            assert store.mean == pytest.approx(trained.mean(axis=(0, 1, 2)), abs=6e-5)  # bytes: to four decimals
            assert store.std == pytest.approx(trained.std(axis=(0, 1, 2)), abs=6e-5)
            assert (values / unit).mean(axis=(0, 1, 2)) != pytest.approx(store.mean, abs=1e-3)  # of the whole file


def test_the_digits_of_scikit_learn(tmp_path: Path) -> None:
    """The same digits as scikit-learn's own loader gives, whose values go to 16; constants of the training part."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    with open_store(prepare("digits", None, "iid", 10, 0, tmp_path)) as store:
        assert (everything(store) == np.rint(images * 255 / 16).reshape(-1, 8, 8)).all()
        assert store.counts().sum(axis=0).tolist() == np.bincount(labels).tolist()
        assert len(labels) == 1797
        trained = np.concatenate([store.samples(c, "train")[0] for c in range(10)]) / 255
        assert (store.mean, store.std) == (
            pytest.approx([trained.mean()], abs=1e-4),
            pytest.approx([trained.std()], abs=1e-4),
        )


GREY = RNG.integers(0, 256, (40, 8, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (40, 8, 8, 3), np.uint8)
FLAT = RNG.integers(0, 256, (40, 784), np.uint8)


def divided(x: np.ndarray, y: np.ndarray, names: str) -> dict[str, np.ndarray]:
    """MedMNIST's or Keras's names, for 24, 8 and 8 samples."""
    parts = {"train": slice(24), "val": slice(24, 32), "test": slice(32, 40)}
    return {names.format(part, "x"): x[rows] for part, rows in parts.items()} | {
        names.format(part, "y").replace("images", "labels"): y[rows] for part, rows in parts.items()
    }


@pytest.mark.parametrize(
    ("arrays", "right", "sentences"),
    [
        ({"X": GREY, "Y": LABELS}, GREY, []),
        (
            {"x": COLOUR.transpose(0, 3, 1, 2), "y": LABELS},
            COLOUR,
            ["(3, 8, 8) are taken as channels first, and stored"],
        ),
        ({"x": GREY[:, None], "y": LABELS}, GREY, ["(1, 8, 8) are taken as channels first"]),
        ({"x": FLAT, "y": LABELS}, FLAT.reshape(-1, 28, 28), ["784 values are taken as pictures of 28 × 28"]),
        (
            divided(COLOUR, LABELS[:, None], "{}_images") | {"train_labels": LABELS[:24, None]},
            COLOUR,
            ["train_labels in own.npz: labels of shape (n, 1) are taken as (n,)"],
        ),
        (divided(GREY, LABELS, "{1}_{0}"), GREY, []),
    ],
    ids=["capitals", "channels-first", "one-channel", "784", "medmnist", "keras"],
)
def test_common_layouts(arrays: dict, right: np.ndarray, sentences: list[str], tmp_path: Path, capsys) -> None:
    with built(own(tmp_path, **arrays)) as store:
        assert (everything(store) == right).all()
        assert store.input_shape == right.shape[1:]
        assert store.counts().sum(axis=0).tolist() == [20, 20]
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "").splitlines()
    assert len(said) == len(sentences)
    assert all(sentence in line for sentence, line in zip(sentences, said, strict=True))


def test_labels_may_be_names_and_classes_have_theirs(tmp_path: Path) -> None:
    with built(own(tmp_path, x=GREY, y=np.array(["owl", "cat"])[LABELS])) as store:
        assert store.classes == ["cat", "owl"]
        assert store.counts().sum(axis=0).tolist() == [20, 20]
        assert sorted(
            np.concatenate([store.indices(c, s)[store.samples(c, s)[1] == 1] for c in range(2) for s in SPLITS])
        ) == list(range(0, 40, 2))
    with built(own(tmp_path, x=GREY, y=LABELS, classes=np.array(["sit", "walk"]))) as store:
        assert store.classes == ["sit", "walk"]
    with pytest.raises(DataError, match=r"classes in .*own\.npz has 1 names, which are not those of the labels"):
        built(own(tmp_path, x=GREY, y=LABELS, classes=np.array(["sit"])))


def test_the_files_own_test_part_stays_for_natural_clients(tmp_path: Path, capsys) -> None:
    client, test = np.array(["b", "a"])[np.arange(40) // 20], np.arange(40) % 4 == 3
    with built(own(tmp_path, x=GREY, y=LABELS, client=client, test=test), "natural", None) as store:
        assert store.meta.client_names == ["a", "b"]
        assert [store.indices(c, "test").tolist() for c in range(2)] == [list(range(23, 40, 4)), list(range(3, 20, 4))]
    assert "own.npz: 'natural' keeps the 10 samples that test marks for testing" in capsys.readouterr().err
    with built(own(tmp_path, x=GREY, y=LABELS, client=client, test=np.arange(40)), "natural", None) as store:
        assert store.sizes("test").tolist() == [4, 4]
    assert "own.npz: left out test, which is not 0 or 1 for each of 40 samples" in capsys.readouterr().err


def test_numbers_of_clients_in_tensorflow_federateds_form(tmp_path: Path) -> None:
    x = RNG.normal(size=(40, 6)).astype(np.float32)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        for client in range(2):
            file[f"examples/{client}/x"], file[f"examples/{client}/y"] = x[client::2], LABELS[:20]
    with built(tmp_path / "own.h5", "natural", None) as store:
        assert (store.task, store.meta.client_names) == ("tabular", ["0", "1"])
        assert (everything(store) == np.concatenate([x[::2], x[1::2]])).all()


def test_samples_of_the_version_before_are_read_where_a_store_stands_on_them(tmp_path: Path) -> None:
    path = prepare(f"npz:{own(tmp_path, x=GREY, y=LABELS)}", None, "iid", 2, 0, tmp_path / "out")
    (samples,) = path.parent.glob("npz_own.npz-????????.h5")
    with h5py.File(samples, "r+") as file:
        file.attrs["version"] = 2
    with open_store(path) as store:
        assert (everything(store) == GREY).all()
    with pytest.raises(DataError, match="has schema version 2, this program reads 3"):
        read_samples(samples)


@pytest.mark.parametrize("kind", [np.float64, np.int32, np.float16])
def test_a_store_of_numbers_of_another_type_is_refused(kind: type, tmp_path: Path) -> None:
    path = prepare(f"npz:{own(tmp_path, x=GREY, y=LABELS)}", None, "iid", 2, 0, tmp_path, embed=True)
    with h5py.File(path, "r+") as file:
        x = file["x"][()].astype(kind)
        del file["x"]
        file.create_dataset("x", data=x, chunks=(40, 8, 8))
    with pytest.raises(DataError, match="does not fit its samples; remove it"):
        open_store(path)


def test_a_text_of_decimals_is_refused(tmp_path: Path) -> None:
    path = prepare(f"npz:{own(tmp_path, x=GREY[:, 0] * 1.5, y=LABELS)}", None, "iid", 2, 0, tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["meta"] = file.attrs["meta"].replace('"tabular"', '"text"')
        parts = [file[name][()] for name in ("indices", "bounds", "digests")]
        file.attrs["sha256"] = digest(file.attrs["recipe"], file.attrs["meta"], *parts).hex()
    assert canonical("text") in path.read_bytes().decode("latin-1")
    with pytest.raises(DataError, match="does not fit its samples; remove it"):
        open_store(path)
