import math
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfedpara import hadamard
from pfedpara.hadamard import IN_PLACE_FROM, Composition, Method, initial_factors, inner_product
from pfedpara.layers import khatri_rao, khatri_rao_is_cheaper

torch.set_num_threads(1)  # two threads and a busy neighbour are slower than one
METHODS = get_args(Method)
SHAPES = [(256, 784), (10, 256), (64, 32, 3, 3), (32, 64, 5, 5)]


@pytest.fixture(autouse=True, scope="module")
def in_place_from_the_first_number_on() -> Iterator[None]:
    """Small weights are enough to try what is for large ones; other tests take them as they come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hadamard, "IN_PLACE_FROM", 0)
        yield


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def composition(method: Method, shape: tuple[int, ...], rank: int, tanh: bool = False) -> Composition:
    return Composition(method, shape, shape, rank, tanh)


def test_products_by_hand() -> None:
    X1, Y1 = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    X2, Y2 = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [2.0], [-1.0]])
    W1, W2 = torch.tensor([[3.0, 4, 5], [6, 8, 10]]), torch.tensor([[1.0, 2, -1], [0, 0, 0]])
    composed = {}
    for method in METHODS:
        layer = composition(method, (2, 3), 1)
        composed[method] = layer(X1, Y1) if method in ("lowrank", "fedsa") else layer(X1, Y1, X2, Y2)
    torch.testing.assert_close(composed["lowrank"], W1)
    torch.testing.assert_close(composed["fedpara"], torch.tensor([[3.0, 8, -5], [0, 0, 0]]))
    torch.testing.assert_close(composed["pfedpara"], W1 * (W2 + 1))


@settings(max_examples=30)
@given(*[st.integers(1, 6)] * 5)
def test_tensor_product_is_the_mode_product(O: int, I: int, r: int, k1: int, k2: int) -> None:  # noqa: E741
    T, X, Y = draw(r, r, k1, k2), draw(O, r), draw(I, r)
    expected = torch.einsum("pqab,op,iq->oiab", T, X, Y)
    torch.testing.assert_close(inner_product(T, X, Y), expected)


@settings(max_examples=30)
@given(*[st.integers(1, 6)] * 5)
def test_khatri_rao_equals_the_composed_weight_with_equal_gradients(B: int, m: int, n: int, r1: int, r2: int) -> None:
    inputs = [t.requires_grad_() for t in (draw(B, n), draw(m, r1), draw(n, r1), draw(m, r2), draw(n, r2))]
    x, X1, Y1, X2, Y2 = inputs
    expected = x @ ((X1 @ Y1.T) * (X2 @ Y2.T)).T
    output = khatri_rao(*inputs)
    torch.testing.assert_close(output, expected)
    seed = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(output, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: Method, shape: tuple[int, ...], tanh: bool) -> None:
    layer = composition(method, shape, 2, tanh)
    factors = [draw(*s).requires_grad_() for s in layer.factor_shapes]
    assert torch.autograd.gradcheck(layer, factors)


@settings(max_examples=40)
@given(
    *[st.integers(1, 40)] * 2,
    st.integers(1, 6),
    st.sampled_from([(), (2, 3)]),
    st.sampled_from(["fedpara", "pfedpara"]),
)
def test_composing_equals_the_plain_expression_with_equal_gradients(
    m: int, n: int, r: int, kernel: tuple[int, ...], method: Method
) -> None:
    layer = composition(method, (m, n, *kernel), r)
    factors = [draw(*shape).requires_grad_() for shape in layer.factor_shapes]
    W1, W2 = (inner_product(*product) for product in layer.products(factors))
    expected = W1 * (W2 + 1 if method == "pfedpara" else W2)
    torch.testing.assert_close(layer(*factors), expected)
    seed = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(layer(*factors), factors, seed), torch.autograd.grad(expected, factors, seed)
    )


@pytest.mark.parametrize("method", ["fedpara", "pfedpara"])
@pytest.mark.parametrize("shape", [(256, 784), (700, 1100), (96, 64, 3, 3)])  # the second in two panels
def test_gradients_equal_the_plain_expression_in_float32(shape: tuple[int, ...], method: Method) -> None:
    torch.manual_seed(0)
    layer = composition(method, shape, 20)
    factors = [torch.randn(s).requires_grad_() for s in layer.factor_shapes]
    exact = [factor.detach().double().requires_grad_() for factor in factors]
    W1, W2 = (inner_product(*product) for product in layer.products(exact))
    expected, seed = W1 * (W2 + 1 if method == "pfedpara" else W2), torch.randn(shape)
    ours = torch.autograd.grad(layer(*factors), factors, seed)
    for a, b in zip(ours, torch.autograd.grad(expected, exact, seed.double()), strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-6


def test_zeros_in_the_second_product_do_not_reach_the_gradient() -> None:
    layer = composition("fedpara", (5, 4), 2)
    factors = [draw(*shape) for shape in layer.factor_shapes]
    factors[2][1] = 0  # a row of W2
    inputs = [factor.requires_grad_() for factor in factors]
    ours = torch.autograd.grad(layer(*inputs).sum(), inputs)
    X1, Y1, X2, Y2 = inputs
    torch.testing.assert_close(ours, torch.autograd.grad(((X1 @ Y1.T) * (X2 @ Y2.T)).sum(), inputs))
    assert ours[2][1].abs().min() > 0


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2, 2)])
@pytest.mark.parametrize("method", ["fedpara", "pfedpara"])
def test_second_and_forward_derivatives(method: Method, shape: tuple[int, ...]) -> None:
    layer = composition(method, shape, 2)
    factors = tuple(draw(*s).requires_grad_() for s in layer.factor_shapes)
    assert torch.autograd.gradgradcheck(layer, factors)
    tangents = tuple(torch.randn_like(factor) for factor in factors)
    value, tangent = torch.func.jvp(layer, factors, tangents)
    torch.testing.assert_close(value, layer(*factors))
    step = 1e-6
    moved = layer(*(factor + step * d for factor, d in zip(factors, tangents, strict=True)))
    torch.testing.assert_close(tangent, (moved - value) / step, rtol=1e-3, atol=1e-4)
    many = [torch.stack([factor, 2 * factor]) for factor in factors]
    torch.testing.assert_close(torch.func.vmap(layer)(*many)[1], layer(*(2 * factor for factor in factors)))


def test_the_backward_pass_keeps_two_matrices_of_the_weights_size() -> None:
    layer = composition("fedpara", (256, 784), 16)
    factors = [torch.randn(shape).requires_grad_() for shape in layer.factor_shapes]
    own, kept = {factor.untyped_storage().data_ptr() for factor in factors}, {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        W = layer(*factors)
    assert sum(kept.values()) == 2 * W.nbytes  # the plain expression: three with W itself


@pytest.mark.parametrize(("side", "in_place"), [(1023, False), (1024, True)])
def test_small_weights_are_left_to_autograd(side: int, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hadamard, "IN_PLACE_FROM", IN_PLACE_FROM)
    layer = composition("fedpara", (side, side), 2)
    W = layer(*(torch.randn(shape).requires_grad_() for shape in layer.factor_shapes))
    assert ("HadamardProduct" in W.grad_fn.next_functions[0][0].name()) == in_place


def test_small_batches_and_ranks_avoid_the_weight() -> None:
    assert khatri_rao_is_cheaper(10, 256, 784, 16)
    assert khatri_rao_is_cheaper(1, 256, 784, 56)
    assert not khatri_rao_is_cheaper(10, 256, 784, 56)
    assert khatri_rao_is_cheaper(32, 256, 784, 16)
    assert not khatri_rao_is_cheaper(128, 256, 784, 16)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_start_has_the_mean_square_of_the_dense_weight(shape: tuple[int, ...], method: Method, tanh: bool) -> None:
    weight = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
    layer = composition(method, shape, 4, tanh)
    composed = layer(*initial_factors(layer, weight))
    assert composed.square().mean().item() == pytest.approx(weight.square().mean().item(), rel=1e-4)
    assert abs(composed.mean().item()) < 0.2 * composed.std().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_pfedpara_starts_at_its_shared_half(shape: tuple[int, ...]) -> None:
    layer = composition("pfedpara", shape, 4)
    factors = initial_factors(layer, torch.randn(shape))
    half = len(factors) // 2
    torch.testing.assert_close(layer(*factors), inner_product(*layer.products(factors)[0]))
    other = [torch.randn_like(f) for f in factors[half:-1]]  # another client's private factors
    torch.testing.assert_close(layer(*factors), layer(*factors[:half], *other, factors[-1]))
    inputs = [f.requires_grad_() for f in factors]
    gradients = torch.autograd.grad(layer(*inputs).square().sum(), inputs)
    assert gradients[-1].abs().max() > 0  # no saddle: Y2 moves at once


def test_padding_rows_stay_zero() -> None:
    weight = torch.randn(6, 8)
    weight[2] = 0
    layer = composition("pfedpara", (6, 8), 2)
    assert layer(*initial_factors(layer, weight))[2].abs().max() == 0


def test_starts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="the weight is all zero"):
        initial_factors(composition("fedpara", (6, 8), 2), torch.zeros(6, 8))
    with pytest.raises(ValueError, match="out of reach of tanh"):
        initial_factors(composition("fedpara", (6, 8), 2, tanh=True), 10 * torch.randn(6, 8))


def test_start_follows_the_generator() -> None:
    layer, weight = composition("fedpara", (6, 8), 2), torch.randn(6, 8)
    first, again = (initial_factors(layer, weight, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("products", "expected"), [(2, 100), (1, 20)])
def test_the_papers_rank_experiment_in_small(products: int, expected: int) -> None:
    # 100×100, r = 10: the Hadamard product has full rank, the conventional one at as many parameters rank 20.
    torch.manual_seed(0)
    layer = composition("fedpara", (100, 100), 10) if products == 2 else composition("lowrank", (100, 100), 20)
    for _ in range(20):
        W = layer(*(draw(*shape) for shape in layer.factor_shapes))
        assert torch.linalg.matrix_rank(W).item() == expected
