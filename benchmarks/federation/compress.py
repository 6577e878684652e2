"""Updates of which a part travels and the rest waits on the client: error feedback.

A client has w from the server, w_i after training, and e_i, what its messages have left out so far, 0 at first:

    v = w_i + e_i,   up travels C(v − w),   e_i ← v − w − C(v − w);   the server reads w + C(v − w).

(Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019, Algorithm 2.)

    topk:S      the S·n values of v that moved furthest from w, with their places
                (Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018)
    randk:S     S·n values of v at random places, the same ones for both ends by the message's stream: none travels
    sign        of each tensor the mean |v − w|, and one bit for each sign (EF-SignSGD, Algorithm 1)
    powersgd:R  of each matrix M = v − w the factors P (m, R), orthonormal, and Q = Mᵀ P (n, R), with M ≈ P Qᵀ
                (Vogels, Karimireddy, Jaggi, "PowerSGD", NeurIPS 2019, Algorithm 1); a kernel is (O, I k1 k2)

Deviations. topk and randk choose among all tensors end to end, and send v, so that with S = 1 nothing is rounded.
A client's Q starts at random in each round, and two power iterations stand for PowerSGD's warm start.
Vectors, and matrices whose factors would be no smaller, travel whole with powersgd, as in its authors' code.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

NONE = "none"
PLACE = np.dtype("<u4")
VALUE = np.dtype("<f4")
ITERATIONS = 2  # of the power method

Shapes = Sequence[tuple[int, ...]]


class Codec(Protocol):
    """C, on tensors of these ``shapes`` end to end: ``v`` and ``w`` (n,), float32."""

    def pack(self, v: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> list[np.ndarray]:
        """Returns what travels, one after another."""

    def unpack(self, packed: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> np.ndarray:
        """Returns w + C(v − w) of the bytes that travelled, uint8. Raises ValueError where they are not such."""

    def count(self, shapes: Shapes) -> int:
        """Returns how many numbers of the update travel."""


def largest(keys: np.ndarray, k: int) -> np.ndarray:
    """Returns where the ``k`` largest integers of ``keys`` (n,) are, bool (n,); of equal ones the first."""
    if k == keys.size:
        return np.ones(k, bool)
    least = np.partition(keys, keys.size - k)[keys.size - k]
    mask = keys > least
    mask[np.flatnonzero(keys == least)[: k - np.count_nonzero(mask)]] = True
    return mask


def check_length(packed: np.ndarray, expected: int) -> None:
    if packed.nbytes != expected:
        raise ValueError(f"expected {expected} bytes of a packed update, got {packed.nbytes}")


class Sparse(NamedTuple):
    share: float

    def count(self, shapes: Shapes) -> int:
        n = sum(map(math.prod, shapes))
        return min(n, max(1, round(self.share * n)))


class TopK(Sparse):
    """Places are their numbers, or a bit for each parameter where that is less; none where all travel."""

    def pack(self, v: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> list[np.ndarray]:
        k = self.count(shapes)
        if k == v.size:
            return [v]
        keys = (v - w).view(np.int32)
        keys &= 0x7FFFFFFF  # the bits of a float without its sign are an integer that grows with it
        mask = largest(keys, k)
        if 8 * PLACE.itemsize * k > v.size:
            return [np.packbits(mask), v[mask]]
        places = np.flatnonzero(mask)
        return [places.astype(PLACE), v[places]]

    def unpack(self, packed: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> np.ndarray:
        k, n = self.count(shapes), w.size
        size = 0 if k == n else min(PLACE.itemsize * k, -(-n // 8))
        check_length(packed, size + VALUE.itemsize * k)
        values = packed[size:].view(VALUE) if size % 4 == 0 else np.frombuffer(packed[size:].tobytes(), VALUE)
        if k == n:
            return values.copy()
        arrived = w.copy()
        if size < PLACE.itemsize * k:
            places = np.unpackbits(packed[:size], count=n).view(bool)
            fits = np.count_nonzero(places) == k
        else:
            places = np.frombuffer(packed[:size].tobytes(), PLACE)
            fits = places[-1] < n and bool((places[1:] > places[:-1]).all())
        if not fits:
            raise ValueError(f"the places of a packed update are not {k} of {n} in their order")
        arrived[places] = values
        return arrived


class RandK(Sparse):
    def places(self, shapes: Shapes, n: int, stream: np.random.Generator) -> np.ndarray:
        return largest(stream.integers(1 << 31, size=n, dtype=np.int32), self.count(shapes))

    def pack(self, v: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> list[np.ndarray]:
        return [v[self.places(shapes, v.size, stream)]]

    def unpack(self, packed: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> np.ndarray:
        check_length(packed, VALUE.itemsize * self.count(shapes))
        arrived = w.copy()
        arrived[self.places(shapes, w.size, stream)] = np.frombuffer(packed.tobytes(), VALUE)
        return arrived


class Sign(NamedTuple):
    def count(self, shapes: Shapes) -> int:
        return sum(map(math.prod, shapes))

    def pack(self, v: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> list[np.ndarray]:
        change = v - w
        parts = np.split(change, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        scales = np.array([np.abs(part).mean(dtype=float) for part, _ in zip(parts, shapes, strict=False)], VALUE)
        return [scales, np.packbits(np.signbit(change))]

    def unpack(self, packed: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> np.ndarray:
        check_length(packed, (size := VALUE.itemsize * len(shapes)) + -(-w.size // 8))
        scales = np.frombuffer(packed[:size].tobytes(), VALUE)
        steps = np.repeat(scales, [math.prod(shape) for shape in shapes])
        return w + np.where(np.unpackbits(packed[size:], count=w.size), -steps, steps)


class PowerSGD(NamedTuple):
    rank: int

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Returns m and n of a tensor that travels as factors."""
        m, n = shape[0] if shape else 1, math.prod(shape[1:])
        return (m, n) if len(shape) > 1 and self.rank * (m + n) < m * n else None

    def sizes(self, shapes: Shapes) -> list[int]:
        """Returns how many numbers of each tensor travel."""
        both = [(self.sides(shape), math.prod(shape)) for shape in shapes]
        return [self.rank * sum(sides) if sides else whole for sides, whole in both]

    def count(self, shapes: Shapes) -> int:
        return sum(self.sizes(shapes))

    def pack(self, v: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> list[np.ndarray]:
        import torch  # not where settings are read; its products have the same bits on any number of ranks

        packed, start = [], 0
        for shape in shapes:
            part = slice(start, start := start + math.prod(shape))
            if sides := self.sides(shape):
                M = torch.from_numpy(v[part] - w[part]).view(sides)  # (m, n)
                Q = torch.from_numpy(stream.standard_normal((sides[1], self.rank), np.float32))  # (n, R)
                for _ in range(ITERATIONS):
                    P, _ = torch.linalg.qr(M @ Q)  # (m, R)
                    Q = M.T @ P
                packed += [P.numpy().ravel(), Q.numpy().ravel()]
            else:
                packed.append(v[part])
        return packed

    def unpack(self, packed: np.ndarray, w: np.ndarray, shapes: Shapes, stream: np.random.Generator) -> np.ndarray:
        import torch

        check_length(packed, VALUE.itemsize * self.count(shapes))
        values, arrived = torch.from_numpy(np.frombuffer(packed.tobytes(), VALUE).copy()), torch.from_numpy(w.copy())
        parts = arrived.split([math.prod(shape) for shape in shapes])
        for shape, part, numbers in zip(shapes, parts, values.split(self.sizes(shapes)), strict=True):
            if sides := self.sides(shape):
                P, Q = numbers.split([self.rank * side for side in sides])
                part.view(sides).addmm_(P.view(-1, self.rank), Q.view(-1, self.rank).T)
            else:
                part.copy_(numbers)
        return arrived.numpy()


def a_share(text: str) -> float:
    if not 0 < (share := float(text)) <= 1:
        raise ValueError
    return share


def a_rank(text: str) -> int:
    if (rank := int(text)) < 1:
        raise ValueError
    return rank


class Kind(NamedTuple):
    codec: Callable[..., Codec]
    number: Callable[[str], float] | None = None
    right: str = ""


SHARE = "the share of the parameters that travels, above 0 and up to 1 for the whole model"
CODECS = {
    "topk": Kind(TopK, a_share, SHARE),
    "randk": Kind(RandK, a_share, SHARE),
    "sign": Kind(Sign),
    "powersgd": Kind(PowerSGD, a_rank, "the rank of the factors, from 1 on"),
}


def parse(spec: str) -> tuple[str, Codec | None]:
    """Returns the canonical spelling of a codec, and the codec; None for ``NONE``. Raises ValueError."""
    name, colon, text = spec.partition(":")
    if spec == NONE:
        return spec, None
    if name not in CODECS:
        raise ValueError(f"--codec: no {spec!r:.40}; there are {', '.join(CODECS)} and {NONE}")
    kind = CODECS[name]
    if kind.number is None:
        if colon:
            raise ValueError(f"--codec: {spec!r:.40} has a number, and {name} takes none")
        return name, kind.codec()
    try:
        number = kind.number(text)
    except ValueError:
        raise ValueError(f"--codec: {spec!r:.40} is not right; what follows {name}: is {kind.right}") from None
    return f"{name}:{number:g}", kind.codec(number)
