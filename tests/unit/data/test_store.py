"""The store: what is written is what is read, by recipe and hash; damaged, edited and foreign files are refused."""

import contextlib
import itertools
import json
import pickle
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_partitions import DataError, Store, open_store, prepare
from data_partitions.files import canonical, digest
from data_partitions.samples import read_samples

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("mnist5k", None, "dirichlet:0.5", 10, 0, tmp_path_factory.mktemp("built"))


@pytest.fixture
def path(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    for file in built.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / built.name


def arrays_file(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "own.npz", **arrays)
    return f"npz:{folder / 'own.npz'}"


@pytest.mark.parametrize("spec", ["iid", "dirichlet:0.1", "shards:2", "classes:3", "quantity:0.5"])
@pytest.mark.parametrize("embed", [False, True])
def test_every_sample_is_in_one_client_and_one_split(spec: str, embed: bool, built: Path) -> None:
    samples = read_samples(built.parent / "mnist5k.h5")
    with open_store(prepare("mnist5k", None, spec, 10, 1, built.parent, embed=embed)) as store:
        indices = {(c, s): store.indices(c, s) for c in range(store.clients) for s in SPLITS}
        assert sorted(np.concatenate(list(indices.values()))) == list(range(5000))
        for (client, split), rows in indices.items():
            x, y = store.samples(client, split)
            assert (x == samples.x[rows]).all()
            assert (y == samples.y[rows]).all()
            assert (x.dtype, y.dtype, x.shape[1:]) == (np.uint8, np.int64, store.input_shape)
            assert store.sizes(split)[client] == len(y) >= 1
            assert (store.counts(split)[client] == np.bincount(y, minlength=10)).all()
        assert (store.counts() == sum(store.counts(split) for split in SPLITS)).all()
        mix, whole = (
            store.counts("test") / store.sizes("test")[:, None],
            store.counts() / store.counts().sum(1)[:, None],
        )
        assert np.abs(mix - whole).max() <= 2 / store.sizes("test").min()


def test_golden_recipe_gives_the_golden_hash(built: Path) -> None:
    with open_store(built) as store:
        assert store.recipe == {
            "version": 3,
            "dataset": "mnist5k",
            "samples_sha256": "d400f7eb075d8551dcd6a383d1bb6d317651b1630a84d3345062947190b31ee2",
            "partition": "dirichlet:0.5",
            "clients": 10,
            "seed": 0,
            "fraction": 1.0,
            "tuning": False,
        }
        assert store.indices(0, "validation")[:5].tolist() == [842, 918, 960, 1015, 1202]
        assert store.sha256 == "aa857843d20bf3f1fe88ce61c5f60b873022d8c5608e96ec107d1bdd30750947"
        assert (store.task, store.classes, store.input_shape) == ("image", list("0123456789"), (28, 28))
        assert (store.mean, store.std) == ((0.1307,), (0.3081,))
        assert set(store.provenance) == {"source_sha256", "numpy", "h5py"}


def test_the_hash_is_of_content_not_of_the_file(built: Path, tmp_path: Path) -> None:
    with (
        open_store(built) as store,
        open_store(prepare("mnist5k", None, "dirichlet:.5", 10, 0, tmp_path, embed=True)) as other,
    ):
        assert store.sha256 == other.sha256
    hashes = set()
    for clients, seed, fraction in [(10, 0, 1.0), (9, 0, 1.0), (10, 1, 1.0), (10, 0, 0.5)]:
        path = prepare("mnist5k", None, "dirichlet:0.5", clients, seed, tmp_path, fraction)
        assert path.name == f"mnist5k-dirichlet_0.5-clients{clients}-seed{seed}-fraction{fraction}.h5"
        with open_store(path) as store:
            hashes.add(store.sha256)
    assert len(hashes) == 4


def samples_in(store: Store, *splits: str) -> set[int]:
    return {int(i) for client in range(store.clients) for split in splits for i in store.indices(client, split)}


def tuned_and_tested(
    name: str, specs: list[str], clients: int, folder: Path, data_dir: Path | None = None
) -> tuple[set[int], set[int]]:
    """All samples of partitions for tuning, and all test samples of others, over partitions and seeds."""
    tuned, tested, hashes = set(), set(), set()
    for spec, seed in itertools.product(specs, range(3)):
        for tuning in (False, True):
            with open_store(prepare(name, data_dir, spec, clients, seed, folder, tuning=tuning)) as store:
                hashes.add(store.sha256)
                if tuning:
                    tuned |= samples_in(store, *SPLITS)
                else:
                    tested |= samples_in(store, "test")
                mix, whole = store.counts("test") / store.sizes("test")[:, None], store.counts()
                assert np.abs(mix - whole / whole.sum(1)[:, None]).max() <= 3 / store.sizes("test").min()
    assert len(hashes) == len(specs) * 3 * 2
    return tuned, tested


def test_no_partition_tests_on_what_another_tunes_on(built: Path) -> None:
    specs = ["iid", "dirichlet:0.1", "shards:2", "classes:3", "quantity:0.5"]
    tuned, tested = tuned_and_tested("mnist5k", specs, 10, built.parent)
    assert len(tuned) == 2500
    assert len(tested) > 2400  # over 15 partitions nearly each sample of the other half turns up
    assert not tuned & tested


@pytest.mark.parametrize("divided", [False, True])
def test_neither_do_natural_partitions(tmp_path: Path, divided: bool) -> None:
    rng = np.random.default_rng(0)
    y, client = rng.integers(0, 9, 400), rng.integers(0, 12, 400)
    y[:2], y[2] = 9, 10  # classes of two samples and of one
    x = np.arange(400).astype("<u2").view(np.uint8).reshape(400, 1, 2)
    clients, in_test = [f"c{number}" for number in range(12)], rng.random(400) < 0.2
    if divided:  # as TensorFlow Federated has it
        for split, rows in (("train", ~in_test), ("test", in_test)):
            with h5py.File(tmp_path / f"fed_emnist_{split}.h5", "w") as file:
                for number, who in enumerate(clients):
                    mine = rows & (client == number)
                    file[f"examples/{who}/pixels"] = 1 - np.pad(x[mine], ((0, 0), (0, 27), (0, 26))) / np.float32(255)
                    file[f"examples/{who}/label"] = y[mine].astype(np.int32)
        name = "femnist"
    else:
        name = arrays_file(tmp_path, x=x, y=y, client=client)
    tuned, tested = tuned_and_tested(name, ["natural", "iid", "dirichlet:0.5"], 5, tmp_path, tmp_path)
    assert len(tuned) > 100
    assert len(tested) > 100
    assert not tuned & tested


def test_a_data_set_too_small_to_tune_on_says_so(tmp_path: Path) -> None:
    name = arrays_file(tmp_path, x=np.zeros((12, 1, 1), np.uint8), y=np.arange(12) % 4)
    prepare(name, None, "iid", 4, 0, tmp_path)
    with pytest.raises(
        DataError, match=r"4 clients are too many for 4 samples: .* at most 1 \(of 12 samples 4 are set aside"
    ):
        prepare(name, None, "iid", 4, 0, tmp_path, tuning=True)


def test_fraction_keeps_that_share_of_training_samples_only(built: Path) -> None:
    with (
        open_store(built) as whole,
        open_store(prepare("mnist5k", None, "dirichlet:0.5", 10, 0, built.parent, 0.2)) as part,
    ):
        for client in range(10):
            assert set(part.indices(client, "train")) <= set(whole.indices(client, "train"))
            assert len(part.indices(client, "train")) == round(0.2 * len(whole.indices(client, "train")))
            for split in SPLITS[1:]:
                assert (part.indices(client, split) == whole.indices(client, split)).all()


def test_an_existing_store_is_reused(path: Path) -> None:
    before = path.stat()
    # Replacing a file gives it another inode.
    assert prepare("mnist5k", None, "dirichlet:0.5", 10, 0, path.parent) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_store_of_another_recipe_is_not_reused(path: Path) -> None:
    path.rename(path.with_name("mnist5k-iid-clients10-seed0-fraction1.0.h5"))
    with pytest.raises(DataError, match=r"iid-clients10.*holds another recipe.*remove it"):
        prepare("mnist5k", None, "iid", 10, 0, path.parent)


def test_samples_of_another_source_are_not_reused(tmp_path: Path) -> None:
    x, y = np.zeros((30, 4, 4), np.uint8), np.arange(30) % 2
    name = arrays_file(tmp_path, x=x, y=y)
    first = prepare(name, None, "iid", 3, 0, tmp_path)
    arrays_file(tmp_path, x=x + 1, y=y)
    assert prepare(name, None, "iid", 3, 0, tmp_path) != first
    assert len(list(tmp_path.glob("npz_own.npz-*.h5"))) == 4


def test_the_expected_hash_is_compared(path: Path) -> None:
    with open_store(path) as store:
        open_store(path, store.sha256).close()
    with pytest.raises(DataError, match=r"has content hash .* instead of 00"):
        open_store(path, "00")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["indices"] = [1]


def future(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99


def edited_indices(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["indices"][0] += 1


def edited_recipe(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace('"seed":0', '"seed":1')


def without_bounds(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["bounds"]


def linked_elsewhere(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        shutil.copy(path, path.with_name("other.h5"))
        del file["indices"]
        file["indices"] = h5py.ExternalLink("other.h5", "/indices")


def stored_elsewhere(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        size = len(file["indices"])
        del file["indices"]
        file.create_dataset("indices", (size,), np.int64, external=[("/proc/self/environ", 0, h5py.h5f.UNLIMITED)])


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"indices": [1]}))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = [cut, empty, foreign, future, edited_indices, edited_recipe, without_bounds, linked_elsewhere]
DAMAGE += [stored_elsewhere, pickled, directory]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_stores_are_refused_by_name(damage, path: Path) -> None:
    damage(path)
    for attempt in (lambda: open_store(path), lambda: prepare("mnist5k", None, "dirichlet:0.5", 10, 0, path.parent)):
        with pytest.raises(DataError) as error:
            attempt()
        assert str(path) in str(error.value)
        assert "remove" in str(error.value) or "directory" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [cut, empty, foreign, future, pickled, directory])
def test_damaged_samples_are_refused_by_name(damage, path: Path) -> None:
    samples = path.with_name("mnist5k.h5")
    damage(samples)
    for attempt in (lambda: open_store(path), lambda: prepare("mnist5k", None, "iid", 10, 0, path.parent)):
        with pytest.raises(DataError, match=str(samples)):
            attempt()


@pytest.mark.parametrize(("more", "said"), [(1 << 28, "opened"), (1 << 12, "cannot be tested within this process")])
def test_a_hard_limit_on_memory_is_no_fault_of_the_file(more: int, said: str, path: Path) -> None:
    """ulimit -v: a little more address space than the process has, below what the file is given to be tested in."""
    code = (
        "import mmap, resource, sys; from pathlib import Path; from data_partitions import DataError, open_store\n"
        f"limit = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + {more}\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: open_store(Path(sys.argv[1])); print('opened')\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert said in done.stdout, done.stderr
    assert "remove" not in done.stdout


def test_samples_of_an_earlier_version_are_read_anew(path: Path) -> None:
    samples = path.with_name("mnist5k.h5")
    with h5py.File(samples, "r+") as file:
        file.attrs["version"] = 1
        file["x"][0] = 255
    with pytest.raises(DataError, match=r"mnist5k\.h5 has schema version 1, this program reads 3"):
        open_store(path)
    assert prepare("mnist5k", None, "dirichlet:0.5", 10, 0, path.parent) == path
    assert read_samples(samples).x[0].min() == 0


@pytest.mark.slow
def test_a_file_that_keeps_hdf5_busy_for_ever_is_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    text = content.rindex(b"mnist5k.h5")
    assert content[text - 8] == len("mnist5k.h5")  # what HDF5 keeps as this text's length
    content[text - 8] = 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="HDF5 does not get through it"):
        open_store(path)


def test_any_damage_gives_the_samples_or_a_sentence(tmp_path: Path) -> None:
    store = tmp_path / "damaged.h5"
    whole = prepare("mnist5k", None, "iid", 4, 0, tmp_path, fraction=0.02, embed=True)
    good = whole.read_bytes()
    with open_store(whole) as opened:
        expected = [opened.samples(client, "train") for client in range(opened.clients)]
    for case in range(100):
        stream = np.random.default_rng(case)
        content = np.frombuffer(good, np.uint8).copy()
        # The first 8 kB are HDF5's own; every second case damages these alone.
        at = stream.integers(0, len(good) if case % 2 else 8192, stream.choice([1, 4, 16]))
        content[at] = stream.choice(np.array([0, 1, 16, 255], np.uint8), len(at))
        store.write_bytes(content)
        with contextlib.suppress(DataError), open_store(store) as opened:
            assert opened.clients == len(expected)
            for client, samples in enumerate(expected):
                for found, right in zip(opened.samples(client, "train"), samples, strict=True):
                    np.testing.assert_array_equal(found, right)


def test_missing_samples_are_named(path: Path) -> None:
    path.with_name("mnist5k.h5").unlink()
    with pytest.raises(DataError, match=r"mnist5k\.h5 is missing"):
        open_store(path)


def test_edited_samples_are_noticed_by_who_reads_them(path: Path) -> None:
    with open_store(path) as store:
        row = int(store.indices(4, "test")[0])
    with h5py.File(path.with_name("mnist5k.h5"), "r+") as file:
        file["x"][row, 0, 0] += 1
    with open_store(path) as store:
        store.samples(4, "train")
        with pytest.raises(DataError, match="the test samples of client 4 were changed"):
            store.samples(4, "test")
    with pytest.raises(DataError, match=r"mnist5k\.h5 was changed after it was written; remove it"):
        prepare("mnist5k", None, "iid", 10, 0, path.parent)


def test_a_store_of_an_earlier_version_is_built_anew(path: Path) -> None:
    """Its recipe says the same, but who has what followed from it in another way."""
    with open_store(path) as store:
        sha256 = store.sha256
    with h5py.File(path, "r+") as file:
        earlier = {key: value for key, value in json.loads(file.attrs["recipe"]).items() if key != "version"}
        file.attrs["recipe"] = canonical(earlier)
        file["indices"][:2] = file["indices"][:2][::-1]
        rehash(file)
    open_store(path).close()
    assert prepare("mnist5k", None, "dirichlet:0.5", 10, 0, path.parent) == path
    with open_store(path) as store:
        assert (store.sha256, store.recipe["version"]) == (sha256, 3)


def rehash(file: h5py.File) -> None:
    parts = [file.attrs["recipe"], file.attrs["meta"], *(file[name][:] for name in ("indices", "bounds", "digests"))]
    file.attrs["sha256"] = digest(*parts).hex()


def test_indices_outside_the_samples_are_refused_even_with_a_right_hash(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["indices"][-1] = 5000
        rehash(file)
    with pytest.raises(DataError, match="does not fit its samples"):
        open_store(path)


def test_a_few_samples_can_be_embedded(tmp_path: Path) -> None:
    name = arrays_file(tmp_path, x=np.arange(12, dtype=np.uint8).reshape(12, 1, 1), y=np.arange(12) % 2)
    path = prepare(name, None, "iid", 4, 0, tmp_path, embed=True)
    for file in tmp_path.glob("*"):
        if file != path:
            file.unlink()
    with open_store(path) as store:
        found = [store.samples(client, split)[0].ravel() for client in range(4) for split in SPLITS]
    assert sorted(np.concatenate(found)) == list(range(12))


def test_embedded_samples_must_be_in_the_file(tmp_path: Path) -> None:
    path = prepare("mnist5k", None, "iid", 10, 0, tmp_path, embed=True)
    with h5py.File(path, "r+") as file:
        shape = file["x"].shape
        del file["x"]
        file.create_dataset("x", shape, np.uint8, external=[(tmp_path / "mnist5k.h5", 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(DataError, match=r"x in .* is kept in a way that is not read here"):
        open_store(path)


def test_a_chunk_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = prepare("mnist5k", None, "iid", 10, 0, tmp_path, embed=True)
    with h5py.File(path, "r+") as file:
        shape = file["x"].shape
        del file["x"]
        more = {"maxshape": (None, *shape[1:]), "chunks": (400_000, *shape[1:]), "compression": "gzip"}
        file.create_dataset("x", shape, np.uint8, **more)
    with pytest.raises(DataError, match=r"x in .* is kept in chunks larger than"):
        open_store(path)


@pytest.mark.slow
def test_a_chunk_that_unpacks_to_more_than_it_declares_is_refused(tmp_path: Path) -> None:
    """1.5 MB of zeros packed, of which the dataset declares 7840 bytes."""
    path = prepare("mnist5k", None, "iid", 10, 0, tmp_path, fraction=0.02, embed=True)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1500)) + packer.flush()
    with h5py.File(path, "r+") as file:
        file["x"].id.write_direct_chunk((0, 0, 0), packed)
    with pytest.raises(DataError, match="HDF5 does not get through it"):
        open_store(path)


def test_clients_and_splits_that_do_not_exist(built: Path) -> None:
    with open_store(built) as store:
        with pytest.raises(IndexError, match="client -1 is not in 0 to 9"):
            store.samples(-1, "train")
        with pytest.raises(ValueError, match="training"):
            store.samples(0, "training")


@pytest.mark.parametrize("embed", [False, True])
def test_no_space_leaves_nothing_behind(embed: bool, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the kernel fails the write in the same place."""
    if embed:
        prepare("mnist5k", None, "iid", 10, 0, tmp_path)
    before = sorted(tmp_path.iterdir())
    code = (
        "import resource, sys; from pathlib import Path; from data_partitions import DataError, prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        f"try: prepare('mnist5k', None, 'dirichlet:0.5', 10, 0, Path(sys.argv[1]), embed={embed})\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cannot be written: File too large" in done.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_while_building_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written"):
        prepare("mnist5k", None, "iid", 10, 0, tmp_path / "file")
    with pytest.raises(DataError, match=r"2000 clients are too many for 5000 samples.*give at most 1666"):
        prepare("mnist5k", None, "iid", 2000, 0, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mnist5k.h5"]


@pytest.mark.parametrize(
    ("seed", "fraction", "message"),
    [
        (-1, 1.0, "seed -1"),
        (2**64, 1.0, "seed 18446744073709551616 is not possible"),
        (0.5, 1.0, "seed 0.5"),
        (0, 0.0, "fraction 0.0"),
        (0, 1.5, "fraction 1.5"),
        (0, float("nan"), "nan"),
    ],
)
def test_bad_seed_and_fraction(seed: int, fraction: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        prepare("mnist5k", None, "iid", 10, seed, tmp_path, fraction)


def test_a_rank_holds_only_its_own_samples(tmp_path: Path) -> None:
    """20 MB of samples, of which one client of 100 has 0.2 MB."""
    rng = np.random.default_rng(0)
    name = arrays_file(tmp_path, x=rng.integers(0, 256, (5_000, 64, 64), np.uint8), y=rng.integers(0, 10, 5_000))
    path = prepare(name, None, "iid", 100, 0, tmp_path)
    code = (
        "import sys, numpy; from pathlib import Path; from data_partitions import open_store\n"
        "def held(): return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])\n"
        "open_store(Path(sys.argv[1])).close(); before = held(); store = open_store(Path(sys.argv[1]))\n"
        "x, y = store.samples(7, 'train'); print(held() - before, x.nbytes // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    grown, own = map(int, done.stdout.split())
    assert own == 35 * 64 * 64 // 1024
    assert grown < own + 2000


def test_opening_is_fast_and_importing_light(built: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "begin = time.process_time(); import numpy, h5py; needed = time.process_time() - begin\n"
        "begin = time.process_time(); import data_partitions; imported = time.process_time() - begin\n"
        "heavy = {'torch', 'torchvision', 'mlxtend', 'matplotlib', 'pandas', 'rich', 'pooch', 'requests', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "begin = time.process_time(); s = data_partitions.open_store(Path(sys.argv[1])); s.samples(3, 'train')\n"
        "print(needed, imported, time.process_time() - begin)"
    )
    done = subprocess.run([sys.executable, "-c", code, built], capture_output=True, text=True, check=True, timeout=60)
    needed, imported, opened = map(float, done.stdout.split())
    assert imported < needed
    assert opened < needed
