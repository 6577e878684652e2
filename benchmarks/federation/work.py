"""What training costs the clients, in gradients and in floating-point operations."""

import copy
import logging
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.base import Work


def add(sums: Work, more: Work) -> None:
    """Adds ``more`` to ``sums``, in place."""
    for key, counts in more.items():
        before = sums.get(key, (0, 0))
        sums[key] = before[0] + counts[0], before[1] + counts[1]


def gradients(work: Work) -> int:
    """Returns of how many samples' losses gradients were taken, one of a batch of B counting B times."""
    return sum(samples for _, samples in work.values())


def formulas() -> dict[Any, Any]:
    """Returns torch's count of operations by operator. Without Triton, whose kernels nobody counts here: 0.3 s."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it would warn that Triton is not there
    triton = "triton.runtime.jit"
    hidden = sys.modules.setdefault(triton, None) is None  # type: ignore[arg-type]
    from torch.utils.flop_counter import flop_registry

    if hidden:
        del sys.modules[triton]
    return flop_registry


def flops(work: Work, model: nn.Module, x: Tensor) -> int | None:
    """Returns the floating-point operations of matrix products and convolutions, forward and backward, in ``work``.

    Those of one gradient are affine in the batch, so batches of two and four zeros tell. ``x``: inputs (n, …) of the
    model. None where it takes no zeros.
    """
    flop_registry = formulas()

    class Counter(TorchDispatchMode):
        """As torch's FlopCounterMode, which imports the compiler: 3 s, and a folder that stays. So do meta tensors."""

        total = 0

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if formula := flop_registry.get(func.overloadpacket):
                self.total += formula(*args, **(kwargs or {}), out_val=out)
            return out

    def of_gradient(key: str, samples: int) -> int:
        inputs = torch.zeros((samples, *x.shape[1:]), dtype=x.dtype)
        parameters = list(copied.parameters())
        with Counter() as counter:
            loss = F.cross_entropy(copied(inputs), torch.zeros(samples, dtype=torch.long))
            torch.autograd.grad(loss, [parameters[int(number)] for number in key.split()])
        return counter.total

    total = 0
    copied = copy.deepcopy(model).cpu().train()
    try:
        for key, (count, samples) in work.items():
            with torch.random.fork_rng(devices=[]):
                two, four = of_gradient(key, 2), of_gradient(key, 4)
            slope = (four - two) // 2
            total += count * (two - 2 * slope) + samples * slope
    except (RuntimeError, ValueError, IndexError):  # a model of a user's own
        return None
    return total
