"""Statistics of composed weights: ``python -m pfedpara.inspect CHECKPOINT``.

CHECKPOINT is a state dict written by ``torch.save`` or safetensors. For every factored weight, and every dense matrix
or kernel, it prints the numerical and the effective rank, the largest and least singular value and how evenly the norm
is spread over the factors; --plot FILE draws all singular values and a histogram. A kernel is unfolded to (O, I k1 k2).
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from pfedpara.hadamard import Composition, Method
from pfedpara.streams import stream_state


class WeightStatistics(NamedTuple):
    """One composed or dense weight, its singular values (descending), and the Frobenius norms of its factors."""

    name: str
    weight: Tensor
    singular_values: Tensor
    factor_norms: tuple[float, ...]

    @property
    def rank(self) -> int:
        """Number of singular values above max(m, n) · ε · the largest, as in ``torch.linalg.matrix_rank``."""
        tolerance = max(self.weight.flatten(1).shape) * torch.finfo(self.weight.dtype).eps * self.singular_values[0]
        return int((self.singular_values > tolerance).sum())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of σ/Σσ, between 1 and min(m, n) (Roy and Vetterli, EUSIPCO 2007)."""
        return float(torch.special.entr(self.singular_values / self.singular_values.sum()).sum().exp())

    @property
    def balance(self) -> float:
        """Least over largest norm of the factors, 1 for a dense weight."""
        return min(self.factor_norms) / max(self.factor_norms) if self.factor_norms else 1.0


def weight_statistics(state: Mapping[str, Tensor], method: Method, tanh: bool = False) -> Iterator[WeightStatistics]:
    """Statistics of each weight in a state dict of a model parameterized by ``method``, in its order.

    A pFedPara state with only the shared tensors counts as W2 = 0. Raises ValueError where the factors do not fit.
    """
    factors: dict[str, list[Tensor]] = defaultdict(list)
    for key, tensor in state.items():
        original = re.fullmatch(r"(.*\.)?parametrizations\.(\w+)\.original\d+", key)
        if original:
            factors[(original[1] or "") + original[2]].append(tensor)
        elif tensor.dim() > 1:
            factors[key] = [tensor]
    for name, tensors in factors.items():
        weight = tensors[0] if len(tensors) == 1 else _compose(name, tensors, method, tanh)
        norms = tuple(float(tensor.norm()) for tensor in tensors) if len(tensors) > 1 else ()
        yield WeightStatistics(name, weight, torch.linalg.svdvals(weight.flatten(1)), norms)


COMPOSABLE = [method for method in get_args(Method) if method != "fedsa"]  # its shared factors make no weight


def _compose(name: str, factors: list[Tensor], method: Method, tanh: bool) -> Tensor:
    count = 3 if factors[0].dim() == 4 else 2
    if method == "pfedpara" and len(factors) == count:
        factors = [*factors, *(torch.zeros_like(factor) for factor in factors)]
    if len(factors) != (count if method == "lowrank" else 2 * count):
        raise ValueError(f"{name} has {len(factors)} factors, which {method} does not; give the right --method")
    core, X, Y = factors[0], factors[count - 2], factors[count - 1]
    shape = (len(X), len(Y), *core.shape[2:])  # a core has shape (r, r, k1, k2)
    return Composition(method, shape, shape, X.shape[1], tanh)(*factors)


def format_statistics(rows: list[WeightStatistics]) -> str:
    """A plain-text table with one line per weight."""
    lines = [
        f"{'weight':32} {'shape':>14} {'rank':>5} {'eff. rank':>9} {'σ max':>9} {'σ min':>9} {'std':>9} {'balance':>7}"
    ]
    for row in rows:
        name, shape, sigma = repr(row.name)[1:-1], "×".join(map(str, row.weight.shape)), row.singular_values
        lines.append(
            f"{name:32} {shape:>14} {row.rank:5} {row.effective_rank:9.1f} {sigma[0]:9.3g} {sigma[-1]:9.3g}"
            f" {row.weight.std():9.3g} {row.balance:7.2f}"
        )
    return "\n".join(lines)


def plot_statistics(rows: list[WeightStatistics], path: Path) -> None:
    """Writes a picture in the format of its suffix, a row per weight: singular values left, a histogram right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.75, 0.4 + 1.6 * len(rows)), layout="constrained")
    figure.suptitle("row: weight; left: its singular values; right: histogram of its entries", fontsize=8)
    for (left, right), row in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        left.semilogy(
            range(1, len(row.singular_values) + 1), row.singular_values.clamp_min(1e-12).numpy(), color="#0072B2"
        )
        name = repr(row.name)[1:-1]
        title = f"{name if len(name) < 40 else name[:19] + '…' + name[-19:]}: rank {row.rank}"
        left.set_title(f"{title}, effective {row.effective_rank:.0f}", fontsize=8, parse_math=False)
        left.set(xlabel="index", ylabel="singular value", ylim=(float(row.singular_values[0]) * 1e-5, None))
        right.hist(row.weight.flatten().numpy(), bins=80, color="#0072B2")
        right.set(xlabel="weight", ylabel="count", yscale="log")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
            axes.xaxis.label.set_fontsize(8)
            axes.yaxis.label.set_fontsize(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of safetensors or of ``torch.save``; raises ValueError where it holds anything else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception:  # a damaged file makes the readers raise almost anything
        state = None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a state dict")
    return dict(state)


def rank_experiment(draws: int, seed: int = 0) -> dict[str, list[int]]:
    """Ranks of random 100×100 weights: FedPara at r = 10 against the conventional product at r = 20, equal parameters.

    The paper's rank experiment (1,000 draws there): full rank, 100, in every draw, against at most 20.
    """
    generator = torch.Generator()
    generator.set_state(stream_state("rank experiment", seed))
    ranks: dict[str, list[int]] = {}
    for method, rank in (("fedpara", 10), ("lowrank", 20)):
        composition = Composition(method, (100, 100), (100, 100), rank, tanh=False)  # type: ignore[arg-type]
        ranks[method] = []
        for _ in range(draws):
            factors = [torch.randn(s, dtype=torch.float64, generator=generator) for s in composition.factor_shapes]
            ranks[method].append(int(torch.linalg.matrix_rank(composition(*factors))))
    return ranks


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pfedpara.inspect", description="Statistics of composed weights.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="state dict (.safetensors, or written by torch.save)")
    parser.add_argument("--method", choices=COMPOSABLE, default="pfedpara", help="(default: %(default)s)")
    parser.add_argument("--tanh", action="store_true", help="the inner products pass through tanh")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them as well: a .png, .pdf or .svg")
    parser.add_argument("--rank-experiment", type=int, metavar="DRAWS", help="ranks of random weights instead")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for encodings without σ
    options = parser.parse_args(arguments)
    if options.rank_experiment:
        for method, ranks in rank_experiment(options.rank_experiment).items():
            print(f"{method}: rank {min(ranks)} to {max(ranks)} in {len(ranks)} draws")
        return
    if options.checkpoint is None:
        parser.error("give a checkpoint, or --rank-experiment DRAWS")
    try:
        rows = list(weight_statistics(load_state(options.checkpoint), options.method, options.tanh))
        if options.plot:
            plot_statistics(rows, options.plot)
    except (OSError, ValueError) as error:
        parser.error(repr(str(error))[1:-1])
    print(format_statistics(rows))
    if options.plot:
        print(f"plot: {repr(str(options.plot))[1:-1]}")


if __name__ == "__main__":
    main()
