"""Every random stream of the project, made from what it is for and its keys: no two share one.

A stream is the SHAKE-256 of purpose and keys in JSON, which tells ("a", 1) from ("a", 1, 0) and from ("b", 1).
Importing this costs nothing: it needs the standard library, and torch only where a state for torch is asked for.
"""

import hashlib
import json
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MERSENNE_BYTES = slice(24, 24 + 624 * 8)  # of torch's state: the twister's words, 32 bits each in 64


def stream_seed(purpose: str, *keys: int) -> int:
    """Returns the 128-bit seed of a stream, for ``numpy.random.default_rng``.

    Raises TypeError for a key that is not a whole number.
    """
    return int.from_bytes(_digest(16, purpose, keys), "little")


def stream_state(purpose: str, *keys: int) -> "Tensor":
    """Returns the state that sets a CPU generator of torch to a stream, uint8 (5056,), for ``torch.set_rng_state``.

    ``torch.manual_seed`` would not do: of its seed it uses 32 bits, so that among 80,000 streams two are likely equal.
    """
    import torch

    state = torch.Generator().manual_seed(0).get_state()
    words = torch.frombuffer(bytearray(_digest(624 * 4, purpose, keys)), dtype=torch.int32)
    state[MERSENNE_BYTES].view(torch.int64).copy_(words.long() & 0xFFFFFFFF)
    return state


def _digest(count: int, purpose: str, keys: tuple[int, ...]) -> bytes:
    text = json.dumps([purpose, *map(operator.index, keys)])
    return hashlib.shake_256(text.encode()).digest(count)
