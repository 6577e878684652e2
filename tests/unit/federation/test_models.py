import math
from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from benchmarks.federation.models import TEXTS, Normalize, build_model, find_model
from benchmarks.federation.names import MODELS
from pfedpara.hadamard import Method
from pfedpara.parameterize import parameterize, reconstruct, split_parameters, summarize

torch.set_num_threads(1)
INPUTS = {
    "mlp": (28, 28),
    "cnn": (28, 28),
    "cnn-bn": (28, 28),
    "vgg16": (32, 32, 3),
    "resnet18": (32, 32, 3),
    "lstm": (20,),
}
COLOUR = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)


def build(name: str, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    mean, std = COLOUR if len(INPUTS[name]) == 3 else ((0.13,), (0.31,))
    return build_model(name, INPUTS[name], classes, mean, std, task_of(name))


def task_of(name: str) -> str:
    return "text" if find_model(name).takes is TEXTS else "image"


# Dense, and with FedPara at the γ of the paper or, where that gives none, at 0.5; see vgg16's docstring for `dense`.
COUNTS = [
    ("mlp", 10, 0.5, (), 203_530, 118_874),
    ("cnn", 10, 0.5, (), 1_663_370, 915_246),
    ("cnn-bn", 10, 0.5, (), 1_663_466, 915_342),  # two norms instead of two biases: 96 more
    ("vgg16", 10, 0.1, ("classifier",), 15_253_578, 1_547_372),  # the paper: 15.25 M and 1.55 M
    ("vgg16", 100, 0.4, ("classifier",), 15_299_748, 4_530_968),  # the paper: 15.30 M and 4.53 M
    ("resnet18", 10, 0.1, (), 11_173_962, 852_366),
    ("lstm", 90, 0.0, (), 822_570, 140_766),
]


@pytest.mark.parametrize(("name", "classes", "gamma", "dense", "plain", "factored"), COUNTS)
def test_counts(name: str, classes: int, gamma: float, dense: tuple[str, ...], plain: int, factored: int) -> None:
    model = build(name, classes)
    assert sum(p.numel() for p in model.parameters()) == plain
    rows = summarize(parameterize(model, "fedpara", gamma, dense=dense))
    assert sum(p.numel() for p in model.parameters()) == factored
    assert (sum(row.dense for row in rows), sum(row.factored for row in rows)) == (plain, factored)


@pytest.mark.parametrize("name", MODELS)
def test_logits_from_raw_bytes(name: str) -> None:
    model = build(name)
    batch = torch.randint(10, (2, *INPUTS[name]), dtype=torch.uint8)
    assert model(batch).shape == (2, 10)
    statistics = {n for n, b in model.named_buffers() if b.is_floating_point()}
    assert statistics == (
        {f"norm{i}.running_{s}" for i in (1, 2) for s in ("mean", "var")} if name == "cnn-bn" else set()
    )
    *_, last = (module for module in model.modules() if any(True for _ in module.parameters(recurse=False)))
    assert isinstance(last, nn.Linear)  # what FedPer keeps private is the classifier
    assert last.out_features == 10


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("name", ["vgg16", "resnet18", "lstm"])
def test_factored_weights_start_with_the_mean_square_of_the_dense_ones(name: str, method: Method) -> None:
    dense, factored = build(name), reconstruct(parameterize(build(name), method, 0.3))
    for (label, plain), (_, composed) in zip(sorted_weights(dense), sorted_weights(factored), strict=True):
        assert composed.square().mean().item() == pytest.approx(plain.square().mean().item(), rel=1e-4), label


def sorted_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return sorted((name, p) for name, p in model.named_parameters() if p.dim() > 1)


@cache
def mean_squares(name: str, method: Method | None, seed: int) -> dict[str, tuple[float, float]]:
    """Of the output of each layer of a fresh model, and of the loss's gradient in it; no method is the dense model."""
    torch.manual_seed(seed)
    batch = torch.randint(10 if find_model(name).takes is TEXTS else 256, (4, *INPUTS[name]), dtype=torch.uint8)
    model = build_model(name, INPUTS[name], 10, *COLOUR, task_of(name))
    if method:
        reconstruct(parameterize(model, method, 0.3))  # the same composed weights, only quicker
    outputs: dict[str, Tensor] = {}

    def keep(label: str, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[label] = output[0] if isinstance(output, tuple) else output
        outputs[label].retain_grad()

    for label, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.LSTM | nn.Embedding):
            layer.register_forward_hook(lambda _, __, output, label=label: keep(label, output))
    nn.functional.cross_entropy(model(batch), torch.arange(4)).backward()
    return {k: (o.square().mean().item(), o.grad.square().mean().item()) for k, o in outputs.items()}  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("name", ["vgg16", "resnet18", "lstm"])
def test_signals_start_in_every_layer_as_in_the_dense_model(name: str, method: Method) -> None:
    """Geometric means over four seeds, against dense models of their own: activations within 10 % over all layers.

    A single layer's is within 1.5 × (draws of four images vary), its gradient within 2 ×: that factor builds up from
    the last layer to the first. The logits, forty numbers, are left out.
    """
    *layers, _ = mean_squares(name, None, 0)
    products = torch.zeros(len(layers), 2)  # of logarithms
    for seed in range(4):
        own, dense = mean_squares(name, method, seed), mean_squares(name, None, seed)
        products += (torch.tensor([own[k] for k in layers]) / torch.tensor([dense[k] for k in layers])).log() / 4
    activations, gradients = products.T
    assert activations.mean().abs() < math.log(1.1)
    assert activations.abs().max() < math.log(1.5)
    assert gradients.abs().max() < math.log(2)


def test_normalize_by_hand() -> None:
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).expand(1, 2, 2, 3)
    x = Normalize(*COLOUR)(pixel)
    assert x.shape == (1, 3, 2, 2)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([2.5, -2.0, -0.4]))
    grey = Normalize((0.5,), (0.25,))(torch.full((1, 2, 3), 255, dtype=torch.uint8))
    torch.testing.assert_close(grey, torch.full((1, 1, 2, 3), 2.0))


def test_numbers_are_normalized_as_they_are() -> None:
    """Of a picture by its channel, of a row of features each by its own: (-3 - 1) / 2 and (255 - 5) / 50."""
    picture = Normalize((1.0,), (2.0,))(torch.full((1, 2, 3), -3.0))
    torch.testing.assert_close(picture, torch.full((1, 1, 2, 3), -2.0))
    row = Normalize((1.0, 5.0), (2.0, 50.0))(torch.tensor([[-3.0, 255.0]]))
    torch.testing.assert_close(row.flatten(1), torch.tensor([[-2.0, 5.0]]))


def test_features_are_the_inputs_of_the_mlp() -> None:
    model = build_model("mlp", (13,), 2, (0.0,) * 13, (1.0,) * 13, "tabular")
    assert model.hidden.in_features == 13
    assert model(torch.zeros(5, 13)).shape == (5, 2)


def test_dense_layers_start_as_he() -> None:
    model = build("mlp")
    assert model.hidden.weight.var().item() == pytest.approx(2 / 784, rel=0.02)
    assert model.hidden.bias.abs().max() == 0


def test_pfedpara_shares_59570_of_the_mlp() -> None:
    shared, private = split_parameters(parameterize(build("mlp"), "pfedpara", 0.5))
    assert sum(p.numel() for p in shared.values()) == 59_570
    assert sum(p.numel() for p in private.values()) == 59_304


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("gpt", (28, 28), "--model: no 'gpt'; there are mlp, cnn, cnn-bn, vgg16, resnet18, lstm, module:name"),
        (
            "vgg16",
            (28, 28),
            r"images .* of at least 32 × 32, not images of shape \(28, 28\); take mlp, cnn, cnn-bn, resnet18",
        ),
        (
            "mlp",
            (80,),
            r"mlp takes images \(H, W\) or \(H, W, C\), or features \(F,\), not texts of shape \(80,\); take lstm",
        ),
        ("cnn", (13,), r"cnn takes images .*, not features of shape \(13,\); take mlp"),
        ("lstm", (28, 28), r"lstm takes texts \(T,\), not images of shape \(28, 28\); take mlp, cnn"),
        ("mlp", (28, 28, 3), "must have one value for each of 3 channels"),
    ],
)
def test_inputs_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    task = {(80,): "text", (13,): "tabular"}.get(shape, "image")
    with pytest.raises(ValueError, match=message):
        build_model(name, shape, 10, (0.5,), (0.5,), task)
