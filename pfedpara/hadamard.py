"""A weight as a product of factors: FedPara, pFedPara and the conventional low-rank product, as torch parametrizations.

                 n                r                                     r
              ┌─────┐           ┌───┐     n                           ┌───┐     n
    matrix  m │  W  │  =  (   m │X1 │ ·  ┌──────┐        )  ⊙  (    m │X2 │ ·  ┌──────┐        )
              └─────┘           └───┘  r │ Y1ᵀ  │                     └───┘  r │ Y2ᵀ  │
                                         └──────┘                              └──────┘

    tensor  W (O, I, k1, k2)  =  (T1 ×₁ X1 ×₂ Y1)  ⊙  (T2 ×₁ X2 ×₂ Y2)        T (r, r, k1, k2)   X (O, r)   Y (I, r)

    fedpara   W = W1 ⊙ W2          every factor is shared
    pfedpara  W = W1 ⊙ (W2 + 1)    the factors of W1 are shared, those of W2 are private: W1 is what the clients have in
                                   common, W1 ⊙ W2 what is the client's own
    lowrank   W = W1               the conventional product that FedPara is compared with
    fedsa     W = W1               X1 (m, r) is private, Y1, and T1 of a kernel, are shared: what both a client's inputs
                                   pass first (Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated
                                   Learning", ICLR 2025; there beside frozen weights)

pFedPara's private half may also be added, ``additive``: W = W1 + D with a dense private D (m, n), or W = W1 + X2 Y2ᵀ.

Hyeon-Woo, Ye-Bin, Oh: "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", ICLR 2022
(Propositions 1 and 3). Originals are kept in the order X1, Y1, X2, Y2 or T1, X1, Y1, T2, X2, Y2.

Nothing scales the products. Constants that would hold a step of SGD on the factors to the length of a dense one were
tried: no run diverged even without clipping, but clients' own halves then learn too slowly; with ten clients on 5,000
MNIST digits (dirichlet:0.5, 20 rounds) personalized accuracy was at most 0.904 at learning rates from 0.03 to 2,
against 0.93 as it is here. Clipping the gradient's norm holds the steps instead (``clip_norm`` of every trainer).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

IN_PLACE_FROM = 1 << 20  # numbers in a weight: the matrices of a smaller one stay in cache, and autograd is quicker

Method = Literal["pfedpara", "fedpara", "lowrank", "fedsa"]
Additive = bool | Literal["lowrank"]
"""Whether pFedPara's private half is added: a dense matrix, or one of low rank."""


def as_matrices(*factors: Tensor) -> tuple[Tensor, Tensor]:
    """An inner product as one of two matrices: X (m, r) and Yᵀ (r, n), or X (O, r) and T ×₂ Y (r, I k1 k2)."""
    if len(factors) == 2:
        X, Y = factors
        return X, Y.mT
    T, X, Y = factors
    # Y before X: the large product then is one matrix product that leaves W in its own memory layout.
    return X, (Y @ T.flatten(2)).flatten(1)


def inner_product(*factors: Tensor) -> Tensor:
    """X Yᵀ of X (m, r), Y (n, r), or T ×₁ X ×₂ Y of T (r, r, k1, k2), X (O, r), Y (I, r)."""
    X, Z = as_matrices(*factors)
    return (X @ Z).view(len(X), len(factors[-1]), *factors[0].shape[2:])


class HadamardProduct(torch.autograd.Function):
    """W = (X1 Z1) ⊙ W2 with W2 = X2 Z2 + shift, for X (m, r), Z (r, n).

    The plain expression in autograd keeps W1 = X1 Z1 beside W and W2, and spends much of its time on fresh memory for
    matrices of m × n. This one works in place and, backward, in panels of rows that stay in cache. With G (m, n) the
    gradient in W,

        A = G ⊙ W2,  dX1 = A Z1ᵀ,  dZ1 = X1ᵀ A,      W1 = W / W2,  B = G ⊙ W1,  dX2 = B Z2ᵀ,  dZ2 = X2ᵀ B;

    the division is exact to two roundings unless W2 has a zero, where W1 is multiplied again. (Multiplying W2 again too
    would keep no more than W, and cost 15–25 % more time.) Differentiable twice, by the plain formulas.
    """

    @staticmethod
    def forward(ctx: Any, X1: Tensor, Z1: Tensor, X2: Tensor, Z2: Tensor, shift: float) -> Tensor:
        W2 = X2 @ Z2
        if shift:
            W2 += shift
        W = (X1 @ Z1).mul_(W2)
        ctx.save_for_backward(X1, Z1, X2, Z2, W, W2)
        ctx.shift = shift
        return W

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (G,) = gradients
        X1, Z1, X2, Z2, W, W2 = ctx.saved_tensors
        if torch.is_grad_enabled():
            A, B = G * (X2 @ Z2 + ctx.shift), G * (X1 @ Z1)
            return A @ Z1.mT, X1.mT @ A, B @ Z2.mT, X2.mT @ B, None
        m, n = W.shape
        # Transposed, as (r, m): the matrix library is up to twice as quick in writing a product this way round.
        dX1, dX2 = Z1.new_empty(len(Z1), m), Z2.new_empty(len(Z2), m)
        dZ1, dZ2 = Z1.new_empty(Z1.shape), Z2.new_empty(Z2.shape)
        # Equal panels of up to 2 MB in float32, but of no fewer rows than the rank: thin products are slow.
        height = math.ceil(m / math.ceil(m / max(len(Z1), (1 << 19) // n)))
        memory = G.new_empty(height, n)
        for start in range(0, m, height):
            rows = slice(start, min(start + height, m))
            panel, beta = memory[: rows.stop - start], float(start > 0)  # β = 0 for the first term of a sum
            A = torch.mul(G[rows], W2[rows], out=panel)
            torch.mm(Z1, A.mT, out=dX1[:, rows])
            dZ1.addmm_(X1[rows].mT, A, beta=beta)
            B = torch.div(W[rows], W2[rows], out=panel).mul_(G[rows])
            if not B.sum().isfinite():
                B = torch.mm(X1[rows], Z1, out=panel).mul_(G[rows])
            torch.mm(Z2, B.mT, out=dX2[:, rows])
            dZ2.addmm_(X2[rows].mT, B, beta=beta)
        return dX1.mT, dZ1, dX2.mT, dZ2, None


def _plain_autograd(factor: Tensor) -> bool:
    """Whether the plain expression is to be used: in other hands than eager reverse-mode autograd in full precision.

    Also on a GPU, for which nothing was measured.
    """
    return (
        factor.device.type != "cpu"
        or factor.dtype not in (torch.float32, torch.float64)
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()  # vmap, grad and jvp of torch.func
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
    )


class Composition(nn.Module):
    """Composes a weight from its factors; what ``torch.nn.utils.parametrize`` registers on a layer.

    ``shape`` is (m, n) or (O, I, k1, k2), and ``weight_shape`` that of the weight itself, for a kernel factored as a
    matrix. ``tanh`` composes tanh(W1) and tanh(W2), the paper's non-linearity of the inner products. ``additive`` is
    for pFedPara: a dense D is kept as (m, n), or (O, I k1 k2).
    """

    def __init__(
        self,
        method: Method,
        shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        rank: int,
        tanh: bool,
        additive: Additive = False,
    ) -> None:
        super().__init__()
        self.additive, self.with_dense = additive, additive is True
        self.method, self.shape, self.weight_shape, self.rank, self.tanh = method, shape, weight_shape, rank, tanh
        self.inner_products = 1 if method in ("lowrank", "fedsa") or self.with_dense else 2

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all factors, in the order of the originals."""
        rank, (rows, columns, *kernel) = self.rank, self.shape
        core = [(rank, rank, *kernel)] if kernel else []
        private = [(rows, math.prod(self.shape[1:]))] if self.with_dense else []
        return self.inner_products * [*core, (rows, rank), (columns, rank)] + private

    @property
    def private_originals(self) -> tuple[str, ...]:
        """Names of the originals that never leave the client: pFedPara's second half, FedSA's X, none otherwise."""
        count = len(self.factor_shapes)
        if self.method == "fedsa":
            return (f"original{count - 2}",)
        first = count - 1 if self.with_dense else count // 2
        return tuple(f"original{i}" for i in range(first, count)) if self.method == "pfedpara" else ()

    def products(self, factors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The factors of each inner product."""
        if self.with_dense:
            return [factors[:-1]]
        count = len(factors) // self.inner_products
        return [factors[i : i + count] for i in range(0, len(factors), count)]

    def forward(self, *factors: Tensor) -> Tensor:
        """The weight, of shape ``weight_shape``."""
        shift = 1.0 if self.method == "pfedpara" else 0.0
        pairs = [as_matrices(*product) for product in self.products(factors)]
        large = math.prod(self.shape) >= IN_PLACE_FROM
        if len(pairs) == 2 and large and not self.tanh and not self.additive and not _plain_autograd(factors[0]):
            return HadamardProduct.apply(*pairs[0], *pairs[1], shift).view(self.weight_shape)
        W = [X @ Z for X, Z in pairs]  # each (m, n) or (O, I k1 k2)
        if self.tanh:
            W = [inner.tanh() for inner in W]
        if self.additive:
            W = [W[0] + (factors[-1] if self.with_dense else W[1])]
        if len(W) == 2:
            W = [W[0] * (W[1] + shift if shift else W[1])]
        return W[0].view(self.weight_shape)

    def extra_repr(self) -> str:
        kind = ", additive" * bool(self.additive) + ", tanh" * self.tanh
        return f"{self.method}, shape={self.shape}, rank={self.rank}{kind}"


def initial_factors(composition: Composition, weight: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
    """Random factors whose composed weight has the mean square of ``weight`` exactly, and its dtype and device.

    A layer thus starts as the dense layer it replaces would, however that one was initialised: as He et al. where that
    one was. The factors are drawn from N(0, 1) and brought to the size s at which the mean square is right; on a He
    layer of n inputs, in expectation, (r s⁴)² = 2/n for FedPara and r s⁴ = 2/n for the others. For pFedPara Y2 or D
    is 0, hence W = W1: every client, seen or not, starts at the same function. (X2 and Y2 both at 0 would be a saddle.)

    Rows of zeros, such as an embedding's padding, stay zero. Raises ValueError where the weight is all zero, or, with
    tanh, so large that no factors reach it.
    """
    target = weight.detach().double().square().mean().cpu()
    if not target > 0:
        raise ValueError("the weight is all zero; initialise it before it is factored")
    device = generator.device if generator else "cpu"
    factors = [
        torch.randn(shape, generator=generator, device=device).double().cpu() for shape in composition.factor_shapes
    ]
    order = len(factors)  # of the product that is W at the start
    if composition.method == "pfedpara":
        factors[-1].zero_()
        order = order - 1 if composition.with_dense else order // 2
    X1 = composition.products(factors)[0][-2]
    X1[weight.detach().flatten(1).abs().amax(1).cpu() == 0] = 0
    # The first step is exact for a product; tanh bends it, which a few more correct.
    for _ in range(50):
        ratio = float(target / composition(*factors).square().mean())
        if abs(ratio - 1) < 1e-9:
            return [factor.to(weight) for factor in factors]
        factors = [factor * ratio ** (0.5 / order) for factor in factors]
    raise ValueError(f"mean square {target:.3g} is out of reach of tanh; start the layer with smaller weights")
