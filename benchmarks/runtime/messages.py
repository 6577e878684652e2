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
ADDRESS = {Message.MSG_ARG_KEY_TYPE, Message.MSG_ARG_KEY_SENDER, Message.MSG_ARG_KEY_RECEIVER}
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
    MOVE = 9  # S: hand a client's private state over to the worker that trains it next
    STATE = 10  # W: that state, from worker to worker


FIELDS: dict[Kind, dict[str, type]] = {
    Kind.SETUP: {"experiment": int, "partition_sha256": str, "clients": list},
    Kind.READY: {},
    Kind.TRAIN: {"client": int, "round": int, "arrives": bool, "moves": bool, "judge": bool},
    Kind.UPDATE: {"client": int, "round": int, "samples": int},
    Kind.DIVERGED: {"client": int, "round": int, "reason": str},
    Kind.EVALUATE: {"round": int, "clients": list, "untrained": list},
    Kind.RESULTS: {"round": int, "trained": list, "received": dict, "fresh": dict, "diverged": list, "ledger": list},
    Kind.FINISH: {},
    Kind.MOVE: {"client": int, "round": int, "worker": int},
    Kind.STATE: {"client": int, "round": int},
}
"""What a message of each kind must hold, beside tensors; JSON's own types."""

FROM_SERVER = {Kind.SETUP, Kind.TRAIN, Kind.EVALUATE, Kind.FINISH, Kind.MOVE}

DIRECTION = {Kind.TRAIN: "down", Kind.UPDATE: "up", Kind.STATE: "move"}


class MessageError(ValueError):
    """A message that its receiver cannot have asked for; the text names the sender."""

    def __init__(self, message: Message, wrong: str) -> None:
        sender, kind = message.get_sender_id(), message.get_type()
        name = Kind(kind).name if kind in FIELDS else f"a message of type {kind!r:.20}"
        super().__init__(f"{'server' if sender == 0 else f'worker {sender!r:.20}'} sent {name}, but {wrong}")


def check(message: Message, workers: int) -> None:
    """Raises MessageError unless the message is of a known kind, from a node that sends such, and complete."""
    kind, sender = message.get_type(), message.get_sender_id()
    if kind not in FIELDS:
        raise MessageError(message, "there is no such type")
    if type(sender) is not int or not 0 <= sender <= workers or (sender == 0) != (kind in FROM_SERVER):
        raise MessageError(message, "that is not its part")
    for name, kind_of in FIELDS[kind].items():
        if type(value := message.get(name)) is not kind_of:
            raise MessageError(message, f"its {name} is {value!r:.40} instead of {kind_of.__name__}")
    if (tensors := message.get(TENSORS)) is not None and not tensors.isfinite().all():
        raise MessageError(message, "a parameter in it is not finite")


def encode(message: Message) -> np.ndarray:
    """Returns the message as bytes, uint8. Its tensors are flat: float32 (n,), quantized ones uint8, or absent."""
    params = dict(message.get_params())
    tensors = params.pop(TENSORS, None)
    text = json.dumps(params, separators=(",", ":")).encode()
    header = -(-(_PREFIX.size + len(text)) // HEADER_MULTIPLE) * HEADER_MULTIPLE
    body = np.empty(0, np.uint8) if tensors is None else tensors.numpy().view(np.uint8)
    buffer = np.empty(header + len(body), np.uint8)
    buffer[:header] = ord(" ")
    buffer[: _PREFIX.size + len(text)] = np.frombuffer(_PREFIX.pack(_MAGIC, len(text)) + text, np.uint8)
    buffer[header:] = body
    return buffer


def decode(buffer: np.ndarray) -> Message:
    """Returns the message in ``buffer``; its tensors are a view into it. Raises ValueError where it is not one."""
    prefix, rest = buffer[: _PREFIX.size].tobytes(), len(buffer) - _PREFIX.size
    magic, length = _PREFIX.unpack(prefix) if rest > 0 else (prefix, 0)
    if magic != _MAGIC or not 0 < length <= rest:
        raise ValueError(f"{len(buffer)} bytes that begin with {magic!r} are not a message of this version")
    try:
        params: dict[str, Any] = json.loads(buffer[_PREFIX.size : _PREFIX.size + length].tobytes())
        addressed = params.keys() >= ADDRESS
    except (ValueError, RecursionError, AttributeError):
        addressed = False
    header = -(-(_PREFIX.size + length) // HEADER_MULTIPLE) * HEADER_MULTIPLE
    kind = np.dtype(np.uint8 if addressed and PARAMETERS in params else np.float32)
    if not addressed or (len(buffer) > header and (len(buffer) - header) % kind.itemsize):
        raise ValueError(f"{len(buffer)} bytes are not a whole message of this version")
    message = Message()
    message.init_from_json_object(params)
    if len(buffer) > header:
        message.add_params(TENSORS, torch.from_numpy(buffer[header:].view(kind)))
    return message


def flatten(params: dict[str, Tensor]) -> Tensor:
    """Returns the tensors end to end, float32 (n,) on the CPU. Raises ValueError where one is not float32."""
    for name, tensor in params.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: only float32 travels, got {tensor.dtype}")
    return torch.cat([tensor.reshape(-1) for tensor in params.values()]).cpu() if params else torch.empty(0)


def unflatten(flat: Tensor | None, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns views of ``flat`` (n,) with the names and shapes of ``template``. Raises ValueError where n differs."""
    sizes = [tensor.numel() for tensor in template.values()]
    flat = torch.empty(0) if flat is None else flat
    if flat.numel() != sum(sizes):
        raise ValueError(f"expected {sum(sizes)} parameters, got {flat.numel()}")
    parts = flat.split(sizes)
    return {name: part.view(like.shape) for (name, like), part in zip(template.items(), parts, strict=True)}
