"""``--dense``: modules of a factored model that stay dense, by the counts of what then travels."""

from pathlib import Path

import pytest

from benchmarks.federation import command_line, planning
from benchmarks.federation.experiment import Experiment
from benchmarks.federation.registry import build_trainer
from benchmarks.federation.settings import Settings
from data_partitions import open_store

# mlp 784-256-10 at γ = 0.5: rank 56 (112 of the low-rank product of its size); head 2,560; biases 256 + 10.
X1, Y1, HEAD, BIASES = 256 * 56, 784 * 56, 256 * 10, 256 + 10


def due(out: Path, *words: str) -> list[Experiment]:
    """Returns the experiments of a command line that are due."""
    found, _ = planning.plan(command_line.parser().parse_args([*words, "--out", str(out)]))
    return found


def counts(experiment: Experiment) -> tuple[int, int]:
    """Returns how many parameters travel each way, and how many stay."""
    with open_store(experiment.store, experiment.partition_sha256) as store:
        trainer = build_trainer(experiment.settings, store)
    return tuple(sum(t.numel() for t in part.values()) for part in (trainer.travelling, trainer.private_state))


def test_what_travels_with_a_dense_head(tmp_path: Path) -> None:
    words = ("--algo", "pfedpara", "fedpara", "lowrank", "fedavg", "--dense", "classifier")
    found = {each.settings.label: counts(each) for each in due(tmp_path, *words)}
    assert found == {
        "pfedpara-dense-classifier": (X1 + Y1 + HEAD + BIASES, X1 + Y1),
        "fedpara-dense-classifier": (2 * (X1 + Y1) + HEAD + BIASES, 0),
        "lowrank-dense-classifier": (2 * (X1 + Y1) + HEAD + BIASES, 0),
        "fedavg": (203_530, 0),
    }
    assert X1 + Y1 + HEAD + BIASES == 61_066


def test_a_dense_hidden_layer_leaves_the_head_s_factors(tmp_path: Path) -> None:
    (experiment,) = due(tmp_path, "--dense", "hidden")
    assert counts(experiment) == (784 * 256 + 4 * (256 + 10) + BIASES, 4 * (256 + 10))


def test_a_method_decides_whether_the_dense_head_is_private(tmp_path: Path) -> None:
    """FedPer on pFedPara: personal factors, and a head that stays."""
    words = ("--algo", "fedper", "--parameterization", "pfedpara", "--dense", "classifier")
    (experiment,) = due(tmp_path, *words)
    assert experiment.settings.label == "fedper-pfedpara-dense-classifier"
    assert counts(experiment) == (X1 + Y1 + 256, X1 + Y1 + HEAD + 10)


def test_names_in_any_order_are_one_run() -> None:
    one, other = (Settings(model="cnn", dense=names) for names in (["hidden", "conv1"], ["conv1", "hidden", "conv1"]))
    assert one == other
    assert one.label == "pfedpara-dense-conv1+hidden"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--algo", "fedavg", "pfedpara", "--seed", "0", "1"),
            "pfedpara: classifier, the last layer, has factors of rank 4; --dense classifier would send 61,066 "
            "parameters a client and round, not 59,570",
        ),
        (("--algo", "pfedpara", "--dense", "classifier"), ""),
        (("--algo", "fedpara"), ""),
        (("--algo", "pfedpara", "--model", "resnet18", "--dense", "classifier"), ""),
    ],
)
def test_the_start_says_what_a_dense_head_costs(tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    assert planning.explain_head(due(tmp_path, *words)) == line
