"""The metrics of a client's model. Each is one object, found by its name in files, in TensorBoard and in the report.

Balanced accuracy and macro F1 are means over the classes that the client's test split holds. They are scikit-learn's
``balanced_accuracy_score`` and ``f1_score(average="macro", labels=np.unique(labels))``: a prediction of an absent class
costs the recall of the true one, and the absent class has no part in the mean. They are computed here because
scikit-learn takes 3 ms for the two, as long as all else in the evaluation of a client of 100 samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.federation import poison

if TYPE_CHECKING:
    from torch import Tensor

ClientFigures = dict[str, int | float]
"""What is known of the model that a client would deploy at the end of a round, by name: each metric on its test split,
``samples`` in that, and ``validation_accuracy``. A metric that the run did not have yet is missing."""

NewcomerFigures = dict[str, float | None]
"""The accuracies on its test split of a client that never took part: ``received``, of the model as it came, and
``adapted``, of the one that it then would deploy; None where its training diverged."""


def _not_computed(labels: "Tensor", logits: "Tensor") -> float:
    raise RuntimeError("a metric that is recorded, not computed of labels and logits")


@dataclass(frozen=True)
class Metric:
    """``compute`` takes labels (n,) and logits (n, classes), n ≥ 1. In tables its result is shown times ``scale``."""

    name: str  # of columns, keys and tags
    label: str  # heading of a column, with the unit
    compute: Callable[["Tensor", "Tensor"], float]
    higher_is_better: bool = True
    scale: float = 100
    digits: int = 1  # after the point

    @property
    def words(self) -> dict[str, Any]:
        """What a report says of it, which need not find the function."""
        return {key: getattr(self, key) for key in ("label", "higher_is_better", "scale", "digits")}

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

TRIGGER_SUCCESS = Metric("trigger_success", "success of the trigger %", _not_computed, higher_is_better=False)
"""Of a run with a trigger; it takes two predictions, and the worker makes them (poison.py)."""

RESERVED = {"round", "client", "samples", "seconds", "validation_accuracy", "accuracy_received", "metrics", "absent"}
RESERVED |= {"algo", "label", "parameterization", "tuned", "dataset", "partition", "model", "seed", "rounds", "clients"}
RESERVED |= {"access", "diverged", "transmitted", "traffic_to_model", "moved", "versions"}
RESERVED |= {"poisoners", "trigger_success"}
"""What else a table or a summary calls so."""


def find_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Returns METRICS, then those of these names from outside this repository. Raises PluginError."""
    from data_partitions import plugins

    found = list(METRICS)
    for name in names:
        part = plugins.find("metric", name, ())
        if isinstance(part, Metric):
            metric = part
        else:
            plugins.check_call("metric", name, part, 2, "a function of labels (n,) and logits (n, classes)")
            metric = Metric(part.__name__, part.__name__.replace("_", " "), part, scale=1, digits=3)
        if metric.name in RESERVED.union(each.name for each in found) or not metric.name.isidentifier():
            raise plugins.wrong("metric", name, metric.compute, f"{metric.name!r} is taken or no name; choose another")
        found.append(metric)
    return tuple(found)


def metrics_of(names: Iterable[str], spec: str) -> tuple[Metric, ...]:
    """Returns the metrics that a run with that ``--poison`` records: those of ``find_metrics``, and the trigger's."""
    attack = poison.parse(spec)[1]
    return (*find_metrics(names), *(TRIGGER_SUCCESS,) * bool(attack and attack.stamps))


def recorded_metrics(summaries: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Returns METRICS, then the others of these summaries: their figures and words, without their functions."""
    known = {metric.name: metric for metric in METRICS}
    for summary in summaries:
        for name, words in summary.get("metrics", {}).items():
            known.setdefault(name, Metric(name, compute=_not_computed, **words))
    return tuple(known.values())


def check_metrics(names: Sequence[str], classes: int) -> None:
    """Raises PluginError unless each metric of these names makes a number of labels and logits."""
    import torch

    from data_partitions import plugins

    for name, metric in zip(names, find_metrics(names)[len(METRICS) :], strict=True):
        try:
            float(metric.compute(torch.zeros(2, dtype=torch.int64), torch.zeros(2, classes)))
        except Exception as error:
            raise plugins.wrong(
                "metric", name, metric.compute, f"{plugins.explain(error)}; a number is right"
            ) from error


def judge(
    test: tuple["Tensor", "Tensor"], validation: tuple["Tensor", "Tensor"], metrics: Iterable[Metric] = METRICS
) -> ClientFigures:
    """Returns a client's figures. The first two arguments are labels (n,) and logits (n, classes)."""
    figures: ClientFigures = {metric.name: float(metric.compute(*test)) for metric in metrics}
    return figures | {"samples": len(test[0]), "validation_accuracy": accuracy(*validation)}
