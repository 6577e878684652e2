"""The messages between server and workers, and their form on the wire.

A message is FedML's ``Message``. On the wire it is one contiguous buffer:

    4 bytes      8 bytes              padded with spaces to a multiple of 256    4 · n bytes
    "pFP1"       length of the JSON   JSON of all parameters but the tensors     the tensors, float32, end to end

Quantized tensors are the bytes of codec.py instead, and the JSON says in "parameters" how many numbers they stand for.
Sender and receiver know names and shapes from the model, so neither travels. Nothing is ever unpickled.
"""

import json
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from fedml.core.distributed.communication.message import Message
from torch import Tensor

TENSORS = Message.MSG_ARG_KEY_MODEL_PARAMS
PARAMETERS = "parameters"
HEADER_MULTIPLE = 256  # bytes
_PREFIX = struct.Struct("<4sQ")
_MAGIC = b"pFP1"


class Kind(IntEnum):
    """What a message asks for or answers; S: sent by the server, W: by a worker."""

    SETUP = 1  # S: take up an experiment
    READY = 2  # W: models and data are in place
    TRAIN = 3  # S: train this client from these shared tensors (downlink)
    UPDATE = 4  # W: the client's shared tensors after training (uplink)
    DIVERGED = 5  # W: the client's training left the finite numbers
    EVALUATE = 6  # S: judge your clients on the new aggregate; write their checkpoint
    RESULTS = 7  # W: the figures
    FINISH = 8  # S: leave


DIRECTION = {Kind.TRAIN: "down", Kind.UPDATE: "up"}


def encode(message: Message) -> np.ndarray:
    """Returns the message as bytes, uint8. Its tensors are flat: float32 (n,), quantized ones uint8, or absent."""
    params = dict(message.get_params())
    tensors = params.pop(TENSORS, None)
    text = json.dumps(params, separators=(",", ":")).encode()
    header = -(-(_PREFIX.size + len(text)) // HEADER_MULTIPLE) * HEADER_MULTIPLE
    body = np.empty(0, np.uint8) if tensors is None else tensors.numpy().view(np.uint8)
    buffer = np.full(header + len(body), ord(" "), np.uint8)
    buffer[: _PREFIX.size + len(text)] = np.frombuffer(_PREFIX.pack(_MAGIC, len(text)) + text, np.uint8)
    buffer[header:] = body
    return buffer


def decode(buffer: np.ndarray) -> Message:
    """Returns the message in ``buffer``; its tensors are a view into it. Raises ValueError where it is not one."""
    prefix, rest = buffer[: _PREFIX.size].tobytes(), len(buffer) - _PREFIX.size
    magic, length = _PREFIX.unpack(prefix) if rest > 0 else (prefix, 0)
    if magic != _MAGIC or not 0 < length <= rest:
        raise ValueError(f"{len(buffer)} bytes that begin with {magic!r} are not a message of this version")
    params: dict[str, Any] = json.loads(buffer[_PREFIX.size : _PREFIX.size + length].tobytes())
    message = Message()
    message.init_from_json_object(params)
    header = -(-(_PREFIX.size + length) // HEADER_MULTIPLE) * HEADER_MULTIPLE
    if len(buffer) > header:
        kind = np.uint8 if PARAMETERS in params else np.float32
        message.add_params(TENSORS, torch.from_numpy(buffer[header:].view(kind)))
    return message


def flatten(params: dict[str, Tensor]) -> Tensor:
    """Returns the tensors end to end, float32 (n,). Raises ValueError where one is not float32."""
    for name, tensor in params.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: only float32 travels, got {tensor.dtype}")
    return torch.cat([tensor.reshape(-1) for tensor in params.values()]) if params else torch.empty(0)


def unflatten(flat: Tensor | None, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns views of ``flat`` (n,) with the names and shapes of ``template``. Raises ValueError where n differs."""
    sizes = [tensor.numel() for tensor in template.values()]
    flat = torch.empty(0) if flat is None else flat
    if flat.numel() != sum(sizes):
        raise ValueError(f"expected {sum(sizes)} parameters, got {flat.numel()}")
    parts = flat.split(sizes)
    return {name: part.view(like.shape) for (name, like), part in zip(template.items(), parts, strict=True)}
