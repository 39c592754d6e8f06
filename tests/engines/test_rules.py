"""Rules: each one alone against the dense Jacobian, and rules of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.gradients.factors import Direct, Outer
from ntkscope.engines.torch.gradients.sides import Features
from ntkscope.engines.torch.rules import base as rules
from ntkscope.engines.torch.rules.base import Rule, add_rule, find_rule
from reference import dense
from zoo import Function

pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning",
    "ignore:Using padding='same' with even kernel lengths:UserWarning",
)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _agree(model: nn.Module, inputs: Any, general: set[str] = frozenset(), **options: Any) -> NTK:  # type: ignore[assignment]
    """Checks a model's exact numbers and the parameters that no rule takes."""
    ntk, expected = NTK(model, inputs, **options), dense(model, inputs)
    structure = ntk._sample_jacobian()
    assert set(structure.graph.general) == general
    rows = expected.jacobian[structure.axes.state_index()]
    torch.testing.assert_close(structure.frobenius_squared(), (rows**2).sum((1, 2)), rtol=1e-9, atol=0)
    kernel = expected.kernel
    torch.testing.assert_close(ntk.to_dense(), kernel, rtol=1e-9, atol=1e-10 * float(kernel.abs().max()))
    return ntk


def _each_alone(build: Callable[[], nn.Module], inputs: Tensor) -> None:
    """All parameters together, and every one with the others frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    _agree(model, inputs)
    parameters = list(model.parameters())
    for alone in parameters if len(parameters) > 1 else []:
        for parameter in parameters:
            parameter.requires_grad_(parameter is alone)
        _agree(model, inputs)


# Convolutions.

SIZES = {1: (9,), 2: (6, 5), 3: (4, 3, 4)}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "stride": {"stride": 2},
    "dilation": {"dilation": 2},
    "padding": {"padding": 1},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "everything": {"stride": 2, "dilation": 2, "padding": 2, "groups": 2},
}
FORWARD: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "same": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
}
TRANSPOSED: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "output-padding": {"stride": 2, "output_padding": 1},
    "everything-and-output-padding": {
        "stride": 3, "dilation": 2, "padding": 1, "groups": 2, "output_padding": 2,
    },
}  # fmt: skip
each_dimension = pytest.mark.parametrize("dims", [1, 2, 3])


@each_dimension
@pytest.mark.parametrize("options", FORWARD.values(), ids=FORWARD)
def test_convolutions(dims: int, options: dict[str, Any]) -> None:
    kernel = 2 if options.get("dilation") == 2 else (3, 2, 2)[:dims]
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    _each_alone(lambda: layer(4, 4, kernel, **options), _random(2, 4, *SIZES[dims]))


@each_dimension
@pytest.mark.parametrize("options", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions(dims: int, options: dict[str, Any]) -> None:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    _each_alone(lambda: layer(4, 4, 3, **options), _random(2, 4, *(2, 1, 1)[:dims]))


def test_a_padded_same_convolution_with_an_even_kernel() -> None:
    _each_alone(lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), _random(2, 2, 4, 5))


def test_unequal_geometry_on_each_axis() -> None:
    options = {"stride": (1, 2, 1), "padding": (1, 0, 2), "dilation": (1, 1, 2)}
    _each_alone(lambda: nn.Conv3d(2, 2, (2, 3, 1), **options), _random(2, 2, 3, 4, 3))  # type: ignore[arg-type]


def test_several_images_in_a_sample() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    for layer in (nn.Conv2d(4, 6, 2, groups=2), nn.ConvTranspose2d(4, 2, 2, groups=2)):
        _each_alone(lambda layer=layer: Function(run, conv=layer), _random(2, 3, 4, 3, 2))


def test_images_without_a_batch_axis() -> None:
    model = Function(lambda m, x: torch.stack([m.conv(image) for image in x]), conv=nn.Conv1d(2, 3, 2))
    _agree(model.double(), _random(3, 2, 5))


# Everything else that has a rule.

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, bias=False), (5, 3)),
    "linear-sequence": (lambda: nn.Linear(3, 2), (2, 4, 3)),
    "linear-long-sequence": (lambda: nn.Linear(2, 1), (2, 9, 2)),
    "linear-images": (lambda: nn.Linear(3, 2), (2, 2, 3, 3)),
    "layer-norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer-norm-sequence": (lambda: nn.LayerNorm(4), (2, 3, 4)),
    "layer-norm-two-axes": (lambda: nn.LayerNorm((3, 4)), (2, 2, 3, 4)),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
    "rms-norm": (lambda: nn.RMSNorm(4), (2, 3, 4)),
    "rms-norm-two-axes-eps": (lambda: nn.RMSNorm((3, 4), eps=0.1), (2, 3, 4)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), (3, 4)),
    "group-norm-images": (lambda: nn.GroupNorm(2, 4, eps=0.1), (2, 4, 2, 3)),
    "batch-norm": (lambda: _eval(nn.BatchNorm1d(4)), (3, 4)),
    "batch-norm-sequence": (lambda: _eval(nn.BatchNorm1d(4)), (2, 4, 3)),
    "batch-norm-images": (lambda: _eval(nn.BatchNorm2d(4)), (2, 4, 2, 3)),
    "batch-norm-volumes": (lambda: _eval(nn.BatchNorm3d(2)), (2, 2, 2, 2, 2)),
    "matmul": (lambda: Function(lambda m, x: x @ m.weight, weight=torch.randn(3, 4)), (5, 3)),
    "matmul-sequence": (lambda: Function(lambda m, x: x @ m.weight, weight=torch.randn(3, 2)), (2, 4, 3)),
    "mm": (lambda: Function(lambda m, x: torch.mm(x, m.weight), weight=torch.randn(3, 2)), (4, 3)),
    "transposed-view": (lambda: Function(lambda m, x: x @ m.weight.T, weight=torch.randn(4, 3)), (5, 3)),
    "transposed-matrix-view": (
        lambda: Function(lambda m, x: x @ m.weight.mT, weight=torch.randn(4, 3)),
        (5, 3),
    ),
    "reshaped": (
        lambda: Function(lambda m, x: F.linear(x, m.weight.view(4, 3)), weight=torch.randn(12)),
        (5, 3),
    ),
}  # fmt: skip


def _eval(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer.eval()


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_layers(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    _each_alone(build, _random(*shape))


@pytest.mark.parametrize("padding", [None, 0, -1], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 2, 3)], ids=str)
def test_embeddings(shape: tuple[int, ...], padding: int | None) -> None:
    index = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))
    index.reshape(-1)[:2] = torch.tensor([0, 3])
    _each_alone(lambda: nn.Embedding(4, 3, padding_idx=padding), index)


def test_a_sparse_embedding_has_the_dense_ones_kernel() -> None:
    index = torch.tensor([[0, 1, 1], [2, 0, 3]])
    for kind in (nn.Embedding, nn.EmbeddingBag):
        table = kind(4, 3).double()
        expected = dense(table, index).kernel
        table.sparse = True
        ntk = NTK(table, index)
        torch.testing.assert_close(ntk.to_dense(), expected)
        torch.testing.assert_close(ntk.vjp(torch.eye(ntk.n)).T @ ntk.vjp(torch.eye(ntk.n)), expected)
        assert ntk.trace("exact").value == pytest.approx(float(expected.trace()))
        assert table.sparse
    ntk = NTK(nn.Embedding(4, 3, sparse=True), index)
    torch.testing.assert_close(ntk @ torch.eye(ntk.n), ntk.to_dense())


# What a rule does not cover goes the general way, and says so.

GENERAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "vector": (
        lambda: Function(lambda m, x: F.linear(x, m.weight), weight=torch.randn(3)),
        lambda: _random(2, 4, 3),
        "used by linear in a way that its rule does not cover",
    ),
    "vector-of-a-product": (
        lambda: Function(lambda m, x: x @ m.weight, weight=torch.randn(3)),
        lambda: _random(4, 3),
        "used by matmul in a way that its rule does not cover",
    ),
    "left-factor": (
        lambda: Function(lambda m, x: (m.weight @ x.T).T, weight=torch.randn(2, 3)),
        lambda: _random(4, 3),
        "used as self of matmul",
    ),
    "no-rule": (
        lambda: Function(lambda m, x: x * m.weight, weight=torch.randn(3)),
        lambda: _random(4, 3),
        "used by mul, which has no rule",
    ),
    "both-arguments": (
        lambda: Function(lambda m, x: x @ F.linear(m.weight, m.weight), weight=torch.randn(3, 3)),
        lambda: _random(4, 3),
        "used as input, weight of linear",
    ),
    "in-a-list": (
        lambda: Function(
            lambda m, x: torch.cat([x, m.weight.expand(len(x), -1)], 1) ** 2, weight=torch.randn(1, 3)
        ),
        lambda: _random(4, 3),
        "used by expand, which has no rule",
    ),
    "the-state-itself": (
        lambda: Function(lambda m, x: torch.stack([x[:, 0], x[:, 1]], 1) * m.weight, weight=torch.randn(())),
        lambda: _random(4, 3),
        "used by mul, which has no rule",
    ),
    "a-part-alone": (
        lambda: Function(lambda m, x: F.linear(x, m.weight[:2]), weight=torch.randn(4, 3)),
        lambda: _random(4, 3),
        "used by slice, which has no rule",
    ),
}


@pytest.mark.parametrize(("build", "inputs", "reason"), GENERAL.values(), ids=GENERAL)
def test_uses_without_a_rule_are_right_and_named(
    build: Callable[[], nn.Module], inputs: Callable[[], Tensor], reason: str
) -> None:
    ntk = _agree(build().double(), inputs(), {"weight"})
    assert ntk._sample_jacobian().graph.why_general == {"weight": reason}
    assert f"weight takes the general way: {reason}" in ntk._sample_jacobian().describe()


def test_embeddings_that_divide_by_counts_are_not_taken_apart() -> None:
    index = torch.tensor([[0, 1, 1], [1, 1, 3]])
    ntk = NTK(nn.Embedding(4, 2, scale_grad_by_freq=True).double(), index)
    structure, reason = ntk._structure()
    assert structure is None
    assert "do not add up to the gradient of the batch" in reason


# Rules of one's own.


@pytest.fixture(scope="module")
def operation() -> Iterator[Any]:
    """y = x ∘ w, which torch has no rule for under this name."""
    library = torch.library.Library("ntkscope_tests", "FRAGMENT")
    library.define("scale(Tensor x, Tensor w) -> Tensor")
    library.impl("scale", lambda x, w: x * w, "CompositeImplicitAutograd")
    yield torch.ops.ntkscope_tests.scale.default
    library._destroy()


@pytest.fixture(autouse=True)
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test adds are gone after it."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


def _model() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(torch.ops.ntkscope_tests.scale(m.linear(x), m.weight)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Function(run, linear=nn.Linear(3, 4), weight=torch.randn(4), head=nn.Linear(4, 2)).double()


def _scale_rule(factor: float = 1.0, **options: Any) -> Rule:
    def gradient(arguments: rules.Arguments, delta: Tensor, name: str) -> Direct:
        return Direct(factor * (delta * arguments["x"]).flatten(2))

    return Rule(("w",), ("x",), gradient, **options)


def test_an_operation_of_ones_own_takes_the_general_way(operation: Any) -> None:
    ntk = _agree(_model(), _random(4, 3), {"weight"})
    reason = ntk._sample_jacobian().graph.why_general["weight"]
    assert reason == "used by scale, which has no rule"


def test_a_rule_of_ones_own_is_used(operation: Any) -> None:
    rule = _scale_rule()
    add_rule(operation, rule)
    assert find_rule(operation) is rule
    ntk = _agree(_model(), _random(4, 3))
    assert any(use.rule is rule for use in ntk._sample_jacobian().graph.uses)


def test_a_rule_may_hold_for_some_arguments_alone(operation: Any) -> None:
    add_rule(operation, _scale_rule(applies=lambda arguments: arguments["w"].shape[0] == 5))
    ntk = _agree(_model(), _random(4, 3), {"weight"})
    reason = ntk._sample_jacobian().graph.why_general["weight"]
    assert reason == "used by scale in a way that its rule does not cover"


@pytest.mark.parametrize(
    "wrong",
    [
        _scale_rule(2.0),
        _scale_rule(0.0),
        _scale_rule(1.001),
        Rule(("w",), (), lambda arguments, delta, name: Direct(delta.flatten(2))),
        Rule(
            ("w",),
            ("x",),
            lambda a, delta, name: Outer(delta[:, :, None], Features(a["x"][:, None])),
        ),
    ],
    ids=["doubled", "zero", "slightly-off", "another-formula", "another-shape"],
)
def test_a_wrong_rule_is_detected_and_the_numbers_stay_right(operation: Any, wrong: Rule) -> None:
    add_rule(operation, wrong)
    model, x = _model(), _random(4, 3)
    ntk, expected = NTK(model, x), dense(model, x)
    structure, reason = ntk._structure()
    assert structure is None
    assert "a rule of add_rule is wrong" in reason
    trace = ntk.trace("exact")
    assert trace.method in ("exact (n VJPs)", "exact (p JVPs)")
    assert trace.value == pytest.approx(expected.trace, rel=1e-9)
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-9)


def test_a_rule_that_fails_is_named_and_the_numbers_stay_right(operation: Any) -> None:
    def fail(arguments: rules.Arguments, delta: Tensor, name: str) -> Direct:
        raise RuntimeError("the rule's own error")

    add_rule(operation, Rule(("w",), ("x",), fail))
    model, x = _model(), _random(4, 3)
    ntk = NTK(model, x)
    assert "the rule's own error" in ntk._structure()[1]
    assert ntk.trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-9)


TARGETS = [torch.add, torch.ops.aten.add, "aten::add", nn.Linear]


@pytest.mark.parametrize("target", TARGETS, ids=["function", "packet", "text", "module"])
def test_a_rule_is_for_an_overload(target: Any) -> None:
    with pytest.raises(TypeError, match=r"operator overload such as .*scale.default, found .*custom_op"):
        add_rule(target, _scale_rule())
