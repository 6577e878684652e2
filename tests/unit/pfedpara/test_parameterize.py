import copy
import io
import math
import subprocess
import sys
from collections import OrderedDict
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from pfedpara.hadamard import Method
from pfedpara.jacobian import jacobian_corrected_step
from pfedpara.parameterize import format_summary, parameterize, reconstruct, split_parameters, summarize

torch.set_num_threads(1)
METHODS = get_args(Method)


class Net(nn.Module):
    """One layer of each kind: convolutions with groups, stride and dilation, an embedding, a deep two-way LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.conv = nn.Conv2d(8, 32, 2, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect")
        self.norm = nn.GroupNorm(4, 32)
        self.point = nn.Conv2d(32, 24, 1, bias=False)
        self.lstm = nn.LSTM(24, 16, num_layers=2, bidirectional=True, batch_first=True, proj_size=12)
        self.head = nn.Linear(24, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).unflatten(1, (8, 16))  # (B, 8, 16, 16)
        x = self.point(self.norm(self.conv(x)).relu()).flatten(2).mT  # (B, T, 24)
        return self.head(self.lstm(x)[0][:, -1])  # (B, 20)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(30, (3, 128))


def net(method: Method = "pfedpara", **options: object) -> nn.Module:
    torch.manual_seed(1)
    return parameterize(Net(), method, 0.5, **options)


def outputs_and_gradients(model: nn.Module, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    output = model(ids)
    return output, list(torch.autograd.grad(output.square().sum(), list(model.parameters())))


def assert_same(model: nn.Module, other: nn.Module, ids: Tensor) -> None:
    for ours, theirs in zip(outputs_and_gradients(model, ids), outputs_and_gradients(other, ids), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("kernel", ["tensor", "matrix"])
@pytest.mark.parametrize("method", METHODS)
def test_reconstruct_gives_the_plain_model_with_equal_outputs(method: Method, kernel: str, tanh: bool) -> None:
    plain, tokens = Net(), torch.randint(30, (3, 128))
    for parameter in plain.parameters():
        parameter.data.clamp_(-0.3, 0.3)  # within reach of tanh
    model = parameterize(copy.deepcopy(plain), method, 0.5, kernel=kernel, tanh=tanh)
    factored = {row.name for row in summarize(model) if row.rank}
    kinds = ["embedding.weight", "conv.weight", "point.weight", "head.weight"]
    lstm = [
        f"lstm.weight_{kind}_l{layer}{way}" for kind in ("ih", "hh") for layer in (0, 1) for way in ("", "_reverse")
    ]
    assert factored >= {*kinds, *lstm}
    with torch.no_grad():
        expected = model(tokens)
    reconstruct(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected)
    copy.deepcopy(model)


def test_the_papers_two_layer_model() -> None:
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    rows = summarize(parameterize(mlp, "pfedpara", 0.5))
    assert [row.rank for row in rows if row.rank] == [56, 4]
    shared, private = split_parameters(mlp)
    assert sum(p.numel() for p in shared.values()) == 59_304 + 266
    assert sum(p.numel() for p in private.values()) == 59_304
    assert sum(row.dense for row in rows) == 203_530


def test_summary_of_a_convolution() -> None:
    model = parameterize(nn.Sequential(OrderedDict(conv=nn.Conv2d(256, 256, 3))), "pfedpara", 0.0)
    (bias, weight) = summarize(model)
    assert weight == ("conv.weight", (256, 256, 3, 3), 16, 256, 589_824, 20_992, 10_496, 10_496)
    assert bias == ("conv.bias", (256,), None, 1, 256, 256, 256, 0)
    assert format_summary([bias, weight]).splitlines()[-1].split() == ["total", "590,080", "21,248", "10,752", "10,496"]


def test_kernels_with_few_inputs_are_matrices() -> None:
    ranks = {}
    for layer in (nn.Conv2d(1, 32, 5), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3)):
        weight = summarize(parameterize(layer, "fedpara", 0.0))[1]
        ranks[weight.shape] = (weight.rank, weight.maximal_rank, weight.factored)
    assert ranks == {
        (32, 1, 5, 5): (5, 25, 2 * 5 * (32 + 25)),
        (64, 1, 3, 3): (3, 9, 2 * 3 * (64 + 9)),
        (64, 64, 1, 1): (8, 64, 2 * 8 * 128),
        (64, 64, 3, 3): (8, 64, 2 * 8 * (128 + 8 * 9)),
    }


@pytest.mark.parametrize("method", METHODS)
def test_pfedpara_and_fedsa_alone_have_private_tensors_and_the_summary_counts_them(method: Method) -> None:
    model = net(method)
    shared, private = split_parameters(model)
    assert bool(private) == (method in ("pfedpara", "fedsa"))
    rows = summarize(model)
    assert sum(row.shared for row in rows) == sum(p.numel() for p in shared.values())
    assert sum(row.private for row in rows) == sum(p.numel() for p in private.values())
    assert "lstm.bias_ih_l0" in shared
    assert "norm.weight" in shared


def test_every_client_starts_at_the_same_function(ids: Tensor) -> None:
    model = net()
    other = copy.deepcopy(model)
    parameterize(donor := Net(), "pfedpara", 0.5)
    with torch.no_grad():
        for mine, theirs in zip(split_parameters(other)[1].values(), split_parameters(donor)[1].values(), strict=True):
            mine.copy_(theirs)
        torch.testing.assert_close(model(ids), other(ids))


@pytest.mark.parametrize("method", METHODS)
def test_copies(method: Method, ids: Tensor) -> None:
    model = net(method)
    model(ids)  # what a call leaves behind must not be in the way
    assert_same(model, copy.deepcopy(model), ids)

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = parameterize(Net(), method, 0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(model, other, ids)

    double = copy.deepcopy(model).to(torch.float64)
    copy.deepcopy(double)
    torch.testing.assert_close(double(ids), model(ids).double(), rtol=1e-3, atol=1e-5)


def test_functional_call_and_gradients_of_functions(ids: Tensor) -> None:
    model = net()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    zeros = {name: torch.zeros_like(p) for name, p in parameters.items()}
    torch.testing.assert_close(torch.func.functional_call(model, parameters, (ids,)), model(ids))
    assert torch.func.functional_call(model, zeros, (ids,)).abs().max() == 0
    gradients = torch.func.grad(lambda p: torch.func.functional_call(model, p, (ids,)).square().sum())(parameters)
    for ours, theirs in zip(gradients.values(), outputs_and_gradients(model, ids)[1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_update_in_place_is_never_missed(ids: Tensor) -> None:
    model = net()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for p in model.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    before = model(ids)
    flat.mul_(1.5)
    with torch.no_grad():
        assert (model(ids) - before).abs().max() > 1e-3
    torch.testing.assert_close(reconstruct(copy.deepcopy(model))(ids), model(ids))


def test_cached_composes_once_with_equal_gradients(ids: Tensor) -> None:
    model = net()
    _, expected = outputs_and_gradients(model, ids)
    with parametrize.cached():
        _, gradients = outputs_and_gradients(model, ids)
        assert model.head.weight is model.head.weight
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("method", ["fedpara", "pfedpara"])
def test_a_small_batch_takes_the_khatri_rao_path_with_equal_gradients(method: Method) -> None:
    torch.manual_seed(0)
    layer = parameterize(nn.Sequential(nn.Linear(96, 64)), method, 0.1)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 1, 96)
    calls: list[str] = []
    layer[0].parametrizations.weight.register_forward_hook(lambda *_: calls.append("composed"))
    output, gradients = outputs_and_gradients(layer, x)
    assert not calls
    with parametrize.cached():
        expected, expected_gradients = outputs_and_gradients(layer, x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-4)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight


@pytest.mark.parametrize("method", METHODS)
def test_a_later_parametrization_acts_on_the_composed_weight(method: Method) -> None:
    torch.manual_seed(0)
    layer = parameterize(nn.Linear(96, 64), method, 0.1)
    plain = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Scale())
    parametrize.register_parametrization(layer, "bias", Scale())
    x = torch.randn(2, 96)
    output = layer(x)
    torch.testing.assert_close(output, 3 * (x @ plain.T + layer.parametrizations.bias.original))
    (slope,) = torch.autograd.grad(output.sum(), layer.parametrizations.weight[1].factor)
    torch.testing.assert_close(slope, (x @ plain.T).sum())
    torch.testing.assert_close(reconstruct(copy.deepcopy(layer))(x), output)
    nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=100).eval()
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight, 2), torch.tensor(1.0), rtol=0.01, atol=0)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointed_layers_keep_factors_alone_with_equal_gradients(method: Method, ids: Tensor) -> None:
    model, again = net(method), net(method)
    for layer in (again.conv, again.point, again.lstm, again.head):
        plain = layer.forward
        layer.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)
    assert_same(model, again, ids)
    linear, x = again.head, torch.randn(300, 24, requires_grad=True)
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *linear.parameters())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(x)
    kept = [tensor for tensor in kept if tensor.numel()]  # torch 2.4 keeps an empty one of its own
    assert kept
    assert all(tensor.untyped_storage().data_ptr() in own for tensor in kept)


def test_an_lstm_composes_each_weight_once_a_call() -> None:
    lstm = parameterize(nn.LSTM(24, 16, num_layers=2), "fedpara", 0.5)
    calls: list[nn.Module] = []
    for originals in lstm.parametrizations.values():
        originals.register_forward_hook(lambda module, *_: calls.append(module))
    for _ in range(2):
        calls.clear()
        lstm(torch.randn(7, 3, 24))
        assert len(calls) == len(set(calls)) == 4


def test_an_empty_batch() -> None:
    assert parameterize(nn.Linear(96, 64))(torch.empty(0, 96)).shape == (0, 64)


@pytest.mark.slow
def test_compiled(ids: Tensor) -> None:
    model = net()
    torch.testing.assert_close(torch.compile(model)(ids), model(ids))


def test_layers_left_dense(ids: Tensor) -> None:
    model = net(dense=["lstm", "head"])
    assert {row.name.split(".")[0] for row in summarize(model) if row.rank} == {"embedding", "conv", "point"}
    model(ids)
    tiny = parameterize(nn.Sequential(nn.Linear(3, 2)), "pfedpara", 0.5)
    assert [row.rank for row in summarize(tiny)] == [None, None]


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    plain = nn.Linear(40, 30)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again = (
        parameterize(copy.deepcopy(plain), "fedpara", generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_stays_zero_in_training(ids: Tensor) -> None:
    model = net()
    for _ in range(2):
        _, gradients = outputs_and_gradients(model, ids * (ids > 10))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(0.1 * g)
    assert model.embedding.weight[0].abs().max() == 0


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Linear(9, 9), {"gamma": 1.1}, r"gamma is 1.1; it must be within \[0, 1\]"),
        (nn.Linear(9, 9), {"method": "lora"}, "method is 'lora'; it must be one of pfedpara, fedpara, lowrank"),
        (nn.Linear(9, 9), {"kernel": "cube"}, "kernel is 'cube'; it must be one of tensor, matrix"),
        (nn.Linear(9, 9), {"dense": ["head"]}, "dense names 'head'"),
        (nn.Linear(9, 9), {"dense": "head"}, "dense names 'head'"),
        (nn.Sequential(nn.Linear(9, 9), nn.ReLU()), {"dense": ["1"]}, "dense names '1', .*; it has 0, and"),
        (nn.Sequential(nn.Linear(9, 9), nn.ReLU()), {"dense": ["0"]}, "dense names 0, which leaves no weight"),
        (nn.Sequential(nn.GRU(9, 9)), {}, r"layer '0' is a GRU, which has no factors here; name it in dense=\[…\]"),
        (nn.Linear(9, 9, dtype=torch.complex64), {}, "of torch.complex64; it must be real and floating-point"),
        (nn.utils.parametrizations.orthogonal(nn.Linear(9, 9)), {}, "is parametrized already"),
        (nn.Embedding(9, 9, max_norm=1.0), {}, "max_norm or sparse gradients"),
    ],
)
def test_what_cannot_be_parameterized(module: nn.Module, options: dict[str, object], message: str) -> None:
    before = {name: p.clone() for name, p in module.named_parameters()}
    with pytest.raises(ValueError, match=message):
        parameterize(module, **options)
    assert before.keys() == dict(module.named_parameters()).keys()


def test_more_that_cannot_be_parameterized() -> None:
    with pytest.raises(ValueError, match="a model is parameterized once"):
        parameterize(net())
    integers = nn.Linear(9, 9)
    integers.weight = nn.Parameter(torch.ones(9, 9, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"is of torch\.int8"):
        parameterize(integers)
    zero = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    nn.init.zeros_(zero[1].weight)
    with pytest.raises(ValueError, match=r"layer '1.weight': the weight is all zero"):
        parameterize(zero)
    assert isinstance(zero[0].weight, nn.Parameter)
    tied = nn.ModuleDict({"embedding": nn.Embedding(9, 9), "head": nn.Linear(9, 9)})
    tied["head"].weight = tied["embedding"].weight
    with pytest.raises(ValueError, match=r"weight 'head.weight' is also 'embedding.weight'"):
        parameterize(tied)
    with pytest.raises(RuntimeError, match="does not implement right_inverse"):
        parameterize(nn.Linear(9, 9)).weight = torch.ones(9, 9)


def test_gradients_equal_the_plain_expression_in_float32() -> None:
    torch.manual_seed(0)
    layer = parameterize(nn.Linear(784, 256), "pfedpara", 0.5)
    x, factors = torch.randn(32, 784), [p for n, p in layer.named_parameters() if "original" in n]
    nn.init.normal_(factors[3], std=0.1)
    ours = torch.autograd.grad(layer(x).square().sum(), factors)
    exact = [f.detach().double().requires_grad_() for f in factors]
    X1, Y1, X2, Y2 = exact
    W = (X1 @ Y1.T) * (X2 @ Y2.T + 1)
    theirs = torch.autograd.grad((x.double() @ W.T + layer.bias.double()).square().sum(), exact)
    for a, b in zip(ours, theirs, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-6


def test_start_has_the_size_of_the_dense_start_through_a_network() -> None:
    # Weights, activations and gradients, layer by layer, within the spread of random draws of narrow layers.
    torch.manual_seed(0)
    dense = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(128, 128, bias=False), nn.ReLU())])
    for layer in dense[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    x = torch.randn(256, 128)
    for method in METHODS:
        model = parameterize(copy.deepcopy(dense), method, 0.5)
        for plain, factored in zip(dense[::2], model[::2], strict=True):
            assert factored.weight.var().item() == pytest.approx(plain.weight.var().item(), rel=1e-3)
        ratio = model(x).square().mean().item() / dense(x).square().mean().item()
        assert 1 / 4 < ratio < 4


def test_importing_stays_light() -> None:
    heavy = "torch._dynamo", "sympy", "torchvision", "matplotlib", "fedml"
    modules = "pfedpara.parameterize, benchmarks.federation.models"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_gamma_orders_the_ranks() -> None:
    ranks = [summarize(parameterize(nn.Linear(300, 200), "fedpara", gamma))[1].rank for gamma in (0, 0.3, 0.7, 1)]
    assert ranks == sorted(ranks)
    assert ranks[0] == math.ceil(math.sqrt(200))


@pytest.mark.parametrize("method", METHODS)
def test_jacobian_correction_brings_the_step_nearer_to_the_dense_one(method: Method) -> None:
    torch.manual_seed(0)
    model = parameterize(nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 40)), method, 0.5)
    x, y, lr = torch.randn(8, 64), torch.randn(8, 40), 0.3

    def gap(correction: float | None) -> float:
        """Distance of the composed weights after a step from those after a dense step."""
        dense, stepped = reconstruct(copy.deepcopy(model)), copy.deepcopy(model)
        weights = [dense[0].weight, dense[2].weight]
        gradients = torch.autograd.grad((dense(x) - y).square().mean(), weights)
        jacobian_corrected_step(stepped, lambda: (stepped(x) - y).square().mean(), lr, correction)
        ideal = [w - lr * g for w, g in zip(weights, gradients, strict=True)]
        return sum((stepped[i].weight - w).square().sum().item() for i, w in ((0, ideal[0]), (2, ideal[1])))

    assert gap(1.0) < gap(0.5) < gap(0.0)


def test_jacobian_correction_of_weight_zero_is_plain_sgd() -> None:
    torch.manual_seed(0)
    model = parameterize(nn.Linear(64, 48), "fedpara", 0.5)
    other, x = copy.deepcopy(model), torch.randn(40, 64)
    value = jacobian_corrected_step(model, lambda: model(x).square().mean(), 0.1, weight=0.0)
    loss = other(x).square().mean()
    loss.backward()
    assert value.item() == loss.item()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.data, theirs.data - 0.1 * theirs.grad)
    with pytest.raises(ValueError, match=r"weight is -1; it must be at least 0"):
        jacobian_corrected_step(model, lambda: model(x).sum(), 0.1, weight=-1)
