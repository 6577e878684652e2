"""Metrics against scikit-learn and by hand, and what a run that began without one of them goes on with."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from benchmarks.federation.metrics import METRICS, judge
from benchmarks.federation.recorder import summarize_figures

OF = {metric.name: metric.compute for metric in METRICS}


def test_by_hand() -> None:
    """Class 0: two of three right, class 1: right; class 2, which no sample has, is predicted once."""
    labels, logits = torch.tensor([0, 0, 0, 1]), torch.eye(4)[[0, 0, 2, 1]] * math.log(3)
    assert OF["accuracy"](labels, logits) == 3 / 4
    assert OF["balanced_accuracy"](labels, logits) == pytest.approx((2 / 3 + 1) / 2)
    assert OF["macro_f1"](labels, logits) == pytest.approx((4 / 5 + 1) / 2)
    assert OF["loss"](labels, logits) == pytest.approx((3 * math.log(2) + math.log(6)) / 4)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("present", [1, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn(present: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(present, (40,), generator=generator)
    logits = torch.randn(40, 10, generator=generator) + torch.eye(10)[labels]
    truth, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
    expected = {
        "accuracy": np.mean(truth == predicted),
        "loss": log_loss(truth, logits.double().softmax(dim=1).numpy(), labels=range(10)),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0),
    }
    assert {name: compute(labels, logits) for name, compute in OF.items()} == pytest.approx(expected)


def test_figures_hold_every_metric_of_the_test_split_and_the_validation_accuracy() -> None:
    test, validation = (torch.tensor([0, 1]), torch.eye(2)), (torch.tensor([1]), torch.eye(2)[:1])
    found = judge(test, validation)
    assert list(found) == ["accuracy", "loss", "balanced_accuracy", "macro_f1", "samples", "validation_accuracy"]
    assert (found["accuracy"], found["samples"], found["validation_accuracy"]) == (1, 2, 0)


def test_the_worst_clients_have_the_highest_loss_and_the_lowest_accuracy() -> None:
    found = summarize_figures({c: {"accuracy": c / 2, "loss": 1.0 - c, "validation_accuracy": 0.5} for c in (0, 1)})
    assert found["accuracy"]["worst_decile"] == 0
    assert found["loss"] == {"mean": 0.5, "std": 0.5, "worst_decile": 1.0, "per_client": [1.0, 0.0]}
    assert math.isnan(found["macro_f1"]["mean"])


def test_every_name_is_shown_with_its_unit() -> None:
    assert {metric.label: metric.show(0.51236) for metric in METRICS} == {
        **{"accuracy %": "51.2", "loss, nats": "0.512", "balanced accuracy %": "51.2", "macro F1 %": "51.2"}
    }
