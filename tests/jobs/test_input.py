"""What cannot be done is refused at once, in one sentence, by the whole job, and nothing is taken for a result."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.federation import command_line, options, planning
from data_partitions import DataError
from tests.support import directory, refusal, run, snapshot

TINY = ("--algo", "local", "--rounds", "1", "--epochs", "1")


def left(out: Path) -> list[Path]:
    """Returns what a job left, but for the data that it had prepared already."""
    return [path for path in out.rglob("*") if path.is_file() and path.parent != out / "data"]


def refused(out: Path, *words: str) -> str:
    """Returns the sentence of a refusal by what rank 0 does, here, before it lets the other ranks start."""
    with pytest.raises((options.UsageError, DataError)) as error:
        planning.plan(command_line.parser().parse_args([*words, "--out", str(out)]))
    (sentence,) = str(error.value).splitlines()
    return sentence


def test_fedml_s_own_managers_need_what_they_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sentence(words: str, ranks: int) -> str:
        chosen = command_line.parser().parse_args(["--runtime", "fedml", *words.split(), "--out", str(tmp_path)])
        with pytest.raises(options.UsageError) as error:
            planning.plan(chosen, ranks)
        return str(error.value)

    assert sentence("--algo fedavg", 3) == (
        "fedavg: --runtime fedml needs a rank for each of the 10 participants of a round and one more: -np 11, not 3"
    )
    assert "-np 5, not 11" in sentence("--algo fedavg --clients-per-round 4", 11)
    assert sentence("--algo pfedpara --clients-per-round 4", 5) == (
        "pfedpara: --runtime fedml: clients keep private tensors, which FedML loses where they take turns; take "
        "--clients-per-round 10, not 4, or --runtime own"
    )
    for words in ("--quantize 8", "--codec sign", "--dropout 0.5", "--deadline 2.0", "--comm-timeout 5.0"):
        assert sentence(words, 11).startswith(f"--runtime fedml has no {words}; take ")
    assert not left(tmp_path)
    monkeypatch.setitem(sys.modules, "fedml.simulation.mpi.fedavg.FedAvgAPI", None)
    assert sentence("--algo fedavg", 11) == (
        "--runtime fedml needs the package fedml.simulation.mpi.fedavg.FedAvgAPI; pip install -r requirements-stock.txt"
    )


NONSENSE = [
    (("--algo", "pfedpara", "fedprox2"), "fedprox2", "pfedme"),
    (("--dataset", "mnist6k"), "mnist6k", "mnist5k"),
    (("--partition", "normal:1"), "normal:1", "dirichlet:ALPHA"),
    (("--model", "mpl"), "mpl", "mlp"),
    (("--learning-rate", "1"), "--learning-rate", "--help"),
    (("--set", "momentum2=1"), "momentum2", "--algo help"),
    (("--partition", "dirichlet:0"), "dirichlet:0", "above 0"),
    (("--partition", "dirichlet:-1"), "dirichlet:-1", "above 0"),
    (("--partition", "dirichlet:nan"), "dirichlet:nan", "above 0"),
    (("--partition", "shards:3", "--clients", "7"), "21", "clients"),
    (("--clients", "6000"), "6000", "5000"),
    (("--clients", "5", "--clients-per-round", "6"), "6", "at most --clients (5)"),
    (("--rounds", "0"), "0", "greater than or equal to 1"),
    (("--gamma", "1.5"), "1.5", "less than or equal to 1"),
    (("--lr", "nan"), "nan", "finite"),
    (("--seed", "0", "-1"), "-1", "greater than or equal to 0"),
    (("--quantize", "8", "0"), "'0'", "'4', '8', '16', 'float16' or '32'"),
    (("--algo", ""), "''", "pfedme"),
    (("--algo", "pfedpara", "--parameterization", "lowrank"), "pfedpara", "--algo fedavg"),
    (("--parameterization", "tucker"), "tucker", "dense, fedpara, pfedpara, lowrank"),
    (("--dense", "clasifier"), "'clasifier'", "it has hidden, classifier"),
    (("--dense", "relu"), "'relu'", "it has hidden, classifier"),
    (("--dense", "hidden", "classifier"), "classifier, hidden", "no weight to factor"),
    (("--algo", "fedavg", "local", "--dense", "classifier"), "--dense classifier: fedavg, local", "take pfedpara"),
    (("--algo", "fedper", "--alternate"), "--alternate: fedper", "take pfedpara"),
    (("--algo", "scaffold", "--parameterization", "lowrank", "--alternate"), "scaffold-lowrank", "take fedavg"),
    (("--dense",), "--dense", "at least one argument"),
    (("--device", "tpu"), "tpu", "'cpu' or 'cuda'"),
    (("--algo", "fedprox", "--set", "mu=-1"), "-1", "greater than or equal to 0"),
    (("--dataset", ""), "''", "mnist5k"),
    (("--dataset", "h5:"), "h5:", "h5:PATH"),
    (("--partition", "dirichlet"), "'dirichlet'", "above 0"),
    (("--partition", "dirichlet:inf"), "dirichlet:inf", "above 0"),
    (("--partition", "dirichlet:much"), "dirichlet:much", "above 0"),
    (("--partition", "iid", "dirichlet:0"), "dirichlet:0", "above 0"),
    (("--partition", "shards:0"), "shards:0", "from 1"),
    (("--partition", "shards:-2"), "shards:-2", "from 1"),
    (("--partition", "shards:1.5"), "shards:1.5", "from 1"),
    (("--partition", "shards:10000"), "10000", "5000"),
    (("--partition", "natural"), "natural", "another partition"),
    (("--model", "lstm"), "lstm", "texts"),
    (("--round", "3"), "--round", "--help"),
    (("--rounds",), "--rounds", "expected one argument"),
    (("mnist",), "mnist", "--help"),
    (("--set", "lr"), "'lr'", "NAME=VALUE"),
    (("--set", "fedprox2.lr=1"), "fedprox2.lr", "pfedpara"),
    (("--algo", "fedavg", "--gamma", "0.5"), "gamma", "fedavg"),
    (("--algo", "fedavg", "--set", "pfedpara.gamma=0.5"), "pfedpara.gamma", "fedavg"),
    (("--algo", "pfedme", "--set", "lam=-1"), "-1", "greater than 0"),
    (("--algo", "pfedme", "--set", "steps=0"), "'0'", "greater than or equal to 1"),
    (("--algo", "fedper", "--set", "private_layers=9"), "9", "below"),
    (("--clients", "0"), "'0'", "greater than or equal to 1"),
    (("--clients-per-round", "0"), "'0'", "greater than or equal to 1"),
    (("--clients-per-round", "few"), "few", "integer"),
    (("--rounds", "-1"), "-1", "greater than or equal to 1"),
    (("--rounds", "1.5"), "1.5", "integer"),
    (("--rounds", "1e400"), "1e400", "integer"),
    (("--gamma", "-0.1"), "-0.1", "greater than or equal to 0"),
    (("--gamma", "nan"), "nan", "finite"),
    (("--lr", "0"), "'0'", "greater than 0"),
    (("--lr", "-1"), "-1", "greater than 0"),
    (("--lr", "inf"), "inf", "finite"),
    (("--lr", "fast"), "fast", "number"),
    (("--lr-decay", "0"), "'0'", "greater than 0"),
    (("--epochs", "0"), "'0'", "greater than or equal to 1"),
    (("--batch-size", "0"), "'0'", "greater than or equal to 1"),
    (("--clip-norm", "-1"), "-1", "greater than or equal to 0"),
    (("--eval-every", "-1"), "-1", "greater than or equal to 0"),
    (("--checkpoint-every", "-1"), "-1", "greater than or equal to 0"),
    (("--checkpoint-minutes", "-1"), "-1", "greater than or equal to 0"),
    (("--dropout", "1.5"), "1.5", "less than or equal to 1"),
    (("--stragglers", "0.5"), "0.5", "--deadline above 0"),
    (("--deadline", "soon"), "soon", "number"),
    (("--threads", "0"), "'0'", "greater than or equal to 1"),
    (("--seed", "lucky"), "lucky", "integer"),
    (("--quantize", "3"), "'3'", "'float16'"),
    (("--quantize", "few"), "'few'", "'float16'"),
    (("--quantize-down", "1"), "'1'", "'float16'"),
    (("--codec", "topk:1.5"), "'topk:1.5'", "up to 1 for the whole model"),
    (("--codec", "topk:0.1", "--quantize", "8"), "--codec topk:0.1 and --quantize 8", "take one of the two"),
    (("--aggregate", "mode"), "no 'mode'", "there are mean, median, trimmed:F, krum:F"),
    (("--aggregate", "median:2"), "'median:2'", "median takes none"),
    (("--aggregate", "krum:0"), "'krum:0'", "how many clients may be wrong, from 1 on"),
    (("--aggregate", "krum", "--clients-per-round", "4"), "needs 5 updates", "4 clients take part; take more"),
    (("--aggregate", "trimmed:5"), "trimmed:5 needs 11", "or --aggregate median"),
    (("--aggregate", "krum", "--dropout", "0.1"), "--dropout", "take --aggregate median"),
    (("--algo", "scaffold", "--aggregate", "median"), "scaffold-median", "take mean"),
    (("--aggregate", "median", "--dp-clip", "1", "--dp-noise", "1"), "--aggregate median", "take --aggregate mean"),
    (("--poison", "bomb"), "no 'bomb'", "labels:K, trigger:K, replace:K and none"),
    (("--poison", "labels:few"), "'labels:few'", "a number of clients"),
    (("--poison", "trigger:10"), "10 of the 10 clients", "take at most 9"),
    (("--algo", "pooled", "--poison", "labels"), "--poison labels:1", "take another method"),
    (("--runtime", "fedml", "--poison", "labels"), "no --poison labels:1", "take none, or --runtime own"),
    (("--dataset", "npz:\udcff.npz"), "npz:\\udcff.npz", "UTF-8"),
    (("--data-dir", "\udcff"), "--data-dir: '\\udcff'", "UTF-8"),
    (("--state-dir", "\udcff"), "--state-dir: '\\udcff'", "UTF-8"),
]


@pytest.mark.parametrize(("words", "value", "remedy"), NONSENSE)
def test_nonsense_is_refused_with_what_would_be_right(
    tmp_path: Path, words: tuple[str, ...], value: str, remedy: str
) -> None:
    sentence = refused(tmp_path, *words)
    assert value in sentence
    assert remedy in sentence
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("words", "ranks"),
    [(("--algo", "fedprox2"), 4), (("--clients", "6000"), 4), (("--learning-rate", "1"), 1), (("--gamma", "1.5"), 1)],
)
def test_one_rank_speaks_for_all(tmp_path: Path, words: tuple[str, ...], ranks: int) -> None:
    """By the parser, the data, the parser again and the method."""
    assert words[1] in refusal(tmp_path, *words, ranks=ranks)
    assert not left(tmp_path)


@pytest.mark.slow
def test_a_refusal_is_never_lost(tmp_path: Path) -> None:
    for _ in range(6):
        assert "fedprox2" in refusal(tmp_path, "--algo", "fedprox2", ranks=2)


# Data


def test_missing_raw_data_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    sentence = refusal(tmp_path / "out", "--dataset", "mnist", "--data-dir", str(folder))
    assert f"{folder}/" in sentence
    assert "train-images-idx3-ubyte" in sentence
    assert not left(tmp_path / "out")


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_file_of_samples_must_be_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "samples"
    assert str(path) in refused(tmp_path / "out", "--dataset", f"{kind}:{path}")
    path.write_text("not samples")
    assert str(path) in refused(tmp_path / "out", "--dataset", f"{kind}:{path}")
    assert not left(tmp_path / "out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small job that has ended well."""
    out = tmp_path_factory.mktemp("finished")
    done = run(*TINY, "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    return out


def edit(path: Path) -> None:
    """Changes one number in the largest array of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        arrays = [each for each in file.values() if isinstance(each, h5py.Dataset)]
        array = max(arrays, key=lambda each: each.size)
        array[(0,) * array.ndim] = array[(0,) * array.ndim] ^ np.array(1, array.dtype)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path) -> None:
    """Puts another program's HDF5 file in the place of ``path``."""
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(5)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [edit, truncate, replace, empty])
@pytest.mark.parametrize("store", ["mnist5k-dirichlet_*.h5", "mnist5k.h5"])
def test_a_damaged_store_is_refused_by_name(
    finished: Path, tmp_path: Path, store: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    (path,) = (tmp_path / "data").glob(store)
    damage(path)
    assert str(path) in refused(tmp_path, *TINY)
    assert not left(tmp_path)


@pytest.mark.slow
def test_a_missing_store_is_built_again(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (path,) = (out / "data").glob("mnist5k-dirichlet_*.h5")
    built = path.read_bytes()
    path.unlink()
    assert run(*TINY, "--out", str(out)).returncode == 0
    assert path.read_bytes() == built


# The folder of results


def planned(out: Path, *words: str) -> tuple[list[Path], list[Path]]:
    """Returns the folders of the runs that are due, and of those that are not."""
    due, ended = planning.plan(command_line.parser().parse_args([*words, "--out", str(out)]))
    return [experiment.settings.directory for experiment in due], ended


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_other_settings_get_a_folder_whose_name_shows_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], resume: tuple[str, ...]
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    folder = directory(out, "local")
    before = snapshot(folder)
    words = [*TINY, "--rounds", "2", "--lr", "0.25", "--seed", "1", "0", *resume]
    apart = [directory(out, "local,rounds=2,lr=0.25", seed=seed) for seed in (1, 0)]
    assert planned(out, *words) == (apart, [])
    tuned = options.load_tuned("mnist5k", "mlp")["local"]["lr"]
    said = f"{folder.parent} holds runs with rounds=1, lr={tuned:g}; {apart[0].parent.name} is this one\n"
    assert capsys.readouterr().out == said
    assert snapshot(folder) == before
    assert planned(out, *TINY) == ([], [folder])
    assert planned(out, "--algo", "fedavg", *TINY[2:])[0] == [directory(out, "fedavg")]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000,
        "a: &a [*a]",
        "!!python/object/apply:os.getcwd []",
        "rounds: 1\nnew: 2",
    ],
)
def test_a_configuration_that_is_none_is_refused(finished: Path, tmp_path: Path, text: str) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    config = directory(out, "local") / "config.yaml"
    config.write_text(text)
    assert str(config.parent) in refused(out, *TINY, "--resume")
    assert config.read_text() == text


def test_a_strangers_folder_is_left_as_it_is(tmp_path: Path) -> None:
    diary = directory(tmp_path, "local") / "diary.txt"
    diary.parent.mkdir(parents=True)
    diary.write_text("dear diary")
    assert str(diary.parent) in refused(tmp_path, *TINY)
    assert left(tmp_path) == [diary]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(file / "runs") in refused(file / "runs", *TINY)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_takes_no_files_is_refused() -> None:
    assert "/proc" in refused(Path("/proc/runs"), *TINY)
