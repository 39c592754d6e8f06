"""Small models of every kind that must work, each with inputs; n and p stay below a few hundred."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntkscope import NTK
from reference import Dense, dense

__all__ = [
    "BY_NAME",
    "COUPLED",
    "INDEPENDENT",
    "ZOO",
    "Case",
    "Function",
    "each",
    "each_case",
    "paper_gru",
    "paper_mlp",
]


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its inputs, and what an NTK must be told about them.

    Attributes:
        name: Test id.
        build: The model, from the global generator.
        inputs: Its inputs, likewise.
        independent: Whether the per-sample structure must be found.
        general: Parameters that no layer rule can take.
        options: Arguments of NTK.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    independent: bool = True
    general: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
        """The model with the parameters of a seed, and inputs that do not depend on it."""
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(1234)
            inputs = _cast(self.inputs(), dtype)
            torch.manual_seed(seed)
            model = self.build()
            _disturb(model)
            model = model.to(dtype)
        return model, inputs

    @functools.cache  # noqa: B019
    def shared(self, seed: int = 0) -> NTK:
        """Its kernel in float64, the same object for every test that only reads it."""
        return self.ntk(seed)

    def ntk(self, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> NTK:
        """Its kernel."""
        model, inputs = self.make(seed, dtype)
        return NTK(model, inputs, **(self.options | options))

    @functools.cache  # noqa: B019
    def dense(self, seed: int = 0) -> Dense:
        """Its dense reference."""
        model, inputs = self.make(seed)
        if "layer" in self.options:
            stop = int(self.options["layer"]) + 1
            model = Function(lambda m, x: m.model[:stop](x), model=model)
        return dense(model, inputs, self.options.get("outputs"))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    """Scales, biases and running averages that are not 1 or 0."""
    for parameter in model.parameters():
        if parameter.dim() <= 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)


class Function(nn.Module):
    """A model from its parts and a function of (its parts, inputs)."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)


class _TurnedGradient(torch.autograd.Function):
    """The identity, with a gradient that does not follow from its operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient.flip(-1)


def paper_mlp() -> tuple[nn.Module, Tensor]:
    """The MLP of arXiv 2511.10796, and its inputs: the inputs are drawn first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(50, 100)
        widths = [100] + [64] * 15
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers), x


def paper_gru() -> tuple[nn.Module, Tensor]:
    """The GRU of arXiv 2511.10796, and its inputs, time first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(50, 15, 10)
        return nn.GRU(10, 64), x


# Parts that several models share.


def _rand(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def _tokens(*shape: int, vocabulary: int = 6) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, vocabulary, shape)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 2),
    ).eval()  # fmt: skip


def _frozen() -> nn.Module:
    model = _mlp()
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


def _tied() -> nn.Module:
    model = Function(
        lambda m, x: m.output(torch.tanh(m.middle(m.embedding(x)))),
        embedding=nn.Embedding(6, 4),
        middle=nn.Linear(4, 4),
        output=nn.Linear(4, 6),
    )
    model.output.weight = model.embedding.weight
    return model


def _inplace_residual() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        z = m.second(F.relu(y, inplace=True))
        z += x
        z = m.activation(m.third(z))
        z.mul_(0.5).add_(1)
        return z

    return Function(
        run,
        first=nn.Linear(4, 4),
        second=nn.Linear(4, 4),
        third=nn.Linear(4, 3),
        activation=nn.Hardtanh(inplace=True),
    )


def _inplace_view() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        y[:, :2] = torch.sin(x[:, :2]) * m.scale
        y[:, 2].mul_(2)
        return m.second(torch.tanh(y))

    return Function(run, first=nn.Linear(4, 4), second=nn.Linear(4, 3), scale=torch.randn(2))


def _no_grad_part() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(m.gate(x))
        return m.second(gate * torch.tanh(m.first(x)))

    return Function(run, gate=nn.Linear(4, 5), first=nn.Linear(4, 5), second=nn.Linear(5, 3))


def _video() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        features = m.norm(torch.relu(m.conv(x.flatten(0, 1))))
        return m.head(features.unflatten(0, (batch, frames)).flatten(2).mean(1))

    return Function(run, conv=nn.Conv2d(2, 3, 3), norm=nn.GroupNorm(3, 3), head=nn.Linear(12, 2))


def _class_token() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        tokens = torch.cat([m.token.expand(x.shape[0], -1, -1), m.patches(x)], dim=1) + m.position
        mixed, _ = m.attention(tokens, tokens, tokens)
        return m.head(mixed[:, 0])

    return Function(
        run,
        token=torch.randn(1, 1, 4),
        position=torch.randn(1, 4, 4),
        patches=nn.Linear(3, 4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        head=nn.Linear(4, 2),
    )


def _quiet(layer: nn.Module) -> nn.Module:
    """Torch warns of even kernels with padding "same"; the result is right all the same."""

    def run(m: Any, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return m.layer(x)

    return Function(run, layer=layer)


def _old_weight_norm() -> nn.Module:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))


def _new_weight_norm() -> nn.Module:
    return nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)
    )


def _encoder(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(4, 2, 6, **({"batch_first": True} | options))
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    return build


def _first(y: Any) -> Tensor:
    return y[0]


def _attention(m: Any, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
    return m.attention(query, memory, memory, attn_mask=mask)[0]


def _cross_attention() -> nn.Module:
    return Function(_attention, attention=nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True))


def _unrolled(cell: nn.Module, x: Tensor) -> list[Tensor]:
    """The hidden states of a cell (and the memory of an LSTM's) at every step."""
    state: Any = None
    states = []
    for step in x.unbind(1):
        state = cell(step, state)
        states.append(torch.cat(state, dim=1) if isinstance(state, tuple) else state)
    return states


def _causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def _case(name: str, build: Callable[[], nn.Module], inputs: Callable[[], Any], **rest: Any) -> Case:
    keys = ("independent", "general")
    known = {key: rest.pop(key) for key in keys if key in rest}
    if "general" in known:
        known["general"] = frozenset(known["general"])
    return Case(name, build, inputs, options=rest, **known)


def _sequential(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


_RECURRENT = [
    _case("gru", lambda: nn.GRU(3, 4), _rand(5, 3, 3), outputs=_first, batch_dim=1),
    _case("gru-last-step", lambda: nn.GRU(3, 4), _rand(5, 3, 3), outputs=lambda y: y[0][-1], batch_dim=1),
    _case("gru-hidden", lambda: nn.GRU(3, 4, 2), _rand(4, 3, 3), outputs=lambda y: y[1], batch_dim=1),
    _case(
        "gru-initial-state",
        lambda: nn.GRU(3, 4),
        lambda: (torch.randn(4, 3, 3), torch.randn(1, 3, 4)),
        outputs=_first,
        batch_dim=(1, 1),
    ),
    _case("gru-no-bias", lambda: nn.GRU(3, 4, bias=False), _rand(4, 2, 3), outputs=_first, batch_dim=1),
    _case("lstm-batch-first", lambda: nn.LSTM(3, 4, batch_first=True), _rand(3, 4, 3), outputs=_first),
    _case("lstm-projected", lambda: nn.LSTM(3, 4, proj_size=2), _rand(4, 3, 3), outputs=_first, batch_dim=1),
    _case(
        "lstm-initial-state",
        lambda: nn.LSTM(3, 4),
        lambda: (torch.randn(4, 3, 3), (torch.randn(1, 3, 4), torch.randn(1, 3, 4))),
        outputs=_first,
        batch_dim=(1, 1),
    ),
    _case("lstm-cell-state", lambda: nn.LSTM(3, 4), _rand(4, 3, 3), outputs=lambda y: y[1][1], batch_dim=1),
    _case(
        "rnn-tanh-two-layers-both-ways",
        lambda: nn.RNN(3, 3, 2, bidirectional=True),
        _rand(4, 2, 3),
        outputs=_first,
        batch_dim=1,
    ),
    _case("rnn-relu", lambda: nn.RNN(3, 4, nonlinearity="relu"), _rand(4, 3, 3), outputs=_first, batch_dim=1),
    *(
        _case(
            name,
            lambda cell=cell: Function(
                lambda m, x: torch.stack(_unrolled(m.cell, x), dim=1), cell=cell(3, 4)
            ),
            _rand(3, 4, 3),
        )
        for name, cell in {
            "rnn-cell-tanh": nn.RNNCell,
            "rnn-cell-relu": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu"),
            "gru-cell-no-bias": lambda *sizes: nn.GRUCell(*sizes, bias=False),
            "gru-cell": nn.GRUCell,
            "lstm-cell": nn.LSTMCell,
        }.items()
    ),
    _case(
        "lstm-classifier",
        lambda: Function(
            lambda m, x: m.head(m.lstm(m.embedding(x))[0][:, -1]),
            embedding=nn.Embedding(6, 3),
            lstm=nn.LSTM(3, 4, batch_first=True),
            head=nn.Linear(4, 2),
        ),
        _tokens(3, 4),
    ),
]


_CONVOLUTIONS = [
    _case("cnn-batch-norm-eval", _cnn, _rand(3, 2, 5, 5)),
    _case(
        "conv1d-groups-dilation-same",
        _sequential(lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding="same"), nn.Tanh),
        _rand(3, 4, 5),
    ),
    _case("conv1d-same-even", lambda: _quiet(nn.Conv1d(2, 3, 4, padding="same")), _rand(3, 2, 5)),
    _case("conv1d-valid", lambda: nn.Conv1d(2, 3, 3, padding="valid", stride=2), _rand(3, 2, 8)),
    _case("conv1d-circular", lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), _rand(2, 2, 5)),
    _case(
        "conv2d-groups-stride-dilation",
        _sequential(
            lambda: nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
            nn.Tanh,
            nn.Flatten,
            lambda: nn.Linear(12, 2),
        ),
        _rand(3, 4, 3, 5),
    ),
    _case("conv2d-depthwise", lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), _rand(2, 3, 3, 3)),
    _case("conv2d-1x1", lambda: nn.Conv2d(3, 2, 1), _rand(3, 3, 2, 3)),
    _case("conv3d", lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1), _rand(2, 2, 2, 3, 2)),
    _case(
        "transposed1d-groups",
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        _rand(2, 4, 4),
    ),
    _case(
        "transposed2d",
        _sequential(
            lambda: nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 1), output_padding=(1, 0), dilation=(1, 2)),
            nn.Tanh,
        ),
        _rand(2, 2, 2, 3),
    ),
    _case("transposed3d", lambda: nn.ConvTranspose3d(2, 2, 2, stride=2), _rand(2, 2, 2, 1, 2)),
    _case("video-frames-in-the-batch", _video, _rand(3, 2, 2, 4, 4)),
    _case(
        "max-pool",
        _sequential(lambda: nn.Conv2d(1, 2, 3), lambda: nn.MaxPool2d(2), nn.Flatten, lambda: nn.Linear(8, 2)),
        _rand(3, 1, 6, 6),
    ),
    _case(
        "interpolate",
        lambda: Function(
            lambda m, x: F.interpolate(m.conv(x), scale_factor=2, mode="bilinear"), conv=nn.Conv2d(1, 2, 2)
        ),
        _rand(2, 1, 3, 3),
    ),
    _case(
        "instance-norm",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True)),
        _rand(3, 2, 6),
        general=("1.weight", "1.bias"),
    ),
    _case("group-norm", lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4)), _rand(3, 2, 5)),
    _case(
        "batch-norm-no-scale",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh()).eval(),
        _rand(4, 3),
    ),
]

_ATTENTION = [
    _case(
        "self-attention",
        lambda: Function(
            lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        _rand(3, 4, 4),
    ),
    _case(
        "self-attention-no-weights-time-first",
        lambda: Function(
            lambda m, x: m.attention(x, x, x, need_weights=False)[0], attention=nn.MultiheadAttention(4, 2)
        ),
        _rand(4, 3, 4),
        batch_dim=1,
    ),
    _case(
        "cross-attention-shared-mask",
        _cross_attention,
        lambda: (torch.randn(3, 4, 4), torch.randn(3, 5, 3), torch.rand(4, 5) < 0.3),
        batch_dim=(0, 0, None),
    ),
    _case(
        "attention-bias-kv",
        lambda: Function(
            lambda m, x: m.attention(x, x, x)[0],
            attention=nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True),
        ),
        _rand(2, 3, 4),
    ),
    _case("transformer", _encoder(), _rand(2, 4, 4)),
    _case("transformer-gelu-norm-first", _encoder(activation="gelu", norm_first=True), _rand(2, 3, 4)),
    _case(
        "transformer-causal-mask",
        lambda: Function(lambda m, x, mask: m.encoder(x, mask=mask), encoder=_encoder()()),
        lambda: (torch.randn(3, 4, 4), _causal(4)),
        batch_dim=(0, None),
    ),
    _case(
        "scaled-dot-product",
        lambda: Function(
            lambda m, x: F.scaled_dot_product_attention(*m.qkv(x).chunk(3, dim=-1), is_causal=True),
            qkv=nn.Linear(3, 9),
        ),
        _rand(3, 4, 3),
    ),
    _case("class-token", _class_token, _rand(3, 3, 3)),
]

_REUSE = [
    _case(
        "layer-used-twice",
        lambda: Function(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=nn.Linear(4, 4)),
        _rand(4, 4),
    ),
    _case(
        "conv-used-twice",
        lambda: Function(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=nn.Conv1d(2, 2, 3, padding=1)),
        _rand(3, 2, 4),
    ),
    _case(
        "norm-used-twice",
        lambda: Function(
            lambda m, x: m.norm(m.linear(m.norm(x))), norm=nn.LayerNorm(4), linear=nn.Linear(4, 4)
        ),
        _rand(3, 4),
    ),
    _case("tied-embedding", _tied, _tokens(3, 4)),
    _case(
        "tied-matmul-and-linear",
        lambda: Function(lambda m, x: F.linear(torch.tanh(x @ m.weight), m.weight), weight=torch.randn(4, 4)),
        _rand(3, 4),
    ),
    _case(
        "weight-and-its-transpose",
        lambda: Function(lambda m, x: torch.tanh(x @ m.weight.T) @ m.weight, weight=torch.randn(3, 4)),
        _rand(3, 4),
    ),
    _case(
        "bias-shared-by-two-layers",
        lambda: Function(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.first, m.bias)), m.second, m.bias),
            first=torch.randn(3, 4),
            second=torch.randn(3, 3),
            bias=torch.randn(3),
        ),
        _rand(3, 4),
    ),
    _case(
        "norm-scale-shared-with-product",
        lambda: Function(
            lambda m, x: m.scale * F.layer_norm(x, (4,), m.scale, m.bias),
            scale=torch.randn(4),
            bias=torch.randn(4),
        ),
        _rand(3, 4),
    ),
]

_BASIC = [
    _case("mlp", _mlp, _rand(4, 5)),
    _case("embedding-padding", lambda: nn.Embedding(6, 3, padding_idx=2), _tokens(3, 4)),
    _case(
        "embedding-mean",
        lambda: Function(
            lambda m, x: m.head(m.table(x).mean(1)), table=nn.Embedding(6, 3), head=nn.Linear(3, 2)
        ),
        _tokens(4, 5),
    ),
    _case("frozen", _frozen, _rand(4, 5)),
    _case(
        "dict-inputs",
        lambda: Function(
            lambda m, *, image, token: m.linear(image) + m.table(token),
            linear=nn.Linear(4, 3),
            table=nn.Embedding(6, 3),
        ),
        lambda: {"image": torch.randn(3, 4), "token": torch.randint(0, 6, (3,))},
    ),
    _case(
        "dict-inputs-shared-mask",
        lambda: Function(lambda m, *, x, mask: m.linear(x * mask), linear=nn.Linear(4, 3)),
        lambda: {"x": torch.randn(3, 4), "mask": torch.rand(4)},
        batch_dim={"x": 0, "mask": None},
    ),
    _case(
        "shared-square-mask",
        # The mask's first axis is as long as the batch: only batch_dim can tell them apart.
        lambda: Function(lambda m, x, mask: torch.tanh(m.linear(x)) @ mask, linear=nn.Linear(4, 3)),
        lambda: (torch.randn(3, 4), torch.rand(3, 3)),
        batch_dim=(0, None),
    ),
    _case("layer-norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), _rand(3, 5, 3)),
    _case(
        "layer-norm-two-axes", lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm((4, 2))), _rand(3, 4, 3)
    ),
    _case("layer-norm-no-bias", lambda: nn.LayerNorm(4, bias=False), _rand(3, 2, 4)),
    _case("rms-norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4)), _rand(3, 2, 3)),
    _case(
        "matmul-by-hand",
        lambda: Function(
            lambda m, x: torch.tanh(x @ m.first + m.bias) @ m.second,
            first=torch.randn(4, 5),
            bias=torch.randn(5),
            second=torch.randn(5, 3),
        ),
        _rand(4, 4),
    ),
    _case(
        "matmul-sequence",
        lambda: Function(lambda m, x: torch.tanh(x @ m.weight), weight=torch.randn(4, 3)),
        _rand(3, 5, 4),
    ),
    _case(
        "scale-and-bias",
        lambda: Function(
            lambda m, x: m.scale * torch.tanh(m.linear(x)) + m.shift,
            scale=torch.randn(3),
            shift=torch.randn(()),
            linear=nn.Linear(4, 3),
        ),
        _rand(4, 4),
    ),
    _case("prelu", lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3)), _rand(4, 4)),
    _case(
        "bilinear",
        lambda: nn.Bilinear(3, 2, 2),
        lambda: (torch.randn(4, 3), torch.randn(4, 2)),
    ),
    _case(
        "einsum",
        lambda: Function(
            lambda m, x: torch.einsum("bti,hio->bhto", x, m.weight), weight=torch.randn(2, 3, 2)
        ),
        _rand(3, 2, 3),
    ),
    _case(
        "slice-of-a-weight",
        lambda: Function(
            lambda m, x: F.linear(x[:, :2], m.weight[:, :2]) * m.weight[0, 3], weight=torch.randn(3, 4)
        ),
        _rand(3, 4),
    ),
    _case("in-place", _inplace_residual, _rand(4, 4)),
    _case(
        "in-place-on-the-input",
        lambda: nn.Sequential(nn.SiLU(inplace=True), nn.Linear(4, 3)),
        _rand(4, 4),
    ),
    _case("weight-norm-old", _old_weight_norm, _rand(4, 4)),
    _case(
        "weight-norm-new",
        _new_weight_norm,
        _rand(4, 4),
    ),
    _case("fewer-parameters-than-states", lambda: nn.Linear(2, 1), _rand(9, 2)),
    _case("one-state", _sequential(lambda: nn.Linear(4, 3), nn.Tanh, lambda: nn.Linear(3, 1)), _rand(1, 4)),
    _case("batch-of-one", _mlp, _rand(1, 5)),
    _case(
        "unused-parameter",
        lambda: Function(lambda m, x: m.used(x), used=nn.Linear(4, 3), unused=nn.Linear(4, 3)),
        _rand(4, 4),
    ),
    _case("sequence-output", _mlp, _rand(2, 3, 5)),
    _case(
        "samples-last",
        lambda: Function(lambda m, x: torch.tanh(m.linear(x)).T, linear=nn.Linear(4, 3)),
        _rand(5, 4),
    ),
    _case(
        "flattened-sequence-output",
        lambda: Function(lambda m, x: m.linear(x).reshape(-1, 2), linear=nn.Linear(4, 2)),
        _rand(3, 4, 4),
    ),
    _case(
        "negative-batch-dim",
        lambda: Function(lambda m, x: m.linear(x.T), linear=nn.Linear(4, 3)),
        _rand(4, 5),
        batch_dim=-1,
    ),
    _case("no-grad-part", _no_grad_part, _rand(3, 4)),
    _case(
        "gelu-softmax",
        _sequential(lambda: nn.Linear(4, 5), nn.GELU, lambda: nn.Linear(5, 3), lambda: nn.Softmax(dim=-1)),
        _rand(4, 4),
    ),
    _case("layer-of-a-model", _mlp, _rand(4, 5), layer="2"),
    _case(
        "dropout-in-eval",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).eval(),
        _rand(4, 4),
    ),
    _case(
        "one-output-a-sample",
        lambda: Function(lambda m, x: m.linear(x).squeeze(-1), linear=nn.Linear(4, 1)),
        _rand(5, 4),
    ),
]

_NO_STRUCTURE = [
    _case(
        "batch-norm-training",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()),
        _rand(4, 3),
        independent=False,
    ),
    _case(
        "batch-norm-no-averages",
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()
        ).eval(),
        _rand(4, 3),
        independent=False,
    ),
    _case(
        "contrastive-head",
        lambda: Function(
            lambda m, x: torch.log_softmax(
                F.normalize(m.linear(x), dim=1) @ F.normalize(m.linear(x), dim=1).T, 1
            ),
            linear=nn.Linear(4, 3),
        ),
        _rand(4, 4),
        independent=False,
    ),
    _case(
        "batch-mean-subtracted",
        lambda: Function(lambda m, x: m.linear(x) - m.linear(x).mean(0), linear=nn.Linear(4, 3)),
        _rand(4, 4),
        independent=False,
    ),
    _case(
        "control-flow-on-values",
        lambda: Function(
            lambda m, x: torch.stack([m.left(row) if row[0] > 0 else m.right(row) for row in x]),
            left=nn.Linear(4, 2),
            right=nn.Linear(4, 2),
        ),
        _rand(6, 4),
        independent=False,
    ),
    _case(
        "scalar-state",
        lambda: Function(lambda m, x: m.linear(x).square().mean(), linear=nn.Linear(4, 3)),
        _rand(4, 4),
        independent=False,
    ),
    _case("in-place-into-a-view", _inplace_view, _rand(4, 4)),
    _case(
        "custom-backward",
        lambda: Function(lambda m, x: torch.tanh(_TurnedGradient.apply(m.linear(x))), linear=nn.Linear(4, 3)),
        _rand(4, 4),
        independent=False,
    ),
    _case("coupled-by-the-caller", _mlp, _rand(4, 5), independent=False, batch_dim=None),
    _case(
        "coupled-in-the-gradient-alone",
        # The values are the linear layer's own; the gradients of all samples are mixed.
        lambda: Function(
            lambda m, x: m.linear(x) + (m.linear(x).sum(0) - m.linear(x).sum(0).detach()),
            linear=nn.Linear(4, 3),
        ),
        _rand(4, 4),
        independent=False,
    ),
]

ZOO: tuple[Case, ...] = (*_BASIC, *_CONVOLUTIONS, *_RECURRENT, *_ATTENTION, *_REUSE, *_NO_STRUCTURE)
INDEPENDENT = tuple(case for case in ZOO if case.independent)
COUPLED = tuple(case for case in ZOO if not case.independent)
BY_NAME = {case.name: case for case in ZOO}


def each(cases: Sequence[Case | str]) -> pytest.MarkDecorator:
    """Runs a test for every one of some cases, which it takes as ``case``."""
    found = [BY_NAME[case] if isinstance(case, str) else case for case in cases]
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


each_case = each(ZOO)
