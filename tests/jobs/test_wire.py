"""What leaves a rank and what leaves the machine: private tensors never do, and nothing goes beyond the machine."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.support import ROOT, command, directory, run, summary

SHORT = ("--rounds", "2", "--epochs", "1")
WIRE_BLOCK = 8  # floats


TAP = """
import pickle

class Tap:
    def __init__(self, comm):
        self.comm, self.file = comm, open("{folder}/rank" + str(comm.rank), "wb", buffering=0)

    def __getattr__(self, name):
        found = getattr(self.comm, name)
        if not callable(found):
            return found
        def call(*args, **kwargs):
            for argument in args if name != "Irecv" else ():  # its memory holds what was there before
                raw = argument.tobytes() if hasattr(argument, "tobytes") else pickle.dumps(argument)
                self.file.write(raw)
            return found(*args, **kwargs)
        return call

joined = process.start
def tapped():
    group = joined()
    return group._replace(comm=Tap(group.comm))
process.start = tapped
"""
"""Keeps a copy of every argument that a rank hands to its MPI communicator, but for the memory to receive in."""


class Wire:
    """All bytes sent, indexed by each pair of floats in them, whatever their alignment."""

    def __init__(self, sent: bytes) -> None:
        self.sent, pairs = sent, []
        for offset in range(4):
            words = np.frombuffer(sent, "<u4", (len(sent) - offset) // 4, offset).astype(np.uint64)
            pairs.append(words[:-1] | words[1:] << np.uint64(32))
        self.pairs = np.unique(np.concatenate(pairs))

    def carried(self, tensor: np.ndarray) -> bool:
        """Whether a block of ``tensor`` was sent. Every 64 consecutive bytes of it hold a whole block."""
        blocks = np.ascontiguousarray(tensor.ravel()[: tensor.size // WIRE_BLOCK * WIRE_BLOCK]).reshape(-1, WIRE_BLOCK)
        blocks = blocks[blocks.any(axis=1)]
        first = np.ascontiguousarray(blocks[:, :2]).view("<u8").ravel()
        at = np.searchsorted(self.pairs, first).clip(max=len(self.pairs) - 1)
        return any(block.tobytes() in self.sent for block in blocks[self.pairs[at] == first])


# Not in one job: on its own, a client trains its first round as it does under FedPer, which sends the outcome.
@pytest.mark.parametrize(
    "algo",
    [
        "pfedpara",
        *(pytest.param(algo, marks=pytest.mark.slow) for algo in ("fedper", "pfedme", "local", "fedrep", "ditto")),
    ],
)
def test_private_tensors_never_reach_the_wire(tmp_path: Path, algo: str) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    options = ("--algo", algo, *SHORT, "--clients-per-round", "3", "--checkpoint-every", "1", "--out", str(tmp_path))
    done = run(*options, ranks=2, before=TAP.format(folder=sent))
    assert done.returncode == 0, done.stderr
    wire = Wire(b"".join(path.read_bytes() for path in sorted(sent.iterdir())))
    first, last = sorted((directory(tmp_path, algo) / "checkpoint").iterdir())
    # What is shared does travel, so the search would find what is not.
    assert all(wire.carried(tensor) for tensor in load_file(first / "shared.safetensors").values())
    states = [*first.glob("client-*.safetensors"), *last.glob("client-*.safetensors")]
    assert len(states) > 5
    for path in states:
        for name, tensor in load_file(path).items():
            if algo in ("pfedme", "ditto") and name == "hidden.weight":
                continue  # a unit that never fired keeps the weights that came
            assert not wire.carried(tensor), f"{algo}, {path.parent.name}, {path.name}: {name}"


# The network


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_one_round_connects_to_nothing_beyond_the_machine(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    options = ("--algo", "fedavg", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path))
    traced = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg",
        "-o",
        str(trace),
        *command(*options, ranks=3),
    ]
    done = subprocess.run(traced, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "fedavg")["rounds"] == 1
    own = {address.address.partition("%")[0] for each in psutil.net_if_addrs().values() for address in each}
    reached = set(re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', trace.read_text()))
    assert reached <= own, f"reached {reached - own}"


@pytest.mark.skipif(subprocess.run(["unshare", "-rn", "true"]).returncode != 0, reason="needs network namespaces")
@pytest.mark.slow
def test_a_job_needs_no_network(tmp_path: Path) -> None:
    options = ("--algo", "pfedpara", "--rounds", "1", "--epochs", "1", "--out", str(tmp_path))
    cut_off = ["unshare", "-rn", *command(*options, ranks=3)]
    done = subprocess.run(cut_off, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path, "pfedpara")["rounds"] == 1
