"""Parts that lie outside the repository: found by name, and refused in one sentence with the user's own line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks import load_results, run_experiment
from benchmarks.analysis.compare import compare
from benchmarks.analysis.interactive import describe
from benchmarks.analysis.load import load
from benchmarks.analysis.plots.plot import choose_looks
from benchmarks.analysis.tables import wording_of_metrics
from benchmarks.federation import command_line, options, planning
from benchmarks.federation.models import build_model
from benchmarks.federation.suites import UsageError
from data_partitions import DataError, open_store, plugins
from tests.support import ROOT

TINY = ("--rounds", "1", "--epochs", "1", "--clients", "3")

GOOD = """
from torch import nn
from baselines.base import Trainer
from benchmarks.federation.models import TEXTS, Model
from pfedpara.trainer import Method

class Plain(Trainer):
    '''Plain FedAvg.'''

class Silent(Trainer):
    pass

Factored = Method(Plain, "fedpara")

def net(channels, height, width, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

class Net(nn.Module):
    def __init__(self, channels, height, width, classes):
        super().__init__()
        self.last = nn.Linear(channels * height * width, classes)
    def forward(self, images):
        return self.last(images.flatten(1))

texts = Model(lambda classes: nn.Embedding(classes, classes), TEXTS)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's own folder, where the command is given; nothing that was found in it stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "FOUND", set())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    plugins.installed.cache_clear()


def refused(*words: str) -> str:
    with pytest.raises((UsageError, DataError)) as error:
        planning.plan(command_line.parser().parse_args([*words, *TINY]))
    (sentence,) = str(error.value).splitlines()
    return sentence


def test_methods_and_models_are_found_in_the_current_folder(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    words = ("--algo", "mine:Plain", "mine:Factored", "--model", "mine:Net", "--set", "mine:Plain.lr=0.3", *TINY)
    due, _ = planning.plan(command_line.parser().parse_args(words))
    plain, factored = (experiment.settings for experiment in due)
    assert (plain.algo, plain.label, plain.hyper["lr"]) == ("mine:Plain", "mine:Plain", 0.3)
    assert (factored.label, factored.parameterization) == ("mine:Factored-fedpara", "fedpara")
    assert plain.directory == Path("runs/mnist5k-dirichlet:0.5/mine:Plain/seed0")
    assert "\nmine:Plain Plain FedAvg.\n" in options.explain_methods(["mine:Plain"])


def test_a_model_with_a_forward_of_its_own_is_one_layer_and_a_sequence_many(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    given = ((8, 8), 10, (0.5,), (0.5,))
    assert list(dict(build_model("mine:Net", *given).named_parameters())) == ["model.last.weight", "model.last.bias"]
    assert list(dict(build_model("mine:net", *given).named_parameters())) == ["1.weight", "1.bias"]
    assert isinstance(build_model("mine:texts", (8,), 10, (0.0,), (1.0,), "text"), nn.Embedding)


BROKEN = {
    "syntax:A": ("class A(:\n    pass\n", "syntax.py, line 1: SyntaxError: invalid syntax"),
    "unknown:A": ("import os\n\ny = zz\n", "unknown.py, line 3: NameError: name 'zz' is not defined"),
    "lacking:A": ("import numpyy\n", "lacking.py, line 1: ModuleNotFoundError: No module named 'numpyy'"),
    "leaving:A": ("import sys\nsys.exit('bye')\n", "leaving.py, line 2: SystemExit: bye"),
    "mine:Plan": (GOOD, "mine.py has no 'Plan'; did you mean 'Plain'?"),
    "mine:net": (GOOD, "mine.py, line 15: <function net at"),
    "mine:TEXTS": (GOOD, "is no method; a subclass of Trainer is right"),
    "mine:": (GOOD, "no 'mine:'; there are fedavg, local,"),
    "fedvag": ("", "no 'fedvag', did you mean 'fedavg'; there are fedavg, local,"),
    "mine.py:Plain": (GOOD, "there is no module 'mine.py' in"),
    "../mine:Plain": (GOOD, "no '../mine:Plain'; there are"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_method_that_cannot_be_used_is_refused_with_the_user_s_own_line(name: str, folder: Path) -> None:
    text, sentence = BROKEN[name]
    if module := name.partition(":")[0].removesuffix(".py").removeprefix("../"):
        (folder / f"{module}.py").write_text(text)
    said = refused("--algo", name)
    assert said.startswith("--algo")
    assert sentence in said
    assert not (folder / "runs").exists()


MODELS = """
from torch import nn

def small(channels, height, width, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))

def wide(channels, height, width, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 7))

def nothing(channels, height, width, classes):
    pass

def few(channels):
    pass

def picky(channels, height, width, classes):
    raise ValueError("give 32 pixels")

text = "mlp"
"""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("small", "models.py, line 4: it fails on a batch of shape (2, 28, 28): RuntimeError: mat1 and mat2 shapes"),
        ("wide", "models.py, line 7: it makes (2, 7) of a batch of shape (2, 28, 28); logits of shape (2, 10) are"),
        ("nothing", "models.py, line 10: it returned None; a torch.nn.Module is right"),
        ("few", "models.py, line 13: too many positional arguments, called with 4; a function of channels"),
        ("picky", "models.py, line 17: give 32 pixels"),
        ("text", "it cannot be called; a function of channels, height, width and classes"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_user_s_own_line(name: str, sentence: str, folder: Path) -> None:
    (folder / "models.py").write_text(MODELS)
    assert sentence in refused("--model", f"models:{name}", "--algo", "local")


DATA = """
import numpy as np

def pair(data_dir):
    return np.tile(np.arange(64, dtype=np.uint8).reshape(8, 8), (60, 1, 1)), np.arange(60) % 2

def named(data_dir):
    x, y = pair(data_dir)
    return {"x": x, "y": y, "client": np.arange(60) % 3}

def one(data_dir):
    return np.zeros((60, 8, 8), np.uint8)

def short(data_dir):
    return np.zeros((60, 8, 8), np.uint8), np.zeros(5, int)

def missing(data_dir):
    return open("nowhere.bin")

def objects(data_dir):
    return np.zeros((2, 8, 8), np.uint8), np.array([None, {}])

def bare():
    pass
"""


def test_a_data_set_is_a_function_of_the_data_folder(folder: Path) -> None:
    (folder / "mydata.py").write_text(DATA)
    for name, partition in (("pair", "iid"), ("named", "natural")):
        words = ("--algo", "local", "--dataset", f"mydata:{name}", "--partition", partition, *TINY)
        ((experiment,), _) = planning.plan(command_line.parser().parse_args(words))
        assert experiment.settings.directory == Path(f"runs/mydata:{name}-{partition}/local/seed0")
        with open_store(experiment.store) as store:
            assert (store.clients, store.input_shape, len(store.classes)) == (3, (8, 8), 2)
            assert store.samples(0, "train")[0][0].tolist() == np.arange(64).reshape(8, 8).tolist()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("one", "mydata.py, line 11: ValueError: dictionary update sequence element"),
        ("short", "x in mydata:short holds 60 samples and y 5 labels; give as many of both"),
        ("missing", "mydata.py, line 18: FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.bin'"),
        ("objects", "mydata.py, line 20: y holds Python objects; a pair of arrays x and y"),
        (
            "bare",
            "mydata.py, line 23: too many positional arguments, called with 1; a function of the data folder",
        ),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused_with_the_user_s_own_line(
    name: str, sentence: str, folder: Path
) -> None:
    (folder / "mydata.py").write_text(DATA)
    assert sentence in refused("--dataset", f"mydata:{name}", "--algo", "local")


METRICS = """
from benchmarks.federation.metrics import Metric

def first(labels, logits):
    return (labels == 0).float().mean()

def whole(labels, logits):
    return logits

def loss(labels, logits):
    return 0

def alone(labels):
    return 0

def fails(labels, logits):
    return labels.sum().nothing

worst = Metric("lowest", "lowest label", lambda labels, logits: float(labels.min()), higher_is_better=False, scale=1)
"""


def test_a_metric_is_computed_recorded_and_reported_without_its_file(folder: Path) -> None:
    (folder / "mymetrics.py").write_text(METRICS)
    names = ["mymetrics:first", "mymetrics:worst"]
    rounds = run_experiment(algo="local", metric=names, rounds=1, epochs=1, clients=3)
    (experiment,) = (Path(path) for path in rounds["folder"])
    (folder / "mymetrics.py").unlink()
    clients = load_results("runs", level="client")
    assert rounds["first_mean"][0] == pytest.approx(clients["first"].mean())
    assert rounds["lowest_worst_decile"][0] == clients["lowest"].max()
    found = json.loads((experiment / "summary.json").read_text())
    assert found["first"]["per_client"] == clients["first"].tolist()
    (comparison,) = compare(load([folder / "runs"]))
    words = wording_of_metrics(comparison)
    assert words["first"][0] == f"{rounds['first_mean'][0]:.3f}"
    shown = describe(comparison, choose_looks([comparison]), 1)["choices"]  # on the page
    assert shown["first"]["label"] == "first"
    assert not shown["lowest"]["higher_is_better"]
    assert words["lowest label"][0] == f"{rounds['lowest_mean'][0]:.1f}"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("whole", "mymetrics.py, line 7: "),
        ("loss", "mymetrics.py, line 10: 'loss' is taken or no name; choose another"),
        ("alone", "mymetrics.py, line 13: too many positional arguments, called with 2; a function of labels (n,)"),
        (
            "fails",
            "mymetrics.py, line 17: AttributeError: 'Tensor' object has no attribute 'nothing'; a number is right",
        ),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused_with_the_user_s_own_line(
    name: str, sentence: str, folder: Path
) -> None:
    (folder / "mymetrics.py").write_text(METRICS)
    assert sentence in refused("--metric", f"mymetrics:{name}", "--algo", "local")


def test_installed_packages_give_their_parts_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder / "site"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine.py").write_text(GOOD)
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(
        "[pfedpara.methods]\nplain = mine:Plain\nlost = mine:Lost\n[pfedpara.models]\nnet = mine:Net\n"
    )
    monkeypatch.syspath_prepend(site)
    plugins.installed.cache_clear()
    words = ("--algo", "plain", "--model", "net", *TINY)
    ((experiment,), _) = planning.plan(command_line.parser().parse_args(words))
    assert experiment.settings.directory == Path("runs/mnist5k-dirichlet:0.5/plain/seed0")
    assert refused("--algo", "plian").startswith("--algo: no 'plian', did you mean 'plain'; there are fedavg")
    lost = f"--algo lost: {Path('site', 'mine.py')} has no 'Lost'"
    assert refused("--algo", "lost") == lost
    assert f"\nplain      Plain FedAvg.\n{lost}\n" in options.explain_methods()


FAILS_LATER = """
from baselines.base import Trainer

class Wrong(Trainer):
    def step(self, x, y, lr):
        return helper(y)

def helper(y):
    return y.missing
"""


def test_what_fails_on_a_rank_is_told_with_the_user_s_own_line(folder: Path) -> None:
    (folder / "mine.py").write_text(FAILS_LATER)
    program = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--algo", "mine:Wrong"]
    words = ["mpirun", "-np", "2", *program, *TINY]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    place, mistake = "mine.py, line 9", "AttributeError: 'Tensor' object has no attribute 'missing'"
    assert done.stderr == f"error: rank 1, client 2, round 1: {place}: {mistake}\n"
