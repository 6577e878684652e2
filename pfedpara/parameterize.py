"""Factored weights for any module, and back.

``parameterize`` turns any module into a FedPara, pFedPara or low-rank one; ``reconstruct`` turns it back:

    model = parameterize(build_model(), method="pfedpara", gamma=0.5)
    print(format_summary(summarize(model)))
    shared, private = split_parameters(model)  # what travels, what stays
    plain = reconstruct(model)                 # the plain architecture, equal outputs
"""

import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pfedpara.hadamard import Additive, Composition, Method, initial_factors
from pfedpara.layers import FACTORED
from pfedpara.rank import check_gamma, fedpara_rank, fedsa_rank, lowrank_rank, maximal_rank
from pfedpara.sharing import split_parameters

__all__ = ["LayerSummary", "format_summary", "parameterize", "reconstruct", "split_parameters", "summarize"]

Kernel = Literal["tensor", "matrix"]
_KINDS = (nn.Linear, nn.Conv2d, nn.LSTM, nn.Embedding)


def parameterize(
    model: nn.Module,
    method: Method = "pfedpara",
    gamma: float = 0.5,
    *,
    layer_gamma: Mapping[str, float] = MappingProxyType({}),
    dense: Collection[str] = (),
    kernel: Kernel = "tensor",
    tanh: bool = False,
    additive: Additive = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Replaces the weights of ``model``'s Linear, Conv2d, LSTM and Embedding layers by products of factors, in place.

    ``gamma`` within [0, 1] sets the ranks (see ``rank.fedpara_rank``), and ``layer_gamma`` those of the modules that it
    names, an inner one's before an outer one's; a layer stays dense where factors would not
    have fewer parameters, or where it or a module that contains it is named in ``dense``; a dense weight is shared, and
    a method that keeps its layer private keeps it. ``kernel="matrix"`` factors
    a convolution reshaped to (O, I k1 k2) as in Proposition 1, "tensor" as in Proposition 3; one of 1×1, or with fewer
    than k1 k2 inputs per group, always is a matrix, because Proposition 3 would leave next to no rank there. The
    factors are drawn afresh with the weight's mean square (see ``hadamard.initial_factors``) by ``generator`` or
    torch's global one. Biases and everything else are untouched and shared.

    Returns ``model``. Raises ValueError, before anything is changed, where an argument is not one of the above, the
    model was parameterized before, a layer cannot be factored (the message says which, and what to do), or ``dense``
    leaves no weight to factor.
    """
    for each in (gamma, *layer_gamma.values()):
        check_gamma(each)
    if additive and method != "pfedpara":
        raise ValueError(f"additive is of pfedpara's private half, and {method} has none")
    for name, value, known in (("method", method, get_args(Method)), ("kernel", kernel, get_args(Kernel))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    _check_names(model, "dense", dense)
    _check_names(model, "layer_gamma", layer_gamma)
    weights = list(_weights(model, dense))
    for name in layer_gamma:
        if not any(_within(label, name) for _, _, label in weights):
            raise ValueError(f"layer_gamma names {name!r}, which stays dense; leave it out")
    rank_of = {"lowrank": lowrank_rank, "fedsa": fedsa_rank}.get(method, fedpara_rank)
    plans = []
    for layer, name, label in weights:
        weight = getattr(layer, name)
        shape = tuple(weight.shape)
        if kernel == "matrix" or shape[1] < (positions := math.prod(shape[2:])) or positions == 1:
            shape = (shape[0], math.prod(shape[1:]))
        inside = [outer for outer in layer_gamma if _within(label, outer)]
        own = layer_gamma[max(inside, key=len)] if inside else gamma
        if (rank := rank_of(shape, own)) is None:
            continue
        composition = Composition(method, shape, tuple(weight.shape), rank, tanh, additive)
        try:
            plans.append((layer, name, composition, initial_factors(composition, weight, generator)))
        except ValueError as error:
            raise ValueError(f"layer {label!r}: {error}") from None
    if dense and not plans:
        raise ValueError(f"dense names {', '.join(dense)}, which leaves no weight to factor; leave some of it out")
    for layer, name, composition, factors in plans:
        layer.__class__ = FACTORED.get(type(layer), type(layer))
        # A right inverse for this one call: there is none for any other weight, and torch says so when one is assigned.
        composition.right_inverse = lambda _, factors=factors: factors  # type: ignore[assignment]
        parametrize.register_parametrization(layer, name, composition)
        del composition.right_inverse
        layer.parametrizations[name].private_parameters = composition.private_originals  # type: ignore[union-attr, index]
    return model


def reconstruct(model: nn.Module) -> nn.Module:
    """Replaces the factors by the weights that they compose, in place: the plain architecture, with equal outputs."""
    factored = {layer: parametrize.type_before_parametrizations(layer) for layer, _, _ in compositions(model)}
    for layer, kind in factored.items():
        weights = {name: getattr(layer, name).detach() for name in layer.parametrizations}  # type: ignore[union-attr]
        trained = any(factor.requires_grad for factor in layer.parametrizations.parameters())  # type: ignore[union-attr]
        # Not torch's remove_parametrizations: it edits the layer's class, which a deepcopy shares with its original.
        del layer.parametrizations
        layer.__class__ = next((plain for plain, own in FACTORED.items() if own is kind), kind)
        for name, weight in weights.items():
            layer.register_parameter(name, nn.Parameter(weight, trained))
        if isinstance(layer, nn.LSTM):
            layer._init_flat_weights()  # torch's own list of them
    return model


def compositions(model: nn.Module) -> Iterator[tuple[nn.Module, str, Composition]]:
    """Every factored weight of ``model``: its layer, its name in it, and its composition."""
    for layer in model.modules():
        for name, originals in getattr(layer, "parametrizations", {}).items():
            if isinstance(originals[0], Composition):
                yield layer, name, originals[0]


def _within(path: str, outer: str) -> bool:
    """Whether ``path`` is the module ``outer`` or lies in it."""
    return f"{path}.".startswith(f"{outer}.")


def _check_names(model: nn.Module, argument: str, given: Collection[str]) -> None:
    """Raises ValueError where one of the ``given`` names is of no module with a weight to factor."""
    if isinstance(given, str):
        raise ValueError(f"{argument} names {given!r}; it must be a collection of the names of the model's modules")
    layers = model.named_modules()
    found = [path for path, layer in layers if any(p.dim() > 1 for p in layer.parameters(recurse=False))]
    for name in given:
        if not any(_within(path, name) for path in found):
            raise ValueError(
                f"{argument} names {name!r}, which is no module of the model with a weight to factor; it has "
                f"{', '.join(found)}, and modules that contain these"
            )


def _weights(model: nn.Module, dense: Collection[str]) -> Iterator[tuple[nn.Module, str, str]]:
    """The weights to factor: layer, name in it, qualified name. Raises ValueError where one cannot be."""
    names = dict(model.named_modules())
    owners: dict[Tensor, str] = {}
    for path, layer in names.items():
        if isinstance(layer, parametrize.ParametrizationList) or parametrize.is_parametrized(layer):
            raise ValueError(f"layer {path!r} is parametrized already; a model is parameterized once")
        if any(_within(path, name) for name in dense):
            continue
        for name, weight in layer.named_parameters(prefix="", recurse=False):
            label = f"{path}.{name}" if path else name
            if weight.dim() < 2:
                continue  # a bias or the scale of a norm layer
            if not isinstance(layer, _KINDS):
                raise ValueError(
                    f"layer {path!r} is a {type(layer).__name__}, which has no factors here; name it in dense=[…]"
                )
            if not weight.is_floating_point():
                raise ValueError(f"weight {label!r} is of {weight.dtype}; it must be real and floating-point")
            if weight in owners:
                raise ValueError(
                    f"weight {label!r} is also {owners[weight]!r}; name both layers in dense=[…] to keep it"
                )
            if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
                raise ValueError(
                    f"embedding {path!r} has max_norm or sparse gradients, which a product of factors cannot"
                )
            owners[weight] = label
            yield layer, name, label


class LayerSummary(NamedTuple):
    """One parameter tensor of the plain model and what takes its place.

    ``rank`` is None where it stays dense; ``maximal_rank`` bounds the rank of a matrix, for a kernel that of its
    unfoldings. ``dense`` is the number of elements of the tensor, ``factored`` = ``shared`` + ``private`` that of the
    parameters in its place.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    maximal_rank: int
    dense: int
    factored: int
    shared: int
    private: int


def summarize(model: nn.Module) -> list[LayerSummary]:
    """One row per parameter tensor of the plain model; the sums over the rows are those of the whole model."""
    rows = []
    for path, layer in model.named_modules():
        parameters = dict(layer.named_parameters(recurse=False))
        kept = sum(p.numel() for name, p in parameters.items() if name in getattr(layer, "private_parameters", ()))
        if isinstance(layer, parametrize.ParametrizationList) and isinstance(composition := layer[0], Composition):
            name, shape = path.replace("parametrizations.", ""), composition.weight_shape
            bound = maximal_rank(composition.shape, composition.rank, composition.inner_products)
            if composition.additive:  # ranks add up to at most their sum
                bound = min(*composition.shape[:2], *[] if composition.with_dense else [2 * composition.rank])
            total = sum(p.numel() for p in parameters.values())
            rows.append(LayerSummary(name, shape, composition.rank, bound, math.prod(shape), total, total - kept, kept))
            continue
        for name, p in parameters.items():
            private = p.numel() if name in getattr(layer, "private_parameters", ()) else 0
            name, shape = f"{path}.{name}" if path else name, tuple(p.shape)
            bound = min(shape[:2]) if len(shape) > 1 else 1
            rows.append(LayerSummary(name, shape, None, bound, p.numel(), p.numel(), p.numel() - private, private))
    return rows


def format_summary(rows: list[LayerSummary]) -> str:
    """The rows as a plain-text table with a line of totals."""
    totals = [sum(column) for column in zip(*(row[4:] for row in rows), strict=True)]
    words = [(row.name, "×".join(map(str, row.shape)), str(row.rank or "–"), str(row.maximal_rank)) for row in rows]
    words.append(("total", "", "", ""))
    table: list[tuple[str, ...]] = [("tensor", "shape", "rank", "max rank", "dense", "factored", "shared", "private")]
    for line, counts in zip(words, [*(row[4:] for row in rows), totals], strict=True):
        table.append((*line, *(f"{n:,}" for n in counts)))
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in table)
