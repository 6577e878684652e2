import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedpara.rank import fedpara_rank, inner_parameters, lowrank_rank, maximal_rank

sides = st.integers(1, 300)
shapes = st.one_of(st.tuples(sides, sides), st.tuples(sides, sides, st.integers(1, 5), st.integers(1, 5)))
gammas = st.floats(0, 1)


def test_table_1_of_the_paper() -> None:
    # m = n = O = I = 256, k = 3, r = 16; the conventional product at rank 2r.
    assert inner_parameters((256, 256), 32) == 2 * inner_parameters((256, 256), 16) == 16_384
    assert 2 * inner_parameters((256, 256 * 9), 16) == 81_920
    assert 2 * inner_parameters((256, 256, 3, 3), 16) == 20_992
    assert maximal_rank((256, 256), 32, 1) == 32
    assert maximal_rank((256, 256), 16, 2) == maximal_rank((256, 256, 3, 3), 16, 2) == 256


def test_ranks_by_hand() -> None:
    # 256×784: r_min = 16, r_max = 200,704 / 2,080 = 96.49; 10×256: r_min = 4, r_max = 2,560 / 532 = 4.81.
    assert [fedpara_rank((256, 784), gamma) for gamma in (0, 0.5, 1)] == [16, 56, 96]
    assert fedpara_rank((10, 256), 0.5) == 4
    assert lowrank_rank((256, 784), 0.5) == 112
    # r (16 + 16) + 9 r² = 1152 has the root 9.68, so r_max = 9; at γ = 0, r_min = 4.
    assert [fedpara_rank((16, 16, 3, 3), gamma) for gamma in (0, 1)] == [4, 9]


def test_small_layers() -> None:
    assert fedpara_rank((2, 2), 0.5) is None  # r_max = 4/8
    assert fedpara_rank((4, 4), 1.0) is None  # r_max = 1 has as many parameters as the dense weight, 16
    assert fedpara_rank((256, 256), 1.0) == 63  # r_max = 64 has as many
    assert fedpara_rank((5, 5), 0.0) == 1  # r_min = 3 > r_max = 1.25
    assert lowrank_rank((2, 2), 0.5) is None


@given(shapes, gammas)
def test_factors_have_fewer_parameters_and_the_rank_grows_with_gamma(shape: tuple[int, ...], gamma: float) -> None:
    rank, least = fedpara_rank(shape, gamma), fedpara_rank(shape, 0)
    if rank is None or least is None:
        assert rank is least is None
        assert 2 * inner_parameters(shape, 1) >= math.prod(shape)
        return
    assert least <= rank
    assert 2 * inner_parameters(shape, rank) < math.prod(shape)
    if 2 * inner_parameters(shape, math.isqrt(min(shape[:2]) - 1) + 1) < math.prod(shape):
        assert maximal_rank(shape, rank, 2) == min(shape[:2])  # Corollary 1, wherever r_min fits


@given(shapes, gammas)
def test_lowrank_takes_all_of_fedparas_budget_and_no_more(shape: tuple[int, ...], gamma: float) -> None:
    rank, fedpara = lowrank_rank(shape, gamma), fedpara_rank(shape, gamma)
    assert (rank is None) == (fedpara is None)
    if rank is not None and fedpara is not None:
        budget = 2 * inner_parameters(shape, fedpara)
        assert inner_parameters(shape, rank) <= budget < inner_parameters(shape, rank + 1)
        assert len(shape) == 4 or rank == 2 * fedpara


@pytest.mark.parametrize("gamma", [-0.1, 1.5, math.nan])
def test_gamma_outside_its_range(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"gamma is .*; it must be within \[0, 1\]"):
        fedpara_rank((256, 784), gamma)


def test_rank_below_one() -> None:
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        inner_parameters((4, 4), 0)
