"""Random small networks: every exact number and every product against torch.func.jacrev."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.samples.tiles import SampleRows, WholeRows, kernel_inner_products
from reference import Dense, dense

# Of torch's own: these models' operations are looped over under vmap.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

Shape = tuple[int, ...]
Draw = Callable[[st.SearchStrategy[Any]], Any]


# Parts that torch does not have.


class Scale(nn.Module):
    """An elementwise scale: no rule knows it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.general_scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.general_scale


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Twice(nn.Module):
    """f(tanh(f(x)))."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """A linear map there, and its transpose back: by two operations that the rules know, or by a view."""

    def __init__(self, width: int, hidden: int, as_view: bool) -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(hidden, width))
        if as_view:
            self.general_weight = weight
        else:
            self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "weight"):
            return torch.tanh(F.linear(x, self.weight)) @ self.weight
        return F.linear(torch.tanh(F.linear(x, self.general_weight)), self.general_weight.T)


class First(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(x, x, x)[0]
        return self.layer(x)[0]


class Move(nn.Module):
    """A view of every sample, by its name: flat, swapped or split."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flat":
            return x.flatten(1)
        return x.transpose(1, -1) if self.how == "swapped" else x.unflatten(1, (2, -1))


# Steps: from the shape of one sample to a layer. Those that do not fit a shape return None.


def _linear(draw: Draw, shape: Shape) -> nn.Module:
    return nn.Linear(shape[-1], draw(st.integers(1, 4)), bias=draw(st.booleans()))


def _activation(draw: Draw, shape: Shape) -> nn.Module:
    return draw(st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU]))()


def _scale(draw: Draw, shape: Shape) -> nn.Module:
    return Scale(shape[-1])


def _residual(draw: Draw, shape: Shape) -> nn.Module:
    return Residual(nn.Sequential(nn.Linear(shape[-1], shape[-1]), nn.Tanh()))


def _twice(draw: Draw, shape: Shape) -> nn.Module:
    if len(shape) == 2 and draw(st.booleans()):
        return Twice(nn.Conv1d(shape[0], shape[0], draw(st.sampled_from([1, 3])), padding="same"))
    return Twice(nn.Linear(shape[-1], shape[-1], bias=draw(st.booleans())))


def _tied(draw: Draw, shape: Shape) -> nn.Module:
    return Tied(shape[-1], draw(st.integers(1, 3)), draw(st.booleans()))


def _norm(draw: Draw, shape: Shape) -> nn.Module | None:
    # Of one or two numbers a norm leaves only signs, and gradients that are rounding errors.
    if shape[-1] < 3:
        return None
    return draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(shape[-1])


def _group_norm(draw: Draw, shape: Shape) -> nn.Module | None:
    groups = draw(st.sampled_from([g for g in (1, 2) if shape[0] % g == 0]))
    return nn.GroupNorm(groups, shape[0]) if math.prod(shape) // groups >= 3 else None


def _batch_norm(draw: Draw, shape: Shape) -> nn.Module:
    layer = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0]).eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


def _conv(draw: Draw, shape: Shape) -> nn.Module | None:
    dims = len(shape) - 1
    channels = shape[0]
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    options = {
        "kernel_size": draw(st.tuples(*[st.integers(1, 3)] * dims)),
        "stride": draw(st.tuples(*[st.integers(1, 2)] * dims)),
        "dilation": draw(st.tuples(*[st.integers(1, 2)] * dims)),
        "padding": draw(st.tuples(*[st.integers(0, 1)] * dims)),
        "bias": draw(st.booleans()),
    }
    out = groups * draw(st.integers(1, 2))
    if draw(st.booleans()):
        kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
        more = st.tuples(*[st.integers(0, s - 1) for s in options["stride"]])
        layer = kind(channels, out, output_padding=draw(more), groups=groups, **options)
    else:
        kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
        layer = kind(channels, out, groups=groups, **options)
    try:
        found = layer.double()(torch.zeros(1, *shape, dtype=torch.float64))
    except RuntimeError:  # The window is larger than the sample.
        return None
    return layer if found.numel() else None


def _recurrent(draw: Draw, shape: Shape) -> nn.Module:
    kind = draw(st.sampled_from([nn.GRU, nn.LSTM, nn.RNN]))
    width, bias, both = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
    return First(kind(shape[-1], width, bias=bias, bidirectional=both, batch_first=True))


def _attention(draw: Draw, shape: Shape) -> nn.Module:
    heads = draw(st.sampled_from([h for h in (1, 2) if shape[-1] % h == 0]))
    return First(nn.MultiheadAttention(shape[-1], heads, batch_first=True))


def _move(draw: Draw, shape: Shape) -> nn.Module | None:
    if len(shape) == 1:
        return Move("split") if shape[0] % 2 == 0 else None
    return Move(draw(st.sampled_from(["flat", "swapped"])))


_ANYWHERE = [
    _linear, _activation, _scale, _residual, _twice, _tied, _norm, _group_norm, _batch_norm, _move,
]  # fmt: skip
# By the number of a sample's axes.
STEPS = {
    1: _ANYWHERE,
    2: [*_ANYWHERE, _conv, _conv, _recurrent, _recurrent, _attention],
    3: [*_ANYWHERE, _conv, _conv, _conv, _conv],
}


# Networks.


@dataclass(frozen=True, eq=False)
class Network:
    """A model, its inputs, and how an NTK is to look at them."""

    model: nn.Module
    inputs: Tensor
    batch_dim: int
    batch: int
    options: dict[str, Any]

    def __repr__(self) -> str:
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        return f"{self.model}\ninputs {tuple(self.inputs.shape)}, frozen {frozen}, {self.options}"

    def ntk(self) -> NTK:
        return NTK(self.model, self.inputs, batch_dim=self.batch_dim, **self.options)


class Moved(nn.Module):
    """A network whose samples lie along another axis of its inputs."""

    def __init__(self, layers: nn.Sequential, axis: int) -> None:
        super().__init__()
        self.layers = layers
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.movedim(self.axis, 0))


@st.composite
def networks(draw: Draw, padding_idx: Sequence[int | None] = (None, 1)) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 100)))
        batch = draw(st.integers(1, 5))
        front: list[nn.Module] = []
        if draw(st.integers(0, 3)) == 0:
            shape: Shape = (draw(st.integers(1, 4)),)
            inputs = torch.randint(0, 4, (batch, *shape))
            front = [nn.Embedding(4, draw(st.integers(1, 4)), padding_idx=draw(st.sampled_from(padding_idx)))]
        else:
            axes = draw(st.sampled_from([1, 2, 2, 3, 3]))
            shape = draw(st.tuples(*[st.integers(1, 4)] * axes))
            inputs = torch.randn(batch, *shape, dtype=torch.float64)
        layers = nn.Sequential(*front).double()
        with torch.no_grad():
            for _ in range(draw(st.integers(1, 5))):
                shape = tuple(layers(inputs).shape[1:])
                layer = draw(st.sampled_from(STEPS[len(shape)]))(draw, shape)
                if layer is not None and math.prod(layer.double()(layers(inputs)).shape[1:]) <= 48:
                    layers.append(layer)
        if not list(layers.parameters()):
            layers.append(_linear(draw, tuple(layers(inputs).shape[1:])).double())
        parameters = list(layers.parameters())
        for index in draw(st.sets(st.integers(0, len(parameters) - 1), max_size=len(parameters) - 1)):
            parameters[index].requires_grad_(False)
        axis = draw(st.integers(0, inputs.dim() - 1))
    options = draw(
        st.sampled_from([{}, {}, {"memory": 1}, {"memory": 20_000}, {"chunk_size": 1}, {"chunk_size": 7}])
    )
    return Network(Moved(layers, axis), inputs.movedim(0, axis).contiguous(), axis, batch, options)


def bounded(examples: int) -> Callable[..., Any]:
    """So many examples; always the same ones where no one could repeat a failure by hand."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=bool(os.environ.get("CI")),
        database=None,
        # Making a failing network smaller takes minutes: it is small already.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def _close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=max(1e-9 * scale, 1e-290))


def _reference(network: Network) -> Dense:
    reference = dense(network.model, network.inputs)
    # A norm after equal numbers has no gradient but rounding errors, 300 times enlarged.
    assume(float(reference.jacobian.abs().max()) > 1e-3)
    # Torch's own modes disagree where batch norm in eval mode meets inputs that are laid out as
    # channels-last by chance (torch 2.13): there is no right answer to be had.
    state = network.model(network.inputs)
    z = torch.randn(state.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = torch.autograd.grad(state, [p for p in network.model.parameters() if p.requires_grad], z)
    plain = torch.cat([g.reshape(-1) for g in own])
    assume(torch.allclose(plain, reference.jacobian.T @ z.reshape(-1), rtol=1e-9, atol=1e-9))
    return reference


def _by_sample(network: Network, reference: Dense) -> Tensor:
    """J with the samples first: (B, s, p)."""
    return reference.jacobian.reshape(network.batch, -1, reference.jacobian.shape[1])


@bounded(60)
@given(networks())
def test_norms_and_kernels_are_those_of_the_dense_jacobian(network: Network) -> None:
    ntk, reference = network.ntk(), _reference(network)
    rows = _by_sample(network, reference)
    structure = ntk.engine.samples().jacobian
    assert all("general_" in name for name in structure.graph.general)
    _close(structure.frobenius_squared(), (rows**2).sum((1, 2)))
    z = torch.randn(2, ntk.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.einsum("kbs,bsp->kbp", z.reshape(2, network.batch, -1), rows)
    _close(structure.squared_norms(z), (gradients**2).sum(2))
    assert ntk.trace("exact").value == pytest.approx(reference.trace, rel=1e-9, abs=1e-300)
    assert ntk.frobenius_norm("exact").value == pytest.approx(reference.frobenius_norm, rel=1e-9, abs=1e-300)
    for source in (SampleRows(structure, rows=16), WholeRows(ntk.engine.jacobian, rows=20)):
        traces, inner = kernel_inner_products([source], budget=ntk.memory)
        assert traces[0] == pytest.approx(reference.trace, rel=1e-9, abs=1e-300)
        assert inner[0, 0] == pytest.approx(reference.frobenius_norm**2, rel=1e-9, abs=1e-300)
    _close(ntk.to_dense(), reference.kernel)


@bounded(120)
@given(networks())
def test_products_are_those_of_the_dense_jacobian(network: Network) -> None:
    ntk, reference = network.ntk(), _reference(network)
    jacobian = reference.jacobian
    assert (ntk.n, ntk.n_params) == jacobian.shape
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(ntk.n, 3, generator=generator, dtype=torch.float64)
    u = torch.randn(ntk.n_params, 3, generator=generator, dtype=torch.float64)
    _close(ntk.vjp(z), jacobian.T @ z)
    _close(ntk.jvp(u), jacobian @ u)
    _close(ntk @ z, reference.kernel @ z)
    _close(ntk.matvec(z[:, 0]), reference.kernel @ z[:, 0])
