"""python -m data_partitions: build, show and list as a user types them."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_partitions import heat_map, open_store, prepare
from data_partitions.presets import PRESETS
from data_partitions.show import contact_sheet, duplicates, label_distance
from tests.support import ROOT


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_partitions", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_build_show_and_list(tmp_path: Path) -> None:
    done = run("build", "--partition", "classes:2", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / done.stdout.splitlines()[0]
    assert path == tmp_path / "data/partitions/mnist5k-classes_2-clients10-seed3-fraction1.0.h5"
    with open_store(path) as store:
        assert store.sha256 in done.stdout

    shown = run("show", path, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for fact in (
        "clients: 10",
        "samples: train 3500, validation 500, test 1000",
        "samples per client: 500 to 500, median 500",
        "classes per client: 2 to 2, median 2",
        "test samples trained on: 0 by the same client, 0 by any client",
    ):
        assert fact in shown.stdout
    for kind in ("heatmap", "samples"):
        with Image.open(path.with_suffix(f".{kind}.png")) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50

    listed = run("list", cwd=tmp_path)
    assert listed.returncode == 0
    for word in ("mnist5k", "npz:PATH", "dirichlet:ALPHA", "scenario2", "20% of the training samples"):
        assert word in listed.stdout


def test_bad_input_is_one_sentence_on_the_error_stream(tmp_path: Path) -> None:
    (tmp_path / "broken.h5").write_bytes(b"no")
    np.savez(tmp_path / ("n" * 244), x=np.zeros((60, 8, 8), np.uint8), y=np.arange(60) % 3)
    for arguments in (
        ["build", "--partition", "dirichlet:0"],
        ["build", "--clients", "6000"],
        ["show", "broken.h5"],
        ["show", "."],
        ["show", "n" * 300],
        ["build", "--out", "n" * 300],
        ["build", "--dataset", f"npz:{'n' * 244}.npz"],
        ["build", "--dataset", "npz:\udcff.npz"],
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_presets_are_recipes_and_options_change_them(tmp_path: Path) -> None:
    scenario1, scenario2 = PRESETS["scenario1"], PRESETS["scenario2"]
    assert scenario2 == scenario1._replace(fraction=0.2)
    assert PRESETS["scenario3"] == ("mnist", "classes:2", 10, 1.0)
    done = run("build", "--preset", "scenario3", "--dataset", "mnist5k", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here/mnist5k-classes_2-clients10-seed0-fraction1.0.h5").is_file()


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Client a has one image eleven times, three of them for testing; client b has it once, for testing."""
    x = np.random.default_rng(0).integers(0, 256, (12, 5, 5), np.uint8)
    x[8] = x[0]
    alike = np.repeat(x[:1], 8, axis=0)
    for split, a, b in (("train", alike, x[1:8]), ("test", alike[:3], x[8:])):
        with h5py.File(tmp_path / f"own_{split}.h5", "w") as file:
            for client, (name, images) in enumerate({"a": a, "b": b}.items()):
                file[f"examples/{name}/x"], file[f"examples/{name}/y"] = images, np.full(len(images), client)
    return f"h5:{tmp_path / 'own_train.h5'}"


def test_duplicates_across_splits_are_counted(own: str, tmp_path: Path) -> None:
    with open_store(prepare(own, None, "natural", None, 0, tmp_path)) as store:
        assert duplicates(store) == {"validation": (1, 1), "test": (3, 4)}


def test_label_distance_by_hand(own: str, tmp_path: Path) -> None:
    with open_store(prepare(own, None, "natural", None, 0, tmp_path)) as store:
        assert label_distance(store).tolist() == [1.0]
    with open_store(prepare("mnist5k", None, "shards:10", 10, 0, tmp_path)) as store:
        counts = store.counts() / 500
        assert label_distance(store)[0] == pytest.approx(np.abs(counts[0] - counts[1]).sum() / 2)


def test_pictures_of_many_clients_and_of_text(tmp_path: Path) -> None:
    with open_store(prepare("mnist5k", None, "dirichlet:0.5", 200, 0, tmp_path)) as store:
        assert len(heat_map(store).axes) == 2
        assert len(contact_sheet(store).axes) == 10 * 12
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"shakespeare_{split}.h5", "w") as file:
            file["examples/A/snippets"] = [b"To be, or not to be: that is the question" * 10]
    with open_store(prepare("shakespeare", tmp_path, "natural", None, 0, tmp_path)) as store:
        text = contact_sheet(store).axes[0].texts[0].get_text()
        assert "To be, or not to be" in text
        heat_map(store).savefig(tmp_path / "map.png")
