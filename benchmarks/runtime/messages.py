"""The messages between server and workers, and their form on the wire.

A message is FedML's ``Message``. On the wire it is a header, and a body where it has tensors, sent from where they lie:

    4 bytes   8 bytes              8 bytes          padded with spaces to a multiple of 256     body: 4 · n bytes
    "pFP2"    length of the JSON   length of body   JSON of all parameters but the tensors      tensors, float32, flat

Packed tensors are the bytes of codec.py instead, and the JSON says in "parameters" how many numbers they stand for.
Sender and receiver know names and shapes from the model, so neither travels. Nothing is ever unpickled.
"""

import json
import struct
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from fedml.core.distributed.communication.message import Message

from benchmarks.federation.ledger import HEADER_MULTIPLE, Entry

TENSORS = Message.MSG_ARG_KEY_MODEL_PARAMS
PARAMETERS = "parameters"
ADDRESS = {Message.MSG_ARG_KEY_TYPE, Message.MSG_ARG_KEY_SENDER, Message.MSG_ARG_KEY_RECEIVER}
_PREFIX = struct.Struct("<4sQQ")
_MAGIC = b"pFP2"


class Kind(IntEnum):
    """What a message asks for or answers; S: sent by the server, W: by a worker. FedML's own kinds are 0 to 4."""

    SETUP = 11  # S: take up an experiment
    READY = 12  # W: models and data are in place
    TRAIN = 13  # S: train this client from these shared tensors (downlink)
    UPDATE = 14  # W: the client's shared tensors after training (uplink)
    DIVERGED = 15  # W: the client's training left the finite numbers
    EVALUATE = 16  # S: judge your clients on the new aggregate; write their checkpoint
    RESULTS = 17  # W: the figures
    FINISH = 18  # S: leave
    MOVE = 19  # S: hand a client's private state over to the worker that trains it next
    STATE = 20  # W: that state, from worker to worker
    ABSENT = 21  # W: the client received the tensors, and fails or comes too late
    WAIT = 22  # S: the server is there, and waits for others
    WELCOME = 23  # S: judge these clients, which never took part, on the last aggregate
    NEWCOMERS = 24  # W: their figures


FIELDS: dict[Kind, dict[str, type]] = {
    Kind.SETUP: {"experiment": int, "round": int, "partition_sha256": str, "states": list},
    Kind.READY: {"host": str, "cores": list},
    Kind.TRAIN: {"client": int, "round": int, "arrives": bool, "moves": bool, "judge": bool},
    Kind.UPDATE: {"client": int, "round": int, "samples": int},
    Kind.DIVERGED: {"client": int, "round": int, "reason": str},
    Kind.EVALUATE: {"round": int, "clients": list, "untrained": list},
    Kind.RESULTS: {"round": int},  # the rest is checked by federation/rounds.py's Results
    Kind.FINISH: {},
    Kind.MOVE: {"client": int, "round": int, "worker": int},
    Kind.STATE: {"client": int, "round": int},
    Kind.ABSENT: {"client": int, "round": int},
    Kind.WAIT: {},
    Kind.WELCOME: {"round": int, "clients": list},
    Kind.NEWCOMERS: {"round": int, "figures": dict},
}
"""What a message of each kind must hold, beside tensors; JSON's own types."""

FROM_SERVER = {Kind.SETUP, Kind.TRAIN, Kind.EVALUATE, Kind.FINISH, Kind.MOVE, Kind.WAIT, Kind.WELCOME}

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


def encode(message: Message) -> tuple[np.ndarray, np.ndarray]:
    """Returns header and body, uint8; the body is a view of the message's tensors, empty where it has none.

    Those are flat and on the CPU: float32 (n,), packed ones uint8.
    """
    params = dict(message.get_params())
    tensors = params.pop(TENSORS, None)
    body = np.empty(0, np.uint8) if tensors is None else tensors.numpy().view(np.uint8)
    text = json.dumps(params, separators=(",", ":")).encode()
    content = _PREFIX.pack(_MAGIC, len(text), len(body)) + text
    padded = content.ljust(-(-len(content) // HEADER_MULTIPLE) * HEADER_MULTIPLE)
    return np.frombuffer(padded, np.uint8), body


def enter(message: Message, header: np.ndarray, body: np.ndarray) -> Entry | None:
    """Returns what the ledger says of a message with this header and body; None where it has no client's tensors."""
    direction = DIRECTION.get(message.get_type())
    if direction is None or (tensors := message.get(TENSORS)) is None:
        return None
    parameters = message.get(PARAMETERS) or tensors.numel()
    return Entry(message.get("round"), message.get("client"), direction, parameters, header.nbytes + body.nbytes)


def parse_header(header: np.ndarray) -> tuple[bytes, int]:
    """Returns the JSON in a header and how many bytes its body has. Raises ValueError where it is no header."""
    content = header.tobytes()
    if len(content) > _PREFIX.size:
        magic, length, body = _PREFIX.unpack_from(content)
        if magic == _MAGIC and 0 < length <= len(content) - _PREFIX.size:
            return content[_PREFIX.size : _PREFIX.size + length], body
    raise ValueError(f"{len(content)} bytes that begin with {content[:4]!r} are not a message of this version")


def decode(header: np.ndarray, body: np.ndarray) -> Message:
    """Returns the message; its tensors are a view of ``body``. Raises ValueError where it is not one."""
    text, size = parse_header(header)
    try:
        params: dict[str, Any] = json.loads(text)
        addressed = params.keys() >= ADDRESS
    except (ValueError, RecursionError, AttributeError):
        addressed = False
    kind = np.dtype(np.uint8 if addressed and PARAMETERS in params else np.float32)
    if not addressed or size != len(body) or size % kind.itemsize:
        raise ValueError(f"{len(header)} + {len(body)} bytes are not a whole message of this version")
    message = Message()
    message.init_from_json_object(params)
    if size:
        message.add_params(TENSORS, torch.from_numpy(body.view(kind)))
    return message
