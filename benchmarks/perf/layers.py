"""Time and memory of one training step of a layer: dense, FedPara as others write it, and this package's.

    python -m benchmarks.perf.layers 2> profiler.log                  # all cells; about ten minutes on one core
    python -m benchmarks.perf.layers --layers linear-256x784 --gamma 0 --batch 1 10 32 2> profiler.log

The other implementations of W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ): "plain", the expression in autograd; "einsum", as in the authors'
notebook; "peft", the LoHa function of that library, left out where it is not installed. They compose each weight once
per step (``parametrize.cached``). Every implementation has the same factors, and its output must equal the plain one's.

Columns: CPU milliseconds forward + backward, least of the interleaved repeats; ratios to dense and to the best other
FedPara; megabytes that autograd keeps for the backward pass beyond parameters and input; and peak allocated. The row
"bound" is the dense layer and the matrix products that composing a weight and its gradient are made of, into memory
that is there already: no implementation that composes the weight can be faster, ours on small batches does not. The row
"again" is ours within ``torch.utils.checkpoint``, which keeps nothing but factors and input and composes twice.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from benchmarks.runtime.launch import keep_freed_memory
from pfedpara.hadamard import as_matrices, inner_product
from pfedpara.parameterize import compositions, parameterize
from pfedpara.streams import stream_state

Layer = tuple[nn.Module, tuple[int, ...]]  # and the shape of its input but for the batch

LAYERS: dict[str, Callable[[], Layer]] = {
    "linear-256x784": lambda: (nn.Linear(784, 256), (784,)),
    "linear-1024x1024": lambda: (nn.Linear(1024, 1024), (1024,)),
    "linear-4096x4096": lambda: (nn.Linear(4096, 4096), (4096,)),
    # Images as large as in VGG16 at that depth.
    "conv-64": lambda: (nn.Conv2d(64, 64, 3, padding=1), (64, 32, 32)),
    "conv-256": lambda: (nn.Conv2d(256, 256, 3, padding=1), (256, 8, 8)),
    "conv-512": lambda: (nn.Conv2d(512, 512, 3, padding=1), (512, 4, 4)),
    "lstm-256": lambda: (nn.LSTM(256, 256, batch_first=True), (20, 256)),
}


def plain(*factors: Tensor) -> Tensor:
    """The expression as it is written in the paper."""
    half = len(factors) // 2
    return inner_product(*factors[:half]) * inner_product(*factors[half:])


def einsum(*factors: Tensor) -> Tensor:
    """As in the authors' notebook, for a matrix too."""
    equation = "xyzw,ox,iy->oizw" if len(factors) == 6 else "ox,ix->oi"
    half = len(factors) // 2
    return torch.einsum(equation, *factors[:half]) * torch.einsum(equation, *factors[half:])


def peft_loha() -> Callable[..., Tensor] | None:
    """peft's LoHa function with this package's layout of factors, None where peft is not installed."""
    try:
        from peft.tuners.loha.layer import make_weight, make_weight_cp  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    one = torch.tensor(1.0)

    def compose(*factors: Tensor) -> Tensor:
        if len(factors) == 6:
            T1, X1, Y1, T2, X2, Y2 = factors
            return make_weight_cp(T1, X1.mT, Y1.mT, T2, X2.mT, Y2.mT, one)
        X1, Y1, X2, Y2 = factors
        return make_weight(X1, Y1.mT, X2, Y2.mT, one)

    return compose


class Other(nn.Module):
    def __init__(self, compose: Callable[..., Tensor], factors: list[Tensor]) -> None:
        super().__init__()
        self.compose = compose
        self.right_inverse = lambda _: factors

    def forward(self, *factors: Tensor) -> Tensor:
        return self.compose(*factors)


def contenders(build: Callable[[], Layer], gamma: float) -> dict[str, nn.Module]:
    """The dense layer and one factored by each implementation, all with the same weights."""
    ours = parameterize(build()[0], "fedpara", gamma)
    layers = {"dense": build()[0], "ours": ours, "again": ours}
    for name, compose in (("plain", plain), ("einsum", einsum), ("peft", peft_loha())):
        if compose is None:
            continue
        layer = layers[name] = build()[0]
        for original, weight, _ in compositions(ours):
            own = original.parametrizations[weight].parameters()  # type: ignore[union-attr, index]
            factors = [factor.detach().clone() for factor in own]
            parametrize.register_parametrization(layer, weight, Other(compose, factors))
        for (bias, parameter), theirs in zip(layer.named_parameters(), ours.parameters(), strict=True):
            if bias.startswith("bias"):
                parameter.data = theirs.data
    return layers


def products_alone(ours: nn.Module) -> Callable[[], None]:
    """A function that multiplies the matrices of one composition of each weight of ``ours`` and of its gradient."""
    calls = []
    for layer, name, composition in compositions(ours):
        originals = layer.parametrizations[name].parameters()  # type: ignore[union-attr, index]
        for product in composition.products([factor.detach() for factor in originals]):
            X, Z = as_matrices(*product)
            W, dXt, dZ = X @ Z, (X @ Z @ Z.mT).mT.contiguous(), Z.clone(memory_format=torch.contiguous_format)
            calls += [(X, Z, W), (Z, W.mT, dXt), (X.mT, W, dZ)]  # forward, and the two of the backward pass
            if len(product) == 3:
                T, _, Y = product
                r, core, Tt = len(T), T.permute(1, 0, 2, 3).flatten(1), T.flatten(2).transpose(0, 1).flatten(1)
                Zt = dZ.view(r, len(Y), -1).transpose(0, 1).flatten(1).contiguous()  # (I, r k1 k2)
                calls += [(Y, core, Zt.clone()), (Zt, Tt.mT, Y.clone()), (Y.mT, Zt, core.clone())]

    def multiply() -> None:
        for a, b, out in calls:
            torch.mm(a, b, out=out)

    return multiply


def forward(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    with parametrize.cached() if name in ("plain", "einsum", "peft") else nullcontext():
        output = checkpoint(layer, x, use_reentrant=False) if name == "again" else layer(x)
    return output[0] if isinstance(output, tuple) else output


def step(name: str, layer: nn.Module, x: Tensor) -> None:
    """Forward and backward, for the parameters and for the input."""
    output = forward(name, layer, x)
    torch.autograd.grad(output, [x, *layer.parameters()], torch.ones_like(output))


def kept_bytes(name: str, layer: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass, without parameters and input."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward(name, layer, x)  # held, so that no address is used twice
    del output
    return sum(kept.values())


def peak_bytes(name: str, layer: nn.Module, x: Tensor) -> int:
    """Largest number of bytes allocated at one time within a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(name, layer, x)
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def times(layers: dict[str, nn.Module], x: Tensor, seconds: float) -> dict[str, float]:
    """Least time of a step of each layer, and "bound", in seconds; they take turns for about ``seconds`` in all."""
    steps: dict[str, Callable[[], None]] = {name: partial(step, name, layer, x) for name, layer in layers.items()}
    steps["bound"] = products_alone(layers["ours"])
    least = dict.fromkeys(steps, float("inf"))
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 3 or time.perf_counter() < end:
        for name, run in steps.items():
            start = time.process_time()  # of one thread: a busy neighbour does not count
            run()
            least[name] = min(least[name], time.process_time() - start)
        turns += 1
    least["bound"] += least["dense"]
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of factored layers, forward and backward.")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--gamma", nargs="+", type=float, default=[0.0, 0.5])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 10, 32, 128])
    parser.add_argument("--seconds", type=float, default=2.0, help="per cell, at least three turns (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in every rank of a job
    print(f"{'layer':17} {'γ':>4} {'batch':>5}  {'':7} {'ms':>9} {'/dense':>7} {'/best':>6}  kept MB  peak MB")
    for label in options.layers:
        for gamma in options.gamma:
            torch.set_rng_state(stream_state("layers"))
            layers = contenders(LAYERS[label], gamma)
            for batch in options.batch:
                x = torch.randn(batch, *LAYERS[label]()[1], requires_grad=True)
                expected = forward("plain", layers["plain"], x)
                for name in layers.keys() - {"dense"}:
                    torch.testing.assert_close(forward(name, layers[name], x), expected, rtol=1e-3, atol=1e-4)
                least = times(layers, x, options.seconds)
                best = min(least[name] for name in layers.keys() - {"dense", "ours", "again"})
                for name, seconds in least.items():
                    row = f"{label:17} {gamma:4} {batch:5}  {name:7} {1e3 * seconds:9.3f} "
                    row += f"{seconds / least['dense']:7.2f} {seconds / best:6.2f}"
                    if layer := layers.get(name):
                        kept, peak = kept_bytes(name, layer, x) / 1e6, peak_bytes(name, layer, x) / 1e6
                        row += f" {kept:8.2f} {peak:8.2f}"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
