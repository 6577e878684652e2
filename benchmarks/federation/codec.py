"""What a travelling tensor becomes on the wire: float32 as it is, in part (compress.py), or quantized.

Quantizing is FedPAQ (Reisizadeh et al., "FedPAQ: A Communication-Efficient Federated Learning Method with Periodic
Averaging and Quantization", AISTATS 2020, Algorithm 1): client i sends Q(w_i − w), the server adds it to the w that it
sent. Their quantizer (Example 1) rounds each value at random to one of its two neighbours on a grid, where E[Q(x)] = x:

    Q(x) = a · k / s,   k = ⌊s x / a⌋ or ⌈s x / a⌉,   |Q(x) − x| < a / s,   s = 2^(bits − 1) − 1

Deviation: a is the largest |x| of a tensor, not its Euclidean norm, as in QSGD's experiments (Alistarh et al.,
NeurIPS 2017): a finer grid for the same bits. ``float16`` takes the numbers of that format in [−1, 1] for k / s.
On the wire each tensor is a as float32, then its k: two to a byte for 4 bits.

A tensor that is a difference itself, as a method says, is quantized as it is.

A downlink, where asked for, quantizes w itself: a client that took no part for some rounds holds nothing to add to.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from baselines.base import Params, Trainer, copy_into
from benchmarks.federation import compress
from benchmarks.federation.compress import VALUE, Codec, Shapes, check_length
from benchmarks.federation.settings import UNQUANTIZED
from pfedpara.sharing import learned
from pfedpara.streams import stream_seed

KINDS = {form: np.dtype(kind) for form, kind in (("4", "u1"), ("8", "i1"), ("16", "<i2"), ("float16", "<f2"))}
SCALE = np.dtype("<f4")


def flatten(params: dict[str, Tensor]) -> Tensor:
    """Returns the tensors end to end, float32 (n,) on the CPU. Raises ValueError where one is not float32."""
    for name, tensor in params.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: only float32 travels, got {tensor.dtype}")
    return torch.cat([tensor.detach().reshape(-1) for tensor in params.values()]).cpu() if params else torch.empty(0)


def select(params: Mapping[str, Tensor], template: Mapping[str, Tensor]) -> Tensor:
    """Returns those of ``params`` that ``template`` names, in its order, as ``flatten``."""
    return flatten({name: params[name] for name in template})


def unflatten(flat: Tensor | None, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns views of ``flat`` (n,) with the names and shapes of ``template``. Raises ValueError where n differs."""
    sizes = [tensor.numel() for tensor in template.values()]
    flat = torch.empty(0) if flat is None else flat
    if flat.numel() != sum(sizes):
        raise ValueError(f"expected {sum(sizes)} parameters, got {flat.numel()}")
    parts = flat.split(sizes)
    return {name: part.view(like.shape) for (name, like), part in zip(template.items(), parts, strict=True)}


def random_stream(direction: Literal["up", "down"], *keys: int) -> np.random.Generator:
    """Returns the random stream that packs one message: up by seed, client and round, down by seed and round."""
    return np.random.default_rng(stream_seed(f"quantize {direction}", *keys))


def nbytes(size: int, form: str) -> int:
    """Returns the bytes of a quantized tensor of ``size`` values."""
    return SCALE.itemsize + ((size + 1) // 2 if form == "4" else size * KINDS[form].itemsize)


def round_at_random(x: np.ndarray, levels: int | None, stream: np.random.Generator | None) -> np.ndarray:
    """Returns for each x (n,) in [−1, 1], float64, one of its neighbours on the grid, so that the mean over draws is x:
    an integer k from −``levels`` to ``levels``; without levels, a float16. Without a stream, the nearest one."""
    if stream is None:
        return np.rint(x * levels) if levels else x.astype(np.float16)
    if levels:
        lower = np.floor(x * levels)
        return lower + (stream.random(x.size) < x * levels - lower)
    near = x.astype(np.float16)
    lower = np.where(near > x, np.nextafter(near, np.float16(-1)), near)  # (n,), float16
    upper = np.where(lower < x, np.nextafter(lower, np.float16(1)), lower)
    gap = np.where(upper > lower, upper.astype(float) - lower, 1)
    return np.where(stream.random(x.size) < (x - lower) / gap, upper, lower)


def quantize(values: np.ndarray, sizes: Iterable[int], form: str, stream: np.random.Generator | None) -> np.ndarray:
    """Returns the float32 ``values`` (n,), tensors of these ``sizes`` end to end, as bytes, uint8.

    Without a stream values that were quantized before, in the same tensors, lose nothing.

    A tensor with a value that is not finite arrives as NaN throughout, so that a run that diverged is seen to.
    """
    packed: list[bytes] = []
    for start, end in pairwise(np.cumsum([0, *sizes])):
        x = values[start:end].astype(np.float64)
        a = float(np.abs(x).max(initial=0))
        if not np.isfinite(a):
            a = np.nan
        levels = None if form == "float16" else 2 ** (int(form) - 1) - 1
        k = round_at_random(x / a if a > 0 else np.zeros_like(x), levels, stream)  # (n_i,)
        if form == "4":
            pairs = np.zeros(k.size + k.size % 2, np.uint8)
            pairs[: k.size] = k + levels  # 0 … 14
            codes = pairs[0::2] << 4 | pairs[1::2]
        else:
            codes = k.astype(KINDS[form])
        packed += [np.array(a, SCALE).tobytes(), codes.tobytes()]
    return np.frombuffer(bytearray(b"".join(packed)), np.uint8)


def dequantize(packed: np.ndarray, sizes: Sequence[int], form: str) -> np.ndarray:
    """Returns the float32 values (n,) of what ``quantize`` made. Raises ValueError where the length does not fit."""
    ends = np.cumsum([0, *(nbytes(size, form) for size in sizes)])
    if packed.nbytes != ends[-1]:
        raise ValueError(f"expected {ends[-1]} bytes of {sum(sizes)} quantized parameters, got {packed.nbytes}")
    values = [np.empty(0, np.float32)]
    for size, (start, end) in zip(sizes, pairwise(ends), strict=True):
        part = packed[start:end]
        a = part[: SCALE.itemsize].view(SCALE).astype(np.float64)  # (1,)
        k = np.frombuffer(part[SCALE.itemsize :].tobytes(), KINDS[form])
        if form == "4":
            k = np.stack((k >> 4, k & 15), axis=1).ravel()[:size].astype(np.int8) - 7
        step = a if form == "float16" else a / (2 ** (int(form) - 1) - 1)
        values.append((k * step).astype(np.float32))
    return np.concatenate(values)


def known(received: Tensor, like: Mapping[str, Tensor], differences: Collection[str]) -> Tensor:
    """Returns what both ends know of an update beforehand (n,): what was ``received``, and of ``differences`` zero."""
    if not differences:
        return received
    parts = received.split([tensor.numel() for tensor in like.values()])
    return torch.cat(
        [torch.zeros_like(part) if name in differences else part for name, part in zip(like, parts, strict=True)]
    )


def reference(
    received: Mapping[str, Tensor], like: Mapping[str, Tensor], differences: Collection[str], form: str
) -> Tensor | None:
    """Returns ``known`` of an update with the shapes of ``like``; None where ``form`` sends values, and needs none."""
    if form == UNQUANTIZED:
        return None
    alone = {name: torch.zeros(tensor.shape) for name, tensor in like.items() if name not in received}
    return known(select({**received, **alone}, like), like, differences)


def feedback(trainer: Trainer, spec: str) -> Params:
    """Returns what a client keeps for the codec ``spec``: of each tensor that travels in part, what was left out, 0.

    Running statistics travel whole: a variance that is made up of parts may fall below 0.
    """
    if spec == compress.NONE:
        return {}
    whole = trainer.shared.keys() - learned(trainer.shared).keys()
    return {name: torch.zeros(t.shape) for name, t in trainer.travelling.items() if name not in whole}


def add_waiting(values: Tensor, like: Mapping[str, Tensor], waiting: Params) -> Tensor:
    """Returns flat ``values`` (n,) of the tensors ``like``, and on top of each what is ``waiting`` of it."""
    if not waiting:
        return values
    return values + flatten({name: waiting.get(name, torch.zeros(tensor.shape)) for name, tensor in like.items()})


def keep_waiting(waiting: Params, left_out: Tensor, like: Mapping[str, Tensor]) -> None:
    """Makes ``waiting`` what was ``left_out`` (n,) of the tensors ``like``; the others wait on."""
    parts = unflatten(left_out, like)
    copy_into({name: waiting[name] for name in like if name in waiting}, {n: parts[n] for n in like if n in waiting})


def divide(flat: Tensor, like: Mapping[str, Tensor], partial: Collection[str]) -> tuple[Tensor, Tensor]:
    """Returns the tensors named in ``partial``, and the others, each end to end."""
    if like.keys() <= set(partial):  # no copies of a whole model
        return flat, torch.empty(0)
    parts = dict(zip(like, flat.split([tensor.numel() for tensor in like.values()]), strict=True))
    some, others = ([part for name, part in parts.items() if (name in partial) == inside] for inside in (True, False))
    return torch.cat([torch.empty(0), *some]), torch.cat([torch.empty(0), *others])


def join(some: Tensor, others: Tensor, like: Mapping[str, Tensor], partial: Collection[str]) -> Tensor:
    """Returns what ``divide`` divided."""
    if like.keys() <= set(partial):
        return some
    sizes = {inside: [t.numel() for name, t in like.items() if (name in partial) == inside] for inside in (True, False)}
    parts = {True: iter(some.split(sizes[True])), False: iter(others.split(sizes[False]))}
    return torch.cat([next(parts[name in partial]) for name in like])


def codec_of(form: str, like: Mapping[str, Tensor], partial: Collection[str]) -> tuple[Codec, Shapes]:
    """Returns the codec called ``form``, and the shapes of what it packs."""
    codec = compress.parse(form)[1]
    assert codec is not None
    return codec, [tuple(tensor.shape) for name, tensor in like.items() if name in partial]


def pack_marked(values: Tensor, like: Mapping[str, Tensor], marks: Mapping[str, str]) -> dict[str, Any]:
    """Returns a bit for each mark, and the float32 values of what is marked 1 or has no marks."""
    parts = unflatten(values, like)
    bits = {name: parts[mark] > 0 for mark, name in marks.items()}
    sent = [parts[name][bits[name]] if name in bits else parts[name].flatten() for name in like if name not in marks]
    flat, flags = torch.cat(sent), torch.cat([bits[name].flatten() for name in marks.values()])
    packed = np.concatenate([np.packbits(flags.numpy()), flat.numpy().view(np.uint8)])
    return {"tensors": torch.from_numpy(packed), "parameters": flat.numel()}


def unpack_marked(tensors: Tensor, like: Mapping[str, Tensor], marks: Mapping[str, str]) -> Tensor:
    """Returns the values (n,) of what ``pack_marked`` made, 0 where nothing was sent. Raises ValueError."""
    raw, arrived = tensors.numpy().view(np.uint8), {name: torch.ones(tensor.shape) for name, tensor in like.items()}
    count = sum(like[mark].numel() for mark in marks)
    places, numbers = np.split(raw, [-(-count // 8)])
    flags = torch.from_numpy(np.unpackbits(places)[:count].astype(np.float32))
    arrived |= unflatten(flags, {mark: like[mark] for mark in marks})
    of = {name: arrived[mark] > 0 for mark, name in marks.items()}
    wanted = {name: of.get(name, torch.ones(like[name].shape, dtype=torch.bool)) for name in like if name not in marks}
    check_length(numbers, VALUE.itemsize * sum(int(mask.sum()) for mask in wanted.values()))
    flat, start = torch.from_numpy(np.frombuffer(numbers.tobytes(), VALUE).copy()), 0
    for name, mask in wanted.items():
        arrived[name] = torch.zeros(mask.shape)
        arrived[name][mask] = flat[start : (start := start + int(mask.sum()))]
    return flatten(arrived)


def pack(
    values: Tensor,
    reference: Tensor | None,
    like: Mapping[str, Tensor],
    form: str,
    stream: np.random.Generator | None,
    partial: Collection[str] = (),
    marks: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns what a message says of flat ``values`` (n,) with the shapes of ``like``: ``tensors`` and, for packed
    ones, how many ``parameters`` they are. The receiver has ``reference`` (n,) already, where it is given.

    A codec packs the tensors named in ``partial`` and takes a reference and a stream; the others travel whole.
    ``marks`` has the tensor of each tensor of marks, by name: with form 32 its numbers marked 0 do not travel.
    """
    if marks:
        return pack_marked(values, like, marks)
    if form == UNQUANTIZED:
        return {"tensors": values}
    sizes = [tensor.numel() for tensor in like.values()]
    if form in KINDS:
        change = values if reference is None else values - reference
        return {"tensors": torch.from_numpy(quantize(change.numpy(), sizes, form, stream)), "parameters": sum(sizes)}
    assert reference is not None
    assert stream is not None
    codec, shapes = codec_of(form, like, partial)
    (v, whole), (w, _) = divide(values, like, partial), divide(reference, like, partial)
    parts = [*codec.pack(v.numpy(), w.numpy(), shapes, stream), whole.numpy()]
    packed = np.concatenate([part.view(np.uint8) for part in parts])
    return {"tensors": torch.from_numpy(packed), "parameters": codec.count(shapes) + whole.numel()}


def unpack(
    tensors: Tensor | None,
    reference: Tensor | None,
    like: Mapping[str, Tensor],
    form: str,
    stream: np.random.Generator | None = None,
    partial: Collection[str] = (),
    marks: Mapping[str, str] = MappingProxyType({}),
) -> Tensor:
    """Returns the flat float32 values (n,) of what ``pack`` made, with a fresh ``stream`` of the same keys.

    Raises ValueError where it is not of that form.
    """
    tensors = torch.empty(0) if tensors is None else tensors
    if marks:
        return unpack_marked(tensors, like, marks)
    if form == UNQUANTIZED or not like:
        return tensors
    if form in KINDS:
        change = torch.from_numpy(dequantize(tensors.numpy(), [tensor.numel() for tensor in like.values()], form))
        return change if reference is None else reference + change
    assert reference is not None
    assert stream is not None
    codec, shapes = codec_of(form, like, partial)
    w, whole = divide(reference, like, partial)
    packed, rest = np.split(tensors.numpy().view(np.uint8), [-4 * whole.numel() or tensors.nbytes])
    arrived = torch.from_numpy(codec.unpack(packed, w.numpy(), shapes, stream))
    return join(arrived, torch.from_numpy(rest.copy().view(np.float32)), like, partial)
