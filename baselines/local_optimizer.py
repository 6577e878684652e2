"""The optimizer of a client's local steps: torch's own functions, with the defaults of their papers.

    sgd       w ← w − η g
    momentum  m ← 0.9 m + g,   w ← w − η m                            (Polyak, 1964, as in torch.optim.SGD)
    adam      β 0.9 and 0.999, ε 1e-8                                 (Kingma, Ba, ICLR 2015, Algorithm 1)
    adamw     as adam, with w ← (1 − ηλ) w before each step           (Loshchilov, Hutter, ICLR 2019, Algorithm 2)

g is the clipped gradient with what a method adds to it. ``weight_decay`` λ adds λ w to it, but for adamw.
The functions of torch.optim serve here: to make one of its classes imports the compiler, seconds in every process.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from baselines.hyper import Name

MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.999, 1e-8
MOMENTS = {"sgd": (), "momentum": ("momentum",), "adam": ("step", "m", "v"), "adamw": ("step", "m", "v")}


class LocalOptimizer:
    """An optimizer of some parameters. ``state`` is all that it remembers between steps, zero at first, by name."""

    def __init__(self, name: Name, weight_decay: float, parameters: Mapping[str, Tensor]) -> None:
        self.name, self.weight_decay = name, weight_decay
        self.state: dict[str, Tensor] = {}
        self.of: dict[int, list[Tensor]] = {}  # by the parameter's id, in the order of MOMENTS
        for path, parameter in parameters.items():
            like = parameter.detach()
            moments = {
                moment: like.new_zeros((), dtype=torch.float32) if moment == "step" else torch.zeros_like(like)
                for moment in MOMENTS[name]
            }
            self.of[id(parameter)] = list(moments.values())
            self.state |= {f"{moment}.{path}": tensor for moment, tensor in moments.items()}

    def forget(self) -> None:
        """Sets the state to that of the start."""
        for tensor in self.state.values():
            tensor.zero_()

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], lr: float, scale: float = 1.0) -> None:
        """Moves ``parameters`` along ``gradients`` times ``scale``, which belong to them in this order."""
        if self.name == "sgd" and not self.weight_decay:
            descend(parameters, gradients, lr * scale)
            return
        if scale != 1:
            gradients = torch._foreach_mul(list(gradients), scale)
        # The fused kernels read parameter and gradient alike, whatever their strides.
        gradients = [
            gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        moments = [list(each) for each in zip(*(self.of[id(parameter)] for parameter in parameters), strict=True)]
        if self.name in ("sgd", "momentum"):
            sgd(
                list(parameters),
                gradients,
                moments[0] if moments else [None] * len(gradients),
                fused=True,
                weight_decay=self.weight_decay,
                momentum=MOMENTUM if moments else 0,
                lr=lr,
                dampening=0,
                nesterov=False,
                maximize=False,
            )
            return
        steps, m, v = moments
        (adamw if self.name == "adamw" else adam)(
            list(parameters),
            gradients,
            m,
            v,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


@torch.no_grad()
def descend(parameters: Sequence[Tensor], gradients: Sequence[Tensor], lr: float) -> None:
    """A step of plain SGD: w ← w − η g, in place."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.add_(gradient, alpha=-lr)
