"""Models whose parts reach one another by closures, lists and caches: K is that of the user's own module."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ntkscope import NTK
from truth.reference import dense
from truth.verdict import assert_right, assert_right_or_refused, check_model, unless_refused


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(5, 4, dtype=torch.float64)


class LocalFunction(nn.Module):
    """A block put together by a function in ``__init__``."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

        def gated(x: Tensor) -> Tensor:
            return torch.sigmoid(self.query(x)) * self.key(x)

        self.blocks: list[Callable[[Tensor], Tensor]] = [gated]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class VmapOfMethod(nn.Module):
    """A function of one sample, mapped over the batch once for all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.batched = torch.vmap(lambda row: self.last(torch.tanh(self.first(row))))

    def forward(self, x: Tensor) -> Tensor:
        return self.batched(x)


class Wrapped(nn.Module):
    """A residual put around a layer by replacing its ``forward``, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.down, self.up = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(2, 3)
        plain = self.body.forward
        self.body.forward = lambda x: plain(x) + self.up(torch.relu(self.down(x)))  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))


class PrefixByHook(nn.Module):
    """A pre-forward hook that shifts a layer's input by a module of its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shift = nn.Linear(4, 3), nn.Linear(4, 4)
        self.body.register_forward_pre_hook(lambda module, args: (args[0] + self.shift(args[0]),))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))


class WeightsInList(nn.Module):
    """Weights that are registered, and used from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.weights = [self.first.weight, self.last.weight]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weights[0].T) @ self.weights[1].T


class WeightInPartial(nn.Module):
    """A weight held by a partial, beside a layer that is used as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
        self.norm = functools.partial(F.layer_norm, normalized_shape=(3,), weight=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))


class WeightsByName(nn.Module):
    """A dictionary of parameters that was made for speed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.table = dict(self.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, self.table["first.weight"], self.table["first.bias"]))
        return F.linear(hidden, self.table["last.weight"], self.table["last.bias"])


class FoldedBias(nn.Module):
    """A product of two parameters, kept after the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.full((3,), 0.7))
        self.folded: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "weight" not in self.folded:
            self.folded["weight"] = self.scale[:, None] * self.first.weight
        return torch.tanh(F.linear(x, self.folded["weight"], self.first.bias))


class _Adjoint(torch.autograd.Function):
    """Euler steps whose backward pass runs the module again, as adjoint ODE solvers do."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, field: nn.Module, *parameters: Tensor) -> Tensor:
        ctx.field, ctx.parameters = field, tuple(field.parameters())
        states = [y]
        for _ in range(3):
            states.append(states[-1] + 0.1 * field(states[-1]))
        ctx.save_for_backward(*states)
        return states[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad, totals = grads[0], [torch.zeros_like(p) for p in ctx.parameters]
        for state in reversed(ctx.saved_tensors[:-1]):
            with torch.enable_grad():
                state = state.detach().requires_grad_()
                step = state + 0.1 * ctx.field(state)
            grad, *parts = torch.autograd.grad(step, [state, *ctx.parameters], grad)
            totals = [total + part for total, part in zip(totals, parts, strict=True)]
        return grad, None, *totals


class AdjointODE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Adjoint.apply(x, self.field, *self.field.parameters()))


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return build().double()


def test_local_function(x: Tensor) -> None:
    model = _made(LocalFunction)
    check_model(model, x, lambda: model(x))


def test_vmap_of_a_method(x: Tensor) -> None:
    model = _made(VmapOfMethod)
    check_model(model, x, lambda: model(x))


def test_replaced_forward(x: Tensor) -> None:
    model = _made(Wrapped)
    check_model(model, x, lambda: model(x))


def test_pre_forward_hook(x: Tensor) -> None:
    model = _made(PrefixByHook)
    check_model(model, x, lambda: model(x))


def test_outputs_that_call_a_head(x: Tensor) -> None:
    model = _made(lambda: nn.ModuleDict({"body": nn.Linear(4, 3), "head": nn.Linear(3, 2)}))
    model.forward = lambda x: torch.tanh(model["body"](x))  # type: ignore[method-assign, index]

    def head(hidden: Tensor) -> Tensor:
        return model["head"](hidden)  # type: ignore[index]

    check_model(model, x, lambda: head(model(x)), outputs=head)


def test_weights_in_a_list(x: Tensor) -> None:
    model = _made(WeightsInList)
    check_model(model, x, lambda: model(x), refusable=True)


def test_weight_in_a_partial(x: Tensor) -> None:
    torch.manual_seed(1)
    model = WeightInPartial()
    check_model(model, x.float(), lambda: model(x.float()), refusable=True, rtol=1e-5)


def test_weights_in_a_dictionary(x: Tensor) -> None:
    model = _made(WeightsByName)
    check_model(model, x, lambda: model(x), refusable=True)


def test_product_kept_in_a_dictionary(x: Tensor) -> None:
    model = _made(FoldedBias)
    check_model(model, x, lambda: model(x), refusable=True)


def test_product_cached_before_the_measurement(x: Tensor) -> None:
    model = _made(FoldedBias)
    model(x)
    check_model(model, x, lambda: model(x), refusable=True)


def test_parametrizations_cached_around_it(x: Tensor) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + weight**2

    model = _made(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    right = dense(model, lambda: model(x))
    with parametrize.cached():
        check_model(model, x, lambda: model(x), refusable=True)
        model(x)
        check_model(model, x, lambda: model(x), refusable=True)
    assert_right(NTK(model, x).trace(method="exact"), right.trace)


def test_backward_that_runs_the_module_again(x: Tensor) -> None:
    model = _made(AdjointODE)
    check_model(model, x, lambda: model(x), refusable=True)


@pytest.mark.parametrize("build", [LocalFunction, Wrapped, AdjointODE])
def test_a_snapshot_is_not_trained(build: Callable[[], nn.Module], x: Tensor) -> None:
    """A kernel that is first measured after a step of training is that of before."""
    model = _made(build)
    right = dense(model, lambda: model(x))
    ntk = unless_refused(lambda: NTK(model, x))
    if ntk is None:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert_right_or_refused(lambda: ntk.trace(method="exact"), right.trace)
    assert_right_or_refused(lambda: ntk.frobenius_norm(method="exact"), right.frobenius_norm)


@pytest.mark.parametrize("build", [LocalFunction, PrefixByHook])
def test_another_moment(build: Callable[[], nn.Module], x: Tensor) -> None:
    """``at`` measures what the model is by then, and leaves the first kernel as it was."""
    model = _made(build)
    before = dense(model, lambda: model(x))
    first = NTK(model, x)
    first.trace(method="exact")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    second = first.at(model)
    assert_right(second.trace(method="exact"), dense(model, lambda: model(x)).trace)
    assert_right(first.trace(method="exact"), before.trace)


def test_a_deep_copy_of_a_kernel(x: Tensor) -> None:
    model = _made(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    ntk, right = NTK(model, x), dense(model, lambda: model(x))
    ntk.measure(method="sketch", products=8)
    ntk.trace(method="exact")
    twin = unless_refused(lambda: copy.deepcopy(ntk))
    if twin is None:
        return
    for estimate in (twin.trace(method="exact"), twin.trace(method="hutch++", products=30)):
        assert_right(estimate, right.trace)


def test_a_pickled_kernel(x: Tensor) -> None:
    model = _made(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    ntk, right = NTK(model, x), dense(model, lambda: model(x))
    ntk.measure(method="sketch", products=8)
    twin = unless_refused(lambda: pickle.loads(pickle.dumps(ntk)))
    if twin is None:
        return
    assert_right(twin.trace(method="exact"), right.trace)
