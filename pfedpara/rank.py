"""From γ to a rank, and from a rank to a number of parameters.

A weight is factored as a matrix of shape (m, n) or, for a convolution, as a tensor of shape (O, I, k1, k2); here
``shape`` is one or the other, and its length says which. One inner product of rank r has

    matrix:  W = X Yᵀ             X (m, r)   Y (n, r)                        r (m + n)
    tensor:  W = T ×₁ X ×₂ Y      T (r, r, k1, k2)   X (O, r)   Y (I, r)     r (O + I) + r² k1 k2

parameters, and FedPara's W = W1 ⊙ W2 two of them (Hyeon-Woo, Ye-Bin, Oh: "FedPara: Low-Rank Hadamard Product for
Communication-Efficient Federated Learning", ICLR 2022, Propositions 1 and 3).
"""

import math


def inner_parameters(shape: tuple[int, ...], rank: int) -> int:
    """Number of parameters of one inner product of the given rank; raises ValueError where the rank is < 1."""
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    return rank * (shape[0] + shape[1]) + rank * rank * _core(shape)


def maximal_rank(shape: tuple[int, ...], rank: int, products: int) -> int:
    """Bound on the rank of the composed matrix, for a tensor on that of its unfoldings: min(r^products, m, n).

    ``products`` is 2 for FedPara, rank(W1 ⊙ W2) ≤ r² (Proposition 1), and 1 for the conventional W1 alone.
    """
    return min(rank**products, shape[0], shape[1])


def fedpara_rank(shape: tuple[int, ...], gamma: float) -> int | None:
    """Rank r = (1 − γ) r_min + γ r_max of FedPara's factors, to the nearest integer; None where a layer stays dense.

    r_min = ⌈√min(m, n)⌉ is the least rank that can reach full rank (Corollary 1); r_max, a real number, is where the
    factors have as many parameters as the dense weight. With r_max real, VGG16 has the 1.55 M (γ = 0.1) and 4.53 M
    (γ = 0.4) parameters that the paper reports. The rank is at most the largest at which the factors have fewer
    parameters than the weight, also in a small layer with r_max < r_min; where that is 0 the layer stays dense.

    Raises ValueError where γ is not within [0, 1].
    """
    check_gamma(gamma)
    smallest, largest = math.isqrt(min(shape[:2]) - 1) + 1, _rank_with(shape, math.prod(shape) / 2)
    return min(math.floor((1 - gamma) * smallest + gamma * largest + 0.5), math.ceil(largest) - 1) or None


def lowrank_rank(shape: tuple[int, ...], gamma: float) -> int | None:
    """Rank of the conventional W1 alone with as many parameters as FedPara at γ, or as near below as there is.

    2r for a matrix. None where FedPara leaves the layer dense. Raises ValueError where γ is not within [0, 1].
    """
    rank = fedpara_rank(shape, gamma)
    return None if rank is None else math.floor(_rank_with(shape, 2 * inner_parameters(shape, rank)))


def fedsa_rank(shape: tuple[int, ...], gamma: float) -> int | None:
    """Rank of X Yᵀ whose shared part, Y and a kernel's T, has as many parameters as pFedPara's at γ, or just below.

    r (m + n) / n for a matrix, and at most the full rank. None where FedPara leaves the layer dense. Raises ValueError
    where γ is not within [0, 1].
    """
    if (rank := fedpara_rank(shape, gamma)) is None:
        return None
    shared = _rank_with((0, *shape[1:]), inner_parameters(shape, rank))
    return max(1, min(math.floor(shared), *shape[:2]))


def check_gamma(gamma: float) -> None:
    """Raises ValueError where γ is not within [0, 1] (NaN is not)."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it must be within [0, 1]")


def _core(shape: tuple[int, ...]) -> int:
    """k1 k2 for a tensor; 0 for a matrix, which has no core T."""
    return math.prod(shape[2:]) if len(shape) > 2 else 0


def _rank_with(shape: tuple[int, ...], parameters: float) -> float:
    """The real r ≥ 0 at which one inner product has that many parameters: r (m + n) + r² k1 k2 = parameters."""
    sides, core = shape[0] + shape[1], _core(shape)
    # Rationalised root: exact for core = 0, and for whole ranks the square root is exact (up to 2⁵³).
    return 2 * parameters / (sides + math.sqrt(sides * sides + 4 * core * parameters))
