"""A method on the weights that were asked for: its name, what it is judged on, and where its values come from."""

from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn

from benchmarks.federation import command_line, options
from benchmarks.federation.registry import METHODS, find_method
from benchmarks.federation.settings import Settings
from pfedpara.hadamard import Method as Factors
from pfedpara.trainer import Method

FACTORS = get_args(Factors)
TRAINED = {"local", "fedper", "fedpac", "fedselect", "pfedme", "ditto", "apfl", "spafl"}  # whatever the weights
OWN = {
    "fedala",
    "feddbe",
    "fedrep",
    "lg-fedavg",
    "fedbabu",
    "per-fedavg",
    "fedbn",
    "fedavg-ft",
    "pfedlmt",
}  # received, whatever the weights
PRIVATE = {"pfedpara", "fedsa"}  # weights of which a half stays at the client


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 24))


CASES = [
    (algo, weights)
    for algo, method in METHODS.items()
    for weights in ([method.factors] if method.factors else ["dense", *FACTORS])
    if not (algo in ("ditto", "apfl", "pooled") and weights in PRIVATE)
    and not (algo in ("fedmud", "spafl") and weights != "dense")
]


@pytest.mark.parametrize(("algo", "weights"), CASES)
def test_what_is_judged_and_restating_it_changes_nothing(algo: str, weights: str) -> None:
    method = find_method(algo, weights)
    restated = type("Restated", (method.trainer,), {"judged_on": method.trainer.judged_on})
    trained = algo in TRAINED or (weights in PRIVATE and algo not in OWN)
    for same in (method, method._replace(trainer=restated)):
        assert same.build(model()).judged_on == ("trained" if trained else "received")


def chosen(*words: str) -> list[Settings]:
    return options.settings_of(command_line.parser().parse_args(words))


@pytest.mark.parametrize("factors", FACTORS)
def test_fedavg_on_factors_goes_by_their_name(factors: str) -> None:
    """One label, one folder, one record, one set of tuned values."""
    by_name, by_weights = chosen("--algo", factors), chosen("--algo", "fedavg", "--parameterization", factors)
    assert by_name == by_weights == chosen("--algo", factors, "fedavg", "--parameterization", factors)
    (settings,) = by_name
    assert (settings.algo, settings.parameterization, settings.label) == (factors, factors, factors)
    assert bool(settings.tuned) == (factors in options.load_tuned("mnist5k", "mlp"))
    assert settings.directory == Path("runs/mnist5k-dirichlet:0.5") / factors / "seed0"
    assert METHODS[factors] == find_method("fedavg", factors)
    record = settings.record() | {"algo": "fedavg"}  # as it was written once
    assert Settings(**record) == settings


def test_either_name_owns_a_hyper_parameter() -> None:
    asked = ("--algo", "fedavg", "--parameterization", "dense", "pfedpara")
    dense, ours = chosen(*asked, "--set", "fedavg.lr=0.3", "pfedpara.gamma=0.2")
    assert (dense.hyper["lr"], ours.hyper["lr"], ours.hyper["gamma"]) == (0.3, 0.3, 0.2)
    assert "gamma" not in dense.hyper


def test_values_tuned_under_the_former_name_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned(**methods: float) -> float:
        entries = {name.replace("_", "-"): {"chosen": {"lr": lr}} for name, lr in methods.items()}
        (tmp_path / "tuned.yaml").write_text(yaml.safe_dump({"mnist5k": {"mlp": {"methods": entries}}}))
        return float(chosen("--algo", "pfedpara")[0].hyper["lr"])

    monkeypatch.setattr(options, "TUNED", tmp_path / "tuned.yaml")
    assert tuned(fedavg=0.5, fedavg_pfedpara=0.25) == 0.25
    assert tuned(fedavg_pfedpara=0.25, pfedpara=0.125) == 0.125
    assert tuned(fedavg=0.5) == Method(METHODS["fedavg"].trainer).fields["lr"].default


def test_the_factors_check_their_own_hyper_parameters() -> None:
    for method in (METHODS["pfedpara"], find_method("ditto", "lowrank")):
        with pytest.raises(ValidationError, match="less than or equal to 1"):
            method.check({"gamma": 1.5})
    with pytest.raises(ValidationError, match="Extra inputs"):
        METHODS["fedavg"].check({"gamma": 0.5})
