"""What training costs the clients, in gradients and in floating-point operations."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.base import Work


def add(sums: Work, more: Work) -> None:
    """Adds ``more`` to ``sums``, in place."""
    for key, counts in more.items():
        before = sums.get(key, (0, 0))
        sums[key] = before[0] + counts[0], before[1] + counts[1]


def gradients(work: Work) -> int:
    """Returns of how many samples' losses gradients were taken, one of a batch of B counting B times."""
    return sum(samples for _, samples in work.values())


def flops(work: Work, model: nn.Module, x: Tensor) -> int | None:
    """Returns the floating-point operations of matrix products and convolutions, forward and backward, in ``work``.

    Those of one gradient are affine in the batch, so two sizes of it tell. torch's FlopCounterMode counts them on
    shapes alone. ``x``: inputs (n, …) of the model. None where the model cannot be run on shapes.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, 0.4 s

    def of_gradient(key: str, samples: int) -> int:
        inputs = torch.empty((samples, *x.shape[1:]), dtype=x.dtype, device="meta")
        parameters = list(shapes.parameters())
        with FlopCounterMode(display=False) as counter:
            loss = F.cross_entropy(shapes(inputs), torch.empty(samples, dtype=torch.long, device="meta"))
            torch.autograd.grad(loss, [parameters[int(number)] for number in key.split()])
        return counter.get_total_flops()

    total = 0
    try:
        shapes = copy.deepcopy(model).to("meta").train()
        for key, (count, samples) in work.items():
            two, four = of_gradient(key, 2), of_gradient(key, 4)
            slope = (four - two) // 2
            total += count * (two - 2 * slope) + samples * slope
    except (RuntimeError, NotImplementedError):  # a model of a user's own that looks at its numbers
        return None
    return total
