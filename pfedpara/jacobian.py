"""Jacobian correction: a step on the factors that moves the composed weight as a dense step would.

The dense weight would go from W to W − η J, with J the gradient of the loss in W. A step on the factors goes instead to
some W', off by terms of the map from factors to weight. FedPara's supplement proposes to penalise that gap,

    R = λ/2 ‖W' − (W − η J)‖²,

after which the factors follow J more closely. The paper's text on it was not at hand here, and no public code pins it
down: neither the authors' notebook (github.com/South-hw/FedPara_ICLR22, FedPara.ipynb) nor Flower's reproduction
(github.com/adap/flower, baselines/fedpara) has it. What is implemented is this reading: the step is taken, then R is
lowered by one step of size η on the new factors, with J and W held fixed. That costs a second composition and its
gradient, but no second pass over the data.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pfedpara.parameterize import compositions


def jacobian_corrected_step(model: nn.Module, loss: Callable[[], Tensor], lr: float, weight: float = 1.0) -> Tensor:
    """One step of SGD on all parameters of ``model``, corrected as above on its factored weights; returns the loss.

    ``loss`` computes the loss of the current batch by calling ``model``; ``weight`` is λ (1 in the paper's settings,
    0 is plain SGD). Raises ValueError where λ < 0.
    """
    if not weight >= 0:
        raise ValueError(f"weight is {weight}; it must be at least 0")
    parameters = list(model.parameters())
    with parametrize.cached():  # so that the weights looked up here are those that the model uses
        composed = [getattr(layer, name) for layer, name, _ in compositions(model)]
        value = loss()
    gradients = torch.autograd.grad(value, [*parameters, *composed])
    targets = [W.detach() - lr * J for W, J in zip(composed, gradients[len(parameters) :], strict=True)]
    _descend(parameters, gradients[: len(parameters)], lr)
    for (layer, name, _), target in zip(compositions(model), targets, strict=True):
        factors = list(layer.parametrizations[name].parameters())  # type: ignore[union-attr, index]
        gap = (getattr(layer, name) - target).square().sum() / 2
        _descend(factors, torch.autograd.grad(gap, factors), lr * weight)
    return value.detach()


@torch.no_grad()
def _descend(parameters: list[nn.Parameter], gradients: tuple[Tensor, ...], lr: float) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.sub_(gradient, alpha=lr)
