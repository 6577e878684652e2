"""Messages survive the wire, count what they carry, and nothing else is taken for one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from fedml.core.distributed.communication.message import Message
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.federation.codec import flatten, unflatten
from benchmarks.federation.ledger import HEADER_MULTIPLE, Entry, Ledger, totals
from benchmarks.runtime.messages import (
    FIELDS,
    TENSORS,
    Kind,
    MessageError,
    check,
    decode,
    encode,
)
from tests.support import ROOT


def message(n: int, **params: object) -> Message:
    made = Message(int(Kind.TRAIN), 0, 3)
    for key, value in params.items():
        made.add_params(key, value)
    if n:
        made.add_params(TENSORS, torch.arange(n, dtype=torch.float32) / 7)
    return made


@given(n=st.integers(0, 3000), client=st.integers(0, 2**40), text=st.text(max_size=600))
def test_round_trip(n: int, client: int, text: str) -> None:
    sent = message(n, client=client, text=text)
    received = decode(*encode(sent))
    assert (received.get_type(), received.get_sender_id(), received.get_receiver_id()) == (Kind.TRAIN, 0, 3)
    assert (received.get("client"), received.get("text")) == (client, text)
    assert n == 0 or torch.equal(received.get(TENSORS), sent.get(TENSORS))


def test_a_message_is_four_bytes_a_parameter_and_a_small_header() -> None:
    header, body = encode(message(59_570, client=9, round=1000, judge=True))
    assert (header.nbytes, body.nbytes) == (HEADER_MULTIPLE, 4 * 59_570)


def test_header_does_not_depend_on_the_numbers_in_it() -> None:
    few, many = (encode(message(5, client=c, round=r))[0].nbytes for c, r in ((0, 1), (999_999, 999_999)))
    assert few == many


def test_tensors_are_sent_from_where_they_lie() -> None:
    sent = message(1000)
    assert np.shares_memory(encode(sent)[1], sent.get(TENSORS).numpy())


def packed(text: bytes) -> bytes:
    return b"pFP2" + len(text).to_bytes(8, "little") + bytes(8) + text


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"", b"pFP2", b"\x80\x04pickle" * 20, b"pFP2" + b"\xff" * 60),
        *map(packed, (b"{", b"[]", b"{}", b"7", b"\xff\xff", b"[" * 100_000, b'{"a":' * 100_000)),
    ],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="message"):
        decode(np.frombuffer(garbage, np.uint8), np.empty(0, np.uint8))


@pytest.mark.parametrize("given", [0, 4, 12, 16])
def test_a_body_of_another_size_is_refused(given: int) -> None:
    header, body = encode(message(2))
    with pytest.raises(ValueError, match="not a whole message"):
        decode(header, np.resize(body, given))


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
def test_what_is_not_a_message_is_refused_and_nothing_else_happens(noise: bytes, length: int) -> None:
    for content in (noise, packed(noise), b"pFP2" + length.to_bytes(8, "little") + noise):
        with pytest.raises(ValueError, match="message"):
            decode(np.frombuffer(content, np.uint8), np.empty(0, np.uint8))


UPDATE = {"client": 3, "round": 2, "samples": 5}


def sent_by(sender: object, kind: object, **params: object) -> Message:
    made = Message(kind, sender, 0)
    for key, value in params.items():
        made.add_params(key, value)
    return made


def test_every_kind_says_what_it_must_hold() -> None:
    assert FIELDS.keys() == set(Kind)
    check(sent_by(2, int(Kind.UPDATE), **UPDATE), workers=2)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (sent_by(2, 99, **UPDATE), "type 99, but there is no such type"),
        (sent_by(2, "4", **UPDATE), "no such type"),
        (sent_by(3, int(Kind.UPDATE), **UPDATE), "worker 3 sent UPDATE, but that is not its part"),
        (sent_by(0, int(Kind.UPDATE), **UPDATE), "server sent UPDATE, but that is not its part"),
        (sent_by(1, int(Kind.FINISH)), "worker 1 sent FINISH, but that is not its part"),
        (sent_by(True, int(Kind.UPDATE), **UPDATE), "not its part"),
        (
            sent_by(2, int(Kind.UPDATE), client=3, round=2),
            "worker 2 sent UPDATE, but its samples is None",
        ),
        (sent_by(2, int(Kind.UPDATE), **UPDATE | {"round": 2.0}), "its round is 2.0 instead of int"),
        (sent_by(2, int(Kind.UPDATE), **UPDATE | {"client": True}), "its client is True instead of int"),
    ],
)
def test_a_wrong_message_names_its_sender(message: Message, wrong: str) -> None:
    with pytest.raises(MessageError) as refused:
        check(message, workers=2)
    assert wrong in str(refused.value)


def test_flatten_keeps_order_and_unflatten_restores_shapes() -> None:
    params = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(7.0)}
    flat = flatten(params)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7]
    back = unflatten(flat, params)
    assert list(back) == ["b", "a"]
    assert all(torch.equal(back[name], params[name]) for name in params)
    assert unflatten(None, {}) == {}


def test_wrong_sizes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 6 parameters, got 5"):
        unflatten(torch.zeros(5), {"a": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="only float32 travels"):
        flatten({"a": torch.zeros(2, dtype=torch.float64)})


def test_ledger_adds_up_and_starts_anew() -> None:
    ledger = Ledger()
    ledger.entries += [Entry(1, 0, "down", 10, 50), Entry(1, 0, "up", 7, 30), Entry(1, 1, "up", 7, 31)]
    assert totals(ledger.take()) == {"parameters_up": 14, "parameters_down": 10, "bytes_up": 61, "bytes_down": 50}
    assert ledger.take() == []


def test_messages_of_a_rank_arrive_in_the_order_in_which_it_sent_them() -> None:
    """Also where a small one is there before the tensors of the one ahead of it."""
    code = """
from benchmarks.runtime.launch import launch
group = launch(lambda: None)
import torch
from fedml.core.distributed.communication.message import Message
from benchmarks.runtime.messages import TENSORS, Kind
from benchmarks.runtime.transport import MpiTransport
transport, sizes = MpiTransport(group), [3_000_000, 0, 5, 0, 1_000_000, 0]
class Node:
    got = []
    def get_sender_id(self):
        return 0
    def receive_message(self, kind, message):
        tensors = message.get(TENSORS)
        self.got.append((message.get("number"), 0 if tensors is None else tensors.numel()))
        if len(self.got) == len(sizes):
            transport.stop_receive_message()
if group.comm.rank:
    for number, size in enumerate(sizes):
        message = Message(int(Kind.STATE), 1, 0)
        message.add_params("number", number)
        if size:
            message.add_params(TENSORS, torch.zeros(size))
        transport.send_message(message)
    while transport.sends:
        transport._look()
else:
    transport.add_observer(Node())
    transport.handle_receive_message()
    print(Node.got == list(enumerate(sizes)))
group.leave()
"""
    words = ["mpirun", "-np", "2", sys.executable, "-W", "ignore", "-c", code]
    piecewise = {"MPIR_CVAR_CH4_CMA_ENABLE": "0"}  # as over a network, where tensors take their time
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ | piecewise)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
