"""Layers that know that their weights are factored, where that is worth more than a composed weight.

``FactoredLinear`` can apply W to a small batch without ever building it; ``FactoredLSTM`` composes each weight once a
call. Neither holds any state: ``parameterize`` makes one of an ``nn.Linear`` or ``nn.LSTM`` by changing its class, and
``reconstruct`` changes it back.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from pfedpara.hadamard import Composition


def khatri_rao(x: Tensor, X1: Tensor, Y1: Tensor, X2: Tensor, Y2: Tensor) -> Tensor:
    """x Wᵀ for W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ) without W: x (B, n), X (m, r), Y (n, r) to (B, m).

    The rows of W are products of two: W = (X1 ⊛ X2)(Y1 ⊛ Y2)ᵀ with row-wise Khatri-Rao products of r² columns, hence
    (W x)_i = Σ_jk X1_ij X2_ik M_jk with M = Y1ᵀ diag(x) Y2. It costs 2 B r² (m + n) operations against W's 4 m n r.
    X1, Y1 may have another rank than X2, Y2. Intermediate results have B r (m + n) numbers or, by the Khatri-Rao
    products themselves, r² (m + n).
    """
    m, B, r2 = len(X1), len(x), Y2.shape[1]
    if 2 * r2 < 3 * B:  # building a product costs fewer passes than diag(x) Y2 and what follows from it
        return x @ _products_of_rows(Y1, Y2) @ _products_of_rows(X1, X2).T
    Z = (x.T.unsqueeze(2) * Y2.unsqueeze(1)).reshape(len(Y2), B * r2)  # (n, B r2), diag(x) Y2 side by side
    M = Y1.T @ Z  # (r1, B r2)
    return ((X1 @ M).view(m, B, r2) * X2.unsqueeze(1)).sum(2).T  # (B, m)


def _products_of_rows(A: Tensor, B: Tensor) -> Tensor:
    """The row-wise Khatri-Rao product A ⊛ B of (n, r1) and (n, r2), (n, r1 r2)."""
    return (A.unsqueeze(2) * B.unsqueeze(1)).flatten(1)


def khatri_rao_is_cheaper(batch: int, m: int, n: int, rank: int) -> bool:
    """Whether training on ``batch`` rows is quicker by ``khatri_rao`` than by composing the weight.

    Compares products of matrices, 3 B r² (m + n) against 6 m n r + 3 B m n multiplications forward and backward, each
    with the passes over its intermediate results; their weights, 16 and 8 in units of r, are fitted to times measured
    on one core, chiefly of 256×784. A function of shapes alone, so that every process takes the same path.
    """
    passes = 16 * min(batch, 1.5 * rank)
    return rank * (m + n) * (batch * rank + passes) < m * n * (2 * (rank + 8) + batch)


class FactoredLinear(nn.Linear):
    """nn.Linear that trains on small batches by ``khatri_rao``.

    Without gradients, or inside ``torch.nn.utils.parametrize.cached()``, which composes once for several calls, it
    uses the composed weight; likewise where another parametrization, such as a spectral norm, acts on that weight.
    """

    def forward(self, input: Tensor) -> Tensor:
        originals = self.parametrizations["weight"]  # type: ignore[index]
        composition = cast(Composition, originals[0])
        batch = math.prod(input.shape[:-1])
        if (
            not torch.is_grad_enabled()
            or parametrize._cache_enabled
            or len(originals) > 1
            or composition.tanh
            or composition.inner_products == 1
            or not khatri_rao_is_cheaper(batch, self.out_features, self.in_features, composition.rank)
        ):
            return super().forward(input)
        (X1, Y1), (X2, Y2) = composition.products([getattr(originals, f"original{i}") for i in range(4)])
        if composition.method == "pfedpara":
            X2, Y2 = pad(X2, (0, 1), value=1.0), pad(Y2, (0, 1), value=1.0)  # W2 + 1, a product of rank r + 1
        output = khatri_rao(input.reshape(batch, self.in_features), X1, Y1, X2, Y2)  # (B, m)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*input.shape[:-1], self.out_features)


class FactoredLSTM(nn.LSTM):
    """nn.LSTM that composes each of its weights once per call, for all time steps, and keeps none of them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with parametrize.cached():
            return super().forward(*args, **kwargs)

    # torch stores the weights that it looked up last. Composed ones would be out of date once the factors change, and
    # hold a graph, which deepcopy refuses; so they are looked up afresh.
    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        pass


FACTORED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FactoredLinear, nn.LSTM: FactoredLSTM}
