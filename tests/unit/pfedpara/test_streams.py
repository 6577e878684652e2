"""Every stream has a purpose and keys of its own, and no two are equal."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedpara.streams import MERSENNE_BYTES, stream_seed, stream_state
from tests.support import ROOT

KEY = st.one_of(st.integers(0, 3), st.integers(0, 2**70))
STREAMS = st.lists(
    st.tuples(st.sampled_from(["training", "split", "training,1", '1"', ""]) | st.text(max_size=3), st.lists(KEY)),
    min_size=2,
    max_size=30,
    unique_by=lambda stream: (stream[0], tuple(stream[1])),
)


def drawn_by_torch(purpose: str, *keys: int) -> tuple[int, ...]:
    torch.set_rng_state(stream_state(purpose, *keys))
    return tuple(torch.empty(4, dtype=torch.int32).random_().tolist())


@given(STREAMS)
def test_no_two_purposes_and_keys_share_a_stream(streams: list[tuple[str, list[int]]]) -> None:
    seeds = [stream_seed(purpose, *keys) for purpose, keys in streams]
    assert len(set(seeds)) == len(streams)
    assert len({tuple(np.random.default_rng(seed).integers(2**62, size=4)) for seed in seeds}) == len(streams)
    assert len({drawn_by_torch(purpose, *keys) for purpose, keys in streams}) == len(streams)


def test_many_clients_and_rounds_share_no_stream() -> None:
    keys = [(purpose, 0, c, t) for purpose in ("training", "faults") for c in range(1000) for t in range(100)]
    keys += [("training", 0, t) for t in range(1000)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)


def test_keys_of_another_length_make_another_stream() -> None:
    """NumPy's seed sequences of (s, n) and of (s, n, 0) are equal: a participant's draw was a client's first round."""
    assert np.random.SeedSequence((4, 2)).generate_state(1) == np.random.SeedSequence((4, 2, 0)).generate_state(1)
    assert len({stream_seed("a", *keys) for keys in [(), (0,), (4,), (4, 2), (42,), (4, 2, 0), (0, 4, 2)]}) == 7


def test_torch_has_all_bits_of_a_stream() -> None:
    """Of a seed torch takes 32 bits, which are equal for these two clients and rounds, the first such pair."""
    first, second = (580, 7), (521, 109)
    first_seed, second_seed = (stream_seed("training", 0, *key) & 0xFFFFFFFF for key in (first, second))
    assert first_seed == second_seed
    assert drawn_by_torch("training", 0, *first) != drawn_by_torch("training", 0, *second)


def test_torch_draws_what_a_mersenne_twister_with_these_words_does() -> None:
    state = stream_state("training", 0, 1, 2)
    twister = np.random.MT19937()
    words = state.numpy()[MERSENNE_BYTES].view(np.uint64).astype(np.uint32)
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    torch.set_rng_state(state)
    drawn = torch.empty(2000, dtype=torch.int32).random_().numpy()
    assert (drawn == twister.random_raw(2000) & 0x7FFFFFFF).all()
    assert abs(torch.randn(10000).mean()) < 0.05


def test_a_stream_is_the_same_on_every_machine() -> None:
    assert stream_seed("training", 0, 1, 2) == 99923658000952773796268597085322735534
    assert drawn_by_torch("training", 0, 1, 2) == (52424497, 1821257451, 532394181, 1891072741)


def test_what_is_no_whole_number_is_no_key() -> None:
    assert stream_seed("a", np.int64(3)) == stream_seed("a", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        stream_seed("a", 3.0)  # type: ignore[arg-type]


def test_partitions_need_no_torch() -> None:
    code = "import sys, data_partitions.build; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
