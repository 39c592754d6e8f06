"""Weights that are derived from parameters, W = f(θ), against the dense Jacobian."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from agreement import agree, random
from ntkscope import NTK
from reference import alignment, dense
from zoo import Function

Layer = Callable[[nn.Module], nn.Module]


class _Masked(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tril() if weight.dim() == 2 else weight * (weight > 0)


class _Exp(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return torch.exp(weight) - 1


class _StraightThrough(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        rounded = torch.round(weight * 4) / 4
        return weight + (rounded - weight).detach()


class _FakeQuantized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(weight, 0.1, 0, -4, 4).to(weight.dtype)


class _PerChannel(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        shape = (-1, *[1] * (weight.dim() - 1))
        scale = self.scale.reshape(shape)
        scaled = weight / scale
        return (scaled + (scaled.round() - scaled).detach()) * scale


class _LowRank(nn.Module):
    """Merged LoRA."""

    def __init__(self, rows: int, columns: int, add: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, columns)), nn.Parameter(torch.randn(rows, 2))
        self.add = add

    def forward(self, weight: Tensor) -> Tensor:
        return self.add(weight.flatten(1), self.b, self.a).reshape(weight.shape)


class _Standardised(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        return (centred / flat.std(1, keepdim=True)).reshape(weight.shape)


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class _WholeNorm(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm()


class _ColumnNorm(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm(dim=0, keepdim=True)


def _by(make: Callable[[Tensor], nn.Module]) -> Layer:
    def change(layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer, "weight", make(layer.weight), unsafe=True)
        return layer

    return change


def _low_rank(add: Callable[..., Tensor]) -> Layer:
    return _by(lambda w: _LowRank(w.shape[0], w[0].numel(), add))


def _pruned(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.5)


def _old(norm: Callable[..., nn.Module], **options: int) -> Layer:
    def change(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer, "weight", **options)

    return change


CHANGES: dict[str, Layer] = {
    "weight-norm": parametrizations.weight_norm,
    "weight-norm-of-columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight-norm-of-all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight-norm-old": _old(old_weight_norm),
    "spectral-norm": parametrizations.spectral_norm,
    "spectral-norm-old": _old(old_spectral_norm),
    "pruned": _pruned,
    "masked": _by(lambda w: _Masked()),
    "pointwise": _by(lambda w: _Exp()),
    "straight-through": _by(lambda w: _StraightThrough()),
    "fake-quantised": _by(lambda w: _FakeQuantized()),
    "learned-scale": _by(lambda w: _PerChannel(len(w))),
    "low-rank": _low_rank(lambda w, b, a: w + 0.5 * (b @ a)),
    "low-rank-addmm": _low_rank(torch.addmm),
    "low-rank-linear": _low_rank(lambda w, b, a: w + F.linear(b, a.mT)),
    "standardised": _by(lambda w: _Standardised()),
    "whole-norm": _by(lambda w: _WholeNorm()),
}
SQUARE: dict[str, Layer] = {
    "symmetric": _by(lambda w: _Symmetric()),
    "orthogonal-exp": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="matrix_exp"),
    "orthogonal-cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
    "orthogonal-householder": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    "column-norm": _by(lambda w: _ColumnNorm()),
}

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear-few-positions": (lambda: nn.Linear(4, 3), (4, 2, 4)),
    "linear-many-positions": (lambda: nn.Linear(4, 3), (3, 7, 4)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3, padding=1), (3, 2, 4, 4)),
    "convolution-in-groups": (lambda: nn.Conv1d(4, 4, 3, groups=2), (3, 4, 6)),
    "convolution-transposed": (lambda: nn.ConvTranspose1d(3, 4, 2), (2, 3, 4)),
}


def _build(make: Callable[[], nn.Module], change: Layer) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = change(make().double()).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _derived(ntk: NTK) -> int:
    derivation = ntk.engine.samples().jacobian.graph.derivation
    return 0 if derivation is None else len(derivation.weights)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("change", CHANGES)
def test_layers_with_derived_weights(layer: str, change: str) -> None:
    make, shape = LAYERS[layer]
    assert _derived(agree(_build(make, CHANGES[change]), random(*shape))) == 1


@pytest.mark.parametrize("change", SQUARE)
@pytest.mark.parametrize("shape", [(5, 4), (3, 7, 4)], ids=["rows", "positions"])
def test_square_derived_weights(change: str, shape: tuple[int, ...]) -> None:
    assert _derived(agree(_build(lambda: nn.Linear(4, 4), SQUARE[change]), random(*shape))) == 1


@pytest.mark.parametrize("change", ["weight-norm", "spectral-norm", "pruned", "low-rank", "learned-scale"])
def test_every_parameter_alone(change: str) -> None:
    model = _build(lambda: nn.Linear(4, 3), CHANGES[change])
    for alone in list(model.parameters()):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter is alone)
        agree(model, random(5, 4))


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "tied-with-a-mask": lambda: Function(
        lambda m, x: F.linear(torch.tanh(F.linear(x, m.weight)), m.weight * m.mask),
        weight=torch.randn(4, 4), mask=nn.Buffer((torch.rand(4, 4) > 0.5).double()),
    ),
    "two-weights-of-one-parameter": lambda: Function(
        lambda m, x: torch.tanh(x @ m.weight.exp()) @ m.weight.sin(), weight=torch.randn(4, 4)
    ),
    "weight-and-its-transpose": lambda: Function(
        lambda m, x: torch.tanh(x @ m.weight.T) @ m.weight, weight=torch.randn(3, 4)
    ),
    "product-with-itself": lambda: Function(
        lambda m, x: x @ F.linear(m.weight, m.weight), weight=torch.randn(4, 4)
    ),
    "a-part": lambda: Function(lambda m, x: F.linear(x, m.weight[:2]), weight=torch.randn(3, 4)),
    "parts-of-one": lambda: Function(
        lambda m, x: F.linear(F.linear(x, m.weight[:4]), m.weight[4:]), weight=torch.randn(7, 4)
    ),
    "put-together": lambda: Function(
        lambda m, x: F.linear(x, torch.cat([m.first, m.second])),
        first=torch.randn(2, 4), second=torch.randn(1, 4),
    ),
    "a-decomposition": lambda: Function(
        lambda m, x: F.linear(x, torch.linalg.qr(m.weight)[0]), weight=torch.randn(4, 4)
    ),
    "by-a-network": lambda: Function(
        lambda m, x: F.linear(x, m.out(torch.tanh(m.hidden(m.code))).reshape(2, 4)),
        out=nn.Linear(3, 8), hidden=nn.Linear(2, 3), code=torch.randn(2),
    ),
    "taken-out-of-the-history": lambda: Function(
        lambda m, x: F.linear(x, m.weight * m.weight.detach().norm()), weight=torch.randn(3, 4)
    ),
    "a-norm-in-the-state-too": lambda: Function(
        lambda m, x: F.linear(x, m.weight / m.weight.norm()) + m.weight.norm(), weight=torch.randn(3, 4)
    ),
    "scaled-rows-and-columns": lambda: Function(
        lambda m, x: F.linear(x, m.weight * m.rows[:, None] * m.columns),
        weight=torch.randn(3, 4), rows=torch.randn(3), columns=torch.randn(4),
    ),
    "a-bias-and-a-norm": lambda: Function(
        lambda m, x: F.layer_norm(F.linear(x, m.weight, m.bias.exp()), (3,), m.scale.exp()),
        weight=torch.randn(3, 4), bias=torch.randn(3), scale=torch.randn(3),
    ),
    "through-a-spectrum": lambda: Function(
        lambda m, x: F.linear(x, torch.fft.ifft(torch.fft.fft(m.weight) * m.filter.sin()).abs()),
        weight=torch.randn(3, 4), filter=torch.randn(3, 4),
    ),
    "a-conjugate": lambda: Function(
        lambda m, x: F.linear(x, (torch.fft.fft2(m.weight) @ torch.fft.fft2(m.weight).mH).real),
        weight=torch.randn(4, 4),
    ),
    "recurrent": lambda: Function(
        lambda m, x: _recurrence(m, x), cell=parametrizations.weight_norm(nn.Linear(6, 2))
    ),
}  # fmt: skip


def _recurrence(model: nn.Module, x: Tensor) -> Tensor:
    hidden = x[:, :2]
    for _ in range(3):
        hidden = torch.tanh(model.cell(torch.cat([x, hidden], 1)))
    return hidden


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_parameters(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FUNCTIONS[name]().double()
    inputs = random(5, 4)
    ntk, expected = NTK(model, inputs), dense(model, inputs)
    assert _derived(ntk)
    kernel = expected.kernel
    torch.testing.assert_close(ntk.to_dense(), kernel, rtol=1e-9, atol=1e-10 * float(kernel.abs().max()))
    for method in ("exact", "per-sample"):
        assert ntk.trace(method, products=200).value == pytest.approx(
            expected.trace, rel=1e-9 if method == "exact" else 0.05
        )
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-9)


def test_embedding_whose_table_is_derived() -> None:
    model = _build(lambda: nn.Embedding(6, 4), CHANGES["weight-norm"])
    words = torch.randint(0, 6, (4, 3), generator=torch.Generator().manual_seed(0))
    assert _derived(agree(model, words)) == 1


def test_layers_whose_input_is_the_same_for_all_samples_are_left() -> None:
    model = nn.GRU(3, 2, batch_first=True).double()
    ntk = NTK(model, random(3, 4, 3), outputs=lambda y: y[0])
    assert _derived(ntk) == 0


def test_at_other_parameters() -> None:
    first, second = (_build(lambda: nn.Linear(4, 3), CHANGES["spectral-norm"]) for _ in range(2))
    with torch.no_grad():
        second.parametrizations.weight.original.mul_(1.5).add_(0.1)
    inputs = random(5, 4)
    one = NTK(first, inputs)
    other = one.at(second)
    assert _derived(other) == 1
    assert one.alignment(other, "exact").value == pytest.approx(
        alignment(dense(first, inputs), dense(second, inputs)), rel=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_less_precision(dtype: torch.dtype) -> None:
    model = _build(lambda: nn.Linear(4, 3), CHANGES["weight-norm"])
    inputs = random(5, 4)
    expected = dense(model, inputs).trace
    found = NTK(model.to(dtype), inputs.to(dtype)).trace("exact").value
    assert found == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 0.05)


def test_the_forward_half() -> None:
    model = _build(lambda: nn.Linear(4, 3), CHANGES["low-rank"])
    inputs = random(5, 4)
    found = NTK(model, inputs).trace("per-sample-forward", products=400)
    assert abs(found.value - dense(model, inputs).trace) < 4 * found.stderr


def test_what_is_derived_is_told() -> None:
    ntk = NTK(_build(lambda: nn.Linear(4, 3), CHANGES["pruned"]), random(5, 4))
    assert "1 weights derived from parameters" in ntk.engine.samples().describe()


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley", "householder"])
def test_a_weight_that_every_step_derives_anew_is_derived_once(kind: str) -> None:
    torch.manual_seed(0)
    cell = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=kind)

    def run(m: nn.Module, x: Tensor) -> Tensor:
        hidden = x
        for _ in range(4):
            hidden = torch.tanh(m.cell(hidden) + x)
        return hidden

    model = Function(run, cell=cell).double()
    inputs = random(5, 4)
    ntk, expected = NTK(model, inputs), dense(model, inputs)
    assert _derived(ntk) == 1
    torch.testing.assert_close(ntk.to_dense(), expected.kernel, rtol=1e-9, atol=1e-11)
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-9)
