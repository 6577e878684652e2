"""The metrics of a client's model. Each is one object, found by its name in files, in TensorBoard and in the report.

Balanced accuracy and macro F1 are means over the classes that the client's test split holds. They are scikit-learn's
``balanced_accuracy_score`` and ``f1_score(average="macro", labels=np.unique(labels))``: a prediction of an absent class
costs the recall of the true one, and the absent class has no part in the mean. They are computed here because
scikit-learn takes 3 ms for the two, as long as all else in the evaluation of a client of 100 samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ClientFigures = dict[str, int | float]
"""What is known of the model that a client would deploy at the end of a round, by name: each metric on its test split,
``samples`` in that, and ``validation_accuracy``. A metric that the run did not have yet is missing."""


@dataclass(frozen=True)
class Metric:
    """``compute`` takes labels (n,) and logits (n, classes), n ≥ 1. In tables its result is shown times ``scale``."""

    name: str  # of columns, keys and tags
    label: str  # heading of a column, with the unit
    compute: Callable[["Tensor", "Tensor"], float]
    higher_is_better: bool = True
    scale: float = 100
    digits: int = 1  # after the point

    def show(self, value: float) -> str:
        return f"{self.scale * value:.{self.digits}f}"


def accuracy(labels: "Tensor", logits: "Tensor") -> float:
    """Returns the fraction that is right; 0 of no samples."""
    return int((logits.argmax(dim=1) == labels).sum()) / max(len(labels), 1)


def loss(labels: "Tensor", logits: "Tensor") -> float:
    """Returns the mean cross-entropy, in nats."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, labels, reduction="sum").item() / len(labels)


def balanced_accuracy(labels: "Tensor", logits: "Tensor") -> float:
    right, held, _ = _count(labels, logits)
    return float(np.mean(right / held))


def macro_f1(labels: "Tensor", logits: "Tensor") -> float:
    right, held, predicted = _count(labels, logits)
    return float(np.mean(2 * right / (held + predicted)))


def _count(labels: "Tensor", logits: "Tensor") -> tuple[np.ndarray, ...]:
    """Returns how often each class that ``labels`` hold is predicted where it is right, is held, and is predicted."""
    guesses = logits.argmax(dim=1)
    counts = [np.bincount(each, minlength=logits.shape[1]) for each in (labels[guesses == labels], labels, guesses)]
    return tuple(count[counts[1] > 0] for count in counts)


METRICS = (
    Metric("accuracy", "accuracy %", accuracy),
    Metric("loss", "loss, nats", loss, higher_is_better=False, scale=1, digits=3),
    Metric("balanced_accuracy", "balanced accuracy %", balanced_accuracy),
    Metric("macro_f1", "macro F1 %", macro_f1),
)


def judge(test: tuple["Tensor", "Tensor"], validation: tuple["Tensor", "Tensor"]) -> ClientFigures:
    """Returns a client's figures. Both arguments are labels (n,) and logits (n, classes)."""
    figures: ClientFigures = {metric.name: metric.compute(*test) for metric in METRICS}
    return figures | {"samples": len(test[0]), "validation_accuracy": accuracy(*validation)}
