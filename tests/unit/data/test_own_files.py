"""Folders of pictures, csv tables, texts in another alphabet: what is read of them, what is said, what is refused."""

import json
import string
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from benchmarks.federation.settings import Settings
from data_partitions import Choices, DataError, Store, check_partition, open_store, prepare
from data_partitions.readers.characters import LETTERS
from tests.unit.data.test_numbers import everything

GREYS = {"cats": 40, "dogs": 200}


def built(name: str, out: Path, partition: str = "iid", clients: int | None = 2, **choices: str | int) -> Store:
    return open_store(prepare(name, None, partition, clients, 0, out, choices=Choices(**choices)))


def draw(path: Path, grey: int, size: tuple[int, int] = (28, 28), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of one grey in each of two classes, in many formats."""
    for name, grey in GREYS.items():
        for number, ending in enumerate(("png", "bmp", "tiff", "gif", "pgm", "webp", "jpg", "pcx", "tga", "png")):
            draw(tmp_path / "pets" / name / f"{number}.{ending}", grey, mode="RGB" if ending == "webp" else "L")
    return tmp_path / "pets"


def test_class_folders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with built(f"folder:{folder}", tmp_path / "out") as store:
        assert store.recipe["dataset"] == "folder:pets"
        assert (store.classes, store.task, store.input_shape) == (["cats", "dogs"], "image", (28, 28, 3))
        for client in range(2):
            x, y = store.samples(client, "train")
            assert np.abs(x - np.array([40, 200])[y][:, None, None, None]).max() <= 1  # JPEG's and WebP's own loss
        trained = np.concatenate([store.samples(c, "train")[0] for c in range(2)]) / 255
        assert store.mean == pytest.approx(trained.mean(axis=(0, 1, 2)), abs=1e-4)
        sha256 = store.sha256
    assert capsys.readouterr().err == ""
    folder.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "pets")
    with built(f"folder:{tmp_path}/elsewhere/pets", tmp_path / "other") as store:
        assert store.sha256 == sha256


@pytest.mark.parametrize(
    ("size", "asked", "right", "said"),
    [
        ((28, 28), None, (28, 28, 3), ""),
        ((64, 50), None, (50, 64, 3), ""),
        ((200, 180), None, (32, 32, 3), "21 pictures of 28 × 28 to 200 × 180 pixels are resized to 32 × 32"),
        ((28, 28), 16, (16, 16, 3), "21 pictures of 28 × 28 pixels are resized to 16 × 16"),
    ],
)
def test_pictures_of_any_size(size, asked, right, said, folder: Path, tmp_path: Path, capsys) -> None:
    draw(folder / "cats" / "more.png", 40, size)
    if right[1] == 64:
        for path in folder.rglob("*.*"):
            draw(path, 40, size, "RGB")
    with built(f"folder:{folder}", tmp_path / "out", **({"image_size": asked} if asked else {})) as store:
        assert store.input_shape == right
    assert capsys.readouterr().err == (f"note: {folder}: {said} (--image-size)\n" if said else "")


def test_grey_pictures_have_one_channel_and_turned_ones_are_upright(tmp_path: Path) -> None:
    for name in GREYS:
        for number in range(6):
            draw(tmp_path / "pets" / name / f"{number}.png", 0, (4, 4))
    camera = Image.new("L", (4, 4), 0)
    camera.paste(255, (0, 0, 4, 2))
    exif = Image.Exif()
    exif[274] = 3  # the camera was held upside down
    camera.save(tmp_path / "pets/cats/0.png", exif=exif)
    with built(f"folder:{tmp_path}/pets", tmp_path / "out") as store:
        assert store.input_shape == (4, 4)
        assert everything(store)[0].tolist() == [[0] * 4] * 2 + [[255] * 4] * 2


def test_folders_of_train_and_test_are_pooled(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for part in ("train", "test"):
        for name, grey in GREYS.items():
            for number in range(5):
                draw(tmp_path / "pets" / part / name / "deep" / f"{number}.png", grey)
    draw(tmp_path / "pets" / "train" / "lost.png", 0)
    with built(f"folder:{tmp_path}/pets", tmp_path / "out") as store:
        assert store.counts().sum(axis=0).tolist() == [10, 10]
    assert capsys.readouterr().err.replace(str(tmp_path), "") == (
        "note: /pets: left out 1 of 21 pictures, which are in no class folder\n"
        "note: /pets: pictures of test, train are pooled; each client gets a test part of its own\n"
    )


def bare(folder: Path) -> None:
    for path in list(folder.rglob("*.*")):
        path.unlink()


def one_class(folder: Path) -> None:
    for path in (folder / "dogs").iterdir():
        path.unlink()


def flat(folder: Path) -> None:
    bare(folder)
    draw(folder / "1.png", 0)


def words(folder: Path) -> None:
    bare(folder)
    (folder / "cats" / "a.txt").touch()


def cut(folder: Path) -> None:
    (folder / "cats" / "0.png").write_bytes((folder / "cats" / "0.png").read_bytes()[:50])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (bare, r"pets has no files; put pictures into .*pets/<class>/"),
        (one_class, r"pets has one class folder with pictures, 'cats'; two or more are needed"),
        (flat, r"pets has pictures, but in no class folder; put them into .*pets/<class>/"),
        (words, r"pets has no pictures; give AVIF, BMP"),
        (cut, r"cats/0\.png is not a whole picture file"),
    ],
)
def test_folders_that_are_refused(spoil: Callable[[Path], None], sentence: str, folder: Path, tmp_path: Path) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=sentence):
        built(f"folder:{folder}", tmp_path / "out")


def test_paths_and_choices_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    for name, choices, sentence in (
        (f"folder:{tmp_path}/no", {}, "no is missing; folder:DIR names a folder"),
        (f"folder:{tmp_path}/t.csv", {}, r"t\.csv is a file; folder:DIR names a folder"),
        (f"csv:{folder}", {}, "pets is a directory; csv:FILE names a file"),
        (
            f"folder:{folder}",
            {"label_column": "y"},
            "--label-column is for csv:FILE and hf:NAME, not for data set folder",
        ),
        ("mnist5k", {"image_size": 9}, "--image-size is for folder:DIR and hf:NAME, not for data set mnist5k"),
        (f"folder:{folder}", {"image_size": 0}, "--image-size 0 is not possible; give a whole number from 1"),
    ):
        with pytest.raises(DataError, match=sentence):
            built(name, tmp_path / "out", **choices)
    with pytest.raises(DataError, match=r"has no natural clients"):
        check_partition(f"folder:{folder}", "natural", None)


def test_what_folders_of_results_call_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets.v2").mkdir()
    monkeypatch.chdir(tmp_path / "pets.v2")
    for name, short in (("folder:.", "pets.v2"), ("csv:a/b.csv", "b"), ("hf:some/set", "set"), ("digits", "digits")):
        assert Settings(dataset=name).directory.parts[1] == f"{short}-dirichlet:0.5"


ROWS = [
    f"{20 + row},{'mf'[row % 3 > 0]},{['bonn', 'ulm'][row // 30]},{row % 5 == 4:d},{['ill', 'well'][row % 2]}"
    for row in range(60)
]
TABLE = ["age,sex,site,test,label", *ROWS]


def write(folder: Path, lines: list[str], comma: str = ",") -> str:
    (folder / "t.csv").write_text("\n".join(lines).replace(",", comma))
    return f"csv:{folder / 't.csv'}"


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_a_table_of_numbers_and_words(comma: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Columns are age, test, sex=f, sex=m, site=bonn, site=ulm: numbers first."""
    with built(write(tmp_path, TABLE, comma), tmp_path / "out") as store:
        assert (store.task, store.classes, store.input_shape) == ("tabular", ["ill", "well"], (6,))
        x = everything(store)
        assert x.dtype == np.float32
        assert x[:4].tolist() == [[20, 0, 0, 1, 1, 0], [21, 0, 1, 0, 1, 0], [22, 0, 1, 0, 1, 0], [23, 0, 0, 1, 1, 0]]
        assert (store.recipe["dataset"], store.counts().sum(axis=0).tolist()) == ("csv:t.csv", [30, 30])
    said = f"note: {tmp_path}/t.csv: the words of 'sex', 'site' are taken as 4 columns of 0 and 1\n"
    assert capsys.readouterr().err == said


def test_the_clients_of_a_table_and_its_own_test_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = write(tmp_path, TABLE)
    with pytest.raises(
        DataError, match=r"csv:t\.csv names no clients for 'natural'; give their column by --client-column"
    ):
        built(name, tmp_path / "out", "natural", None)
    with built(name, tmp_path / "out", "natural", None, client_column="site") as store:
        assert store.meta.client_names == ["bonn", "ulm"]
        assert [store.indices(c, "test").tolist() for c in range(2)] == [list(range(4, 30, 5)), list(range(34, 60, 5))]
    assert "'natural' keeps the 12 rows that column test marks for testing" in capsys.readouterr().err
    with built(name, tmp_path / "out", label_column="sex") as store:
        assert store.classes == ["f", "m"]


def test_784_columns_are_a_picture(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (12, 784))
    lines = [
        "label," + ",".join(f"p{k}" for k in range(784)),
        *(f"{i % 2}," + ",".join(map(str, row)) for i, row in enumerate(x)),
    ]
    with built(write(tmp_path, lines), tmp_path / "out") as store:
        assert (store.input_shape, everything(store).dtype) == ((28, 28), np.uint8)
        assert (everything(store).reshape(12, -1) == x).all()


def with_row(row: int, text: str) -> list[str]:
    return [*TABLE[:row], text, *TABLE[row + 1 :]]


@pytest.mark.parametrize(
    ("lines", "choices", "sentence"),
    [
        (
            with_row(16, ",m,ulm,0,ill"),
            {},
            "has empty cells or NaN, 1 in all, the first in column 'age', line 17; fill",
        ),
        (
            with_row(16, "NaN,m,ulm,0,ill"),
            {},
            "has empty cells or NaN, 1 in all, the first in column 'age', line 17; fill",
        ),
        (with_row(16, "30,m,ulm,0,"), {}, "the first in column 'label', line 17"),
        (with_row(16, "inf,m,ulm,0,ill"), {}, "NaN or infinity in 1 of 60 samples, the first in number 15"),
        (with_row(16, "?,m,ulm,0,ill"), {}, r"column 'age' in .* has '\?' among numbers, the first in line 17"),
        (TABLE, {"label_column": "y"}, r"has no column 'y'; give one of 'age', 'sex', 'site', … by --label-column"),
        (TABLE, {"client_column": "who"}, r"has no column 'who'; .* by --client-column"),
        (TABLE, {"client_column": "label"}, "column 'label' cannot name both classes and clients"),
        ([line.rpartition(",")[0] for line in TABLE], {}, "has no column 'label'; give one of"),
        ([*TABLE[:1], *(f"{row.rpartition(',')[0]},ill" for row in ROWS)], {}, r"t\.csv has one class, 'ill'; two"),
        (["label", *"0110" * 9], {}, "has no columns but 'label'; features are needed"),
        (["a,label"], {}, "has no rows; at least one is needed"),
        ([], {}, "is not a whole csv file"),
        (
            ["a,label", *(f"{row},{row / 8}" for row in range(60))],
            {},
            r"holds decimals such as 0\.125; classes are needed",
        ),
        (["a,b,label", *(f"{row},p{row},{row % 2}" for row in range(60))], {}, "column 'b' in .* 60 different words"),
    ],
)
def test_tables_that_are_refused(lines: list[str], choices: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        built(write(tmp_path, lines), tmp_path / "out", **choices)
    assert "t.csv" in str(error.value)
    assert "\n" not in str(error.value)


def write_text(path: Path, text: str) -> str:
    with h5py.File(path, "w") as file:
        file["examples/a/snippets"] = [text.encode()]
    return f"h5:{path}"


def test_a_text_of_other_letters_has_its_own_alphabet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of its training part; up to a hundredth of foreign characters are read as spaces in LEAF's alphabet."""
    cyrillic = "".join(chr(0x430 + step * step % 32) for step in range(81 * 12))
    name = write_text(tmp_path / "own_train.h5", cyrillic)
    write_text(tmp_path / "own_test.h5", cyrillic[: 81 * 2] + "z" * 81)
    with built(name, tmp_path / "out", "natural", None) as store:
        assert store.classes == sorted({" ", *cyrillic})
        read = [store.classes[number] for number in store.samples(0, "test")[0][-1]]
        assert read == [" "] * 80
    assert (
        f"the text has an alphabet of its own, {len(set(cyrillic)) + 1} of {len(set(cyrillic))} characters"
        in capsys.readouterr().err
    )
    latin = (string.ascii_lowercase + " ") * 36
    with built(write_text(tmp_path / "own.h5", "é" + latin), tmp_path / "out") as store:
        assert store.classes == LETTERS


def test_a_hub_needs_its_package_which_is_said(tmp_path: Path) -> None:
    try:
        import datasets  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(
            DataError, match="hf:some/set needs the package datasets, which is not installed; pip install"
        ):
            built("hf:some/set", tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 training and 12 test pictures of two of three classes, by three writers, in parquet files."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light", "never"])}
    kinds["writer"] = datasets.Value("string")
    (tmp_path / "pics").mkdir()
    for part, count in (("train", 30), ("test", 12)):
        images = [Image.new("L", (6, 6), 50 + 100 * (i % 2)) for i in range(count)]
        columns = {
            "image": images,
            "label": [i % 2 for i in range(count)],
            "writer": [f"w{i % 3}" for i in range(count)],
        }
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        made.to_parquet(tmp_path / "pics" / f"{part}-0.parquet")
    return tmp_path / "pics"


def test_a_data_set_that_datasets_loads(hub: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    capfd.readouterr()
    with built(f"hf:{hub}", tmp_path / "out", "natural", None, client_column="writer") as store:
        assert (store.recipe["dataset"], store.input_shape) == ("hf:pics", (6, 6))
        assert (store.classes, store.meta.client_names) == (["dark", "light", "never"], ["w0", "w1", "w2"])
        for client in range(3):
            x, y = store.samples(client, "test")
            assert (len(x), (x == (50 + 100 * y)[:, None, None]).all()) == (4, True)
    assert capfd.readouterr().err == "note: hf:pics: 1 of 3 classes without a sample: 'never'\n"
    with pytest.raises(DataError, match=r"hf:.*/pics has no column 'y'; give one of .* by --label-column"):
        built(f"hf:{hub}", tmp_path / "out", label_column="y")
    with pytest.raises(DataError, match=r"hf:no/set is not loaded by datasets \("):
        built("hf:no/set", tmp_path / "out")


def test_a_runs_record_names_its_choices() -> None:
    record = json.loads(json.dumps(Settings(dataset="csv:a.csv", label_column="y").record()))
    assert (record["label_column"], record["client_column"], record["image_size"]) == ("y", None, None)
