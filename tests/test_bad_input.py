"""Errors say what was found, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from zoo import BY_NAME, Function

X = torch.ones(4, 3)


def _model(run: Callable[..., Any] = lambda m, x: m.linear(x)) -> nn.Module:
    return Function(run, linear=nn.Linear(3, 2))


def _nan_parameter() -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    return model


def _frozen() -> nn.Module:
    return nn.Linear(3, 2).requires_grad_(False)


class _Counting(nn.Linear):
    """Its state is no buffer, so that no call is like the last."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


# One row for each way to go wrong when a kernel is made: arguments of NTK, error, its text.
MAKING: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no-module": (lambda: NTK(lambda x: x, X), TypeError, "must be a torch.nn.Module, found function; wrap"),
    "no-tensor": (
        lambda: NTK(_model(), [1, 2]),
        TypeError,
        "inputs hold no tensor, found list; pass a tensor",
    ),
    "empty-batch": (
        lambda: NTK(_model(), torch.ones(0, 3)),
        ValueError,
        "an input is empty.*at least one sample",
    ),
    "empty-state": (
        lambda: NTK(_model(lambda m, x: m.linear(x)[:0]), X),
        ValueError,
        "the state is empty, shape .0, 2.; pass at least one sample",
    ),
    "tuple-state": (
        lambda: NTK(_model(lambda m, x: (m.linear(x), x)), X),
        TypeError,
        r"the model returned a tuple of \(Tensor, Tensor\), expected one tensor.*outputs=lambda y: y\[0\]",
    ),
    "dict-state": (
        lambda: NTK(_model(lambda m, x: {"logits": m.linear(x)}), X),
        TypeError,
        r"the model returned a dict with keys \['logits'\], expected one tensor",
    ),
    "bad-outputs": (
        lambda: NTK(_model(), X, outputs=lambda y: [y]),
        TypeError,
        "outputs= or layer= picked a list of",
    ),
    "integer-state": (
        lambda: NTK(_model(lambda m, x: m.linear(x).argmax(1)), X),
        TypeError,
        "dtype torch.int64, expected a real floating one; watch the logits",
    ),
    "complex-state": (
        lambda: NTK(_model(lambda m, x: torch.fft.fft(m.linear(x))), X),
        TypeError,
        "dtype torch.complex64, expected a real floating one",
    ),
    "nan-inputs": (
        lambda: NTK(_model(), X / 0 * 0),
        ValueError,
        "8 of 8 entries that are NaN or infinite; check the inputs and the parameters",
    ),
    "nan-parameter": (
        lambda: NTK(_nan_parameter(), X),
        ValueError,
        "4 of 8 entries that are NaN or infinite",
    ),
    "infinite-state": (
        lambda: NTK(_model(lambda m, x: m.linear(x).exp() * torch.inf), X),
        ValueError,
        "8 of 8 entries that are NaN or infinite.*diverged training run",
    ),
    "boolean-state": (
        lambda: NTK(_model(lambda m, x: m.linear(x) > 0), X),
        TypeError,
        "dtype torch.bool, expected a real floating one",
    ),
    "no-state": (
        lambda: NTK(_model(lambda m, x: None), X),
        TypeError,
        "the model returned a NoneType, expected one tensor",
    ),
    "array-of-words": (
        lambda: NTK(_model(), np.array(["a", "b"])),
        TypeError,
        "inputs hold a NumPy array of <U1, expected numbers; encode",
    ),
    "a-dataset": (
        lambda: NTK(_model(), torch.utils.data.TensorDataset(X)),
        TypeError,
        r"inputs are a TensorDataset, expected a batch or a loader of batches; pass DataLoader\(dataset, ",
    ),
    "no-inputs": (lambda: NTK(_model(), ()), TypeError, "inputs hold no tensor, found tuple"),
    "no-parameter": (lambda: NTK(nn.Tanh(), X), ValueError, "no trainable parameter"),
    "nothing-trainable": (
        lambda: NTK(_frozen(), X),
        ValueError,
        "no trainable parameter.*set requires_grad=True",
    ),
    "dropout": (
        lambda: NTK(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)), X),
        ValueError,
        r"it is random \(dropout\?\); call model.eval\(\) first",
    ),
    "noise": (
        lambda: NTK(_model(lambda m, x: m.linear(x) + torch.randn(4, 2)), X),
        ValueError,
        "two evaluations of the model on the same inputs differ",
    ),
    "dropout-by-hand": (
        lambda: NTK(_model(lambda m, x: nn.functional.dropout(m.linear(x))), X),
        ValueError,
        "two evaluations of the model on the same inputs differ, so it is random",
    ),
    "random-slope": (
        lambda: NTK(nn.Sequential(nn.Linear(3, 8), nn.RReLU()), torch.randn(4, 3)),
        ValueError,
        r"it is random \(dropout\?\); call model.eval\(\) first",
    ),
    "recurrent-dropout": (
        lambda: NTK(nn.LSTM(3, 4, 2, dropout=0.5).train(), torch.ones(5, 2, 3), outputs=lambda y: y[0]),
        ValueError,
        r"dropout 0.5, so the model is random; call model.eval\(\) first",
    ),
    "attention-dropout": (
        lambda: NTK(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(2, 5, 4)),
        ValueError,
        r"call model.eval\(\) first",
    ),
    "no-such-layer": (
        lambda: NTK(nn.Sequential(nn.Linear(3, 2)), X, layer="encoder"),
        ValueError,
        "no submodule 'encoder'; its submodules are: 0",
    ),
    "layer-called-twice": (
        lambda: NTK(_model(lambda m, x: m.linear(x) + m.linear(2 * x)), X, layer="linear"),
        ValueError,
        "'linear' was called 2 times in one forward pass, expected once",
    ),
    "layer-never-called": (
        lambda: NTK(Function(lambda m, x: m.a(x), a=nn.Linear(3, 2), b=nn.Linear(3, 2)), X, layer="b"),
        ValueError,
        "'b' was called 0 times",
    ),
    "no-budget": (
        lambda: NTK(_model(), X, memory=0),
        ValueError,
        "memory must be a byte or more, found 0",
    ),
    "no-chunk": (lambda: NTK(_model(), X, chunk_size=0), ValueError, "must be positive"),
}


@pytest.mark.parametrize(("make", "error", "text"), MAKING.values(), ids=MAKING)
def test_a_kernel_that_cannot_be_made(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def _ntk() -> NTK:
    return BY_NAME["mlp"].shared()


def _other(rows: int = 5, dtype: torch.dtype = torch.float64) -> NTK:
    return NTK(nn.Linear(5, 3).to(dtype), torch.ones(rows, 5, dtype=dtype))


USING: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown-method": (
        lambda: _ntk().trace(method="hutch"),
        ValueError,
        "unknown method 'hutch' for trace; choose one of .*'hutch\\+\\+'",
    ),
    "method-of-another-metric": (
        lambda: _ntk().frobenius_norm(method="rhutch"),
        ValueError,
        "unknown method 'rhutch' for frobenius_norm",
    ),
    "unknown-measure-method": (
        lambda: _ntk().measure(method="x"),
        ValueError,
        "unknown method 'x' for measure",
    ),
    "unknown-metric": (
        lambda: _ntk().plan("rank"),
        ValueError,
        "unknown metric 'rank'; choose one of 'trace'",
    ),
    "budget-too-small": (
        lambda: _ntk().trace(method="hutch++", products=1),
        ValueError,
        "products=1 is too small: this method needs at least .* products",
    ),
    "no-products": (
        lambda: _ntk().trace(method="per-sample", products=0),
        ValueError,
        "products=0 is too small",
    ),
    "fractional-products": (lambda: _ntk().trace(products=2.5), TypeError, "products must be a whole number"),
    "negative-products": (
        lambda: _ntk().trace(method="rhutch", products=-3),
        ValueError,
        "products=-3 is too small",
    ),
    "boolean-products": (lambda: _ntk().trace(products=True), TypeError, "whole number, found True"),
    "no-tolerance": (lambda: _ntk().trace(method="rhutch", rtol=0), ValueError, "rtol must be positive"),
    "tolerance-not-a-number": (
        lambda: _ntk().trace(method="rhutch", rtol=float("nan")),
        ValueError,
        "rtol must be positive, found nan",
    ),
    "no-time": (lambda: _ntk().trace(method="rhutch", seconds=0), ValueError, "seconds must be positive"),
    "fractional-seed": (lambda: _ntk().trace(method="rhutch", seed=0.5), TypeError, "seed must be an int"),  # type: ignore[arg-type]
    "negative-seed": (lambda: _ntk().trace(products=5, seed=-1), ValueError, "seed.* must not be negative"),
    "bad-tolerance": (lambda: _ntk().trace(method="rhutch", rtol=-1), ValueError, "rtol must be positive"),
    "products-and-tolerance": (
        lambda: _ntk().trace(method="rhutch", products=5, rtol=0.1),
        ValueError,
        "pass either a fixed number of products or a tolerance",
    ),
    "short-vector": (
        lambda: _ntk() @ torch.ones(11),
        ValueError,
        r"expected a vector of shape \(12,\) or a block of columns \(12, k\), "
        r"since n=12; found shape \(11,\)",
    ),
    "row-of-columns": (lambda: _ntk() @ np.ones((3, 12)), ValueError, r"found shape \(3, 12\)"),
    "three-axes": (lambda: _ntk().vjp(torch.ones(12, 1, 1)), ValueError, r"found shape \(12, 1, 1\)"),
    "wrong-parameters": (lambda: _ntk().jvp(torch.ones(12)), ValueError, r"\(111,\) .*since p=111"),
    "other-size": (
        lambda: _ntk().alignment(_other()),
        ValueError,
        r"the other kernel has shape \(15, 15\), expected \(12, 12\).*use the same inputs and outputs",
    ),
    "other-dtype": (
        lambda: _ntk().measure([_other(4, torch.float32)]),
        ValueError,
        "torch.float64 on cpu and torch.float32 on cpu; bring both models to one dtype",
    ),
    "other-matrix": (lambda: _ntk().alignment(np.eye(3)), ValueError, r"shape \(3, 3\), expected \(12, 12\)"),
    "other-nothing": (lambda: _ntk().alignment("kernel"), ValueError, r"shape \(\), expected \(12, 12\)"),
    "per-sample-on-coupled": (
        lambda: BY_NAME["batch-norm-training"].shared().trace(method="per-sample"),
        ValueError,
        "per-sample methods do not apply: the model does not run on a single sample.*use method='auto'",
    ),
    "per-sample-on-coupled-states": (
        lambda: BY_NAME["batch-mean-subtracted"].shared().trace(method="per-sample"),
        ValueError,
        "do not apply: the state of a sample depends on the other samples.*differs by .*use method='auto'",
    ),
    "per-sample-on-coupled-gradients": (
        lambda: BY_NAME["coupled-in-the-gradient-alone"].shared().trace(method="per-sample"),
        ValueError,
        "do not apply: the gradients of single samples do not add up",
    ),
    "per-sample-without-axis": (
        lambda: BY_NAME["coupled-by-the-caller"].shared().trace(method="per-sample"),
        ValueError,
        "batch_dim=None says that they are coupled",
    ),
}


@pytest.mark.parametrize(("use", "error", "text"), USING.values(), ids=USING)
def test_a_request_that_cannot_be_met(use: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        use()


BATCH_DIMS: dict[str, tuple[Any, Any, str]] = {
    "no-such-axis": (X, 2, r"batch_dim=2 is not an axis of an input of shape \(4, 3\)"),
    "too-few": ((X, X), (0,), "batch_dim has 1 entries for 2 inputs"),
    "other-sizes": ((X, X), (0, 1), r"gives the inputs \[3, 4\] samples, expected one number"),
    "none-at-all": ((X, X), (None, None), r"gives the inputs \[\] samples"),
    "other-form": (X, (0, 0), "does not have the form of the inputs, a Tensor"),
    "other-names": ({"x": X}, {"y": 0}, "does not have the form of the inputs, a dict"),
}


@pytest.mark.parametrize(("inputs", "batch_dim", "text"), BATCH_DIMS.values(), ids=BATCH_DIMS)
def test_a_batch_axis_that_does_not_fit(inputs: Any, batch_dim: Any, text: str) -> None:
    model = _model(lambda m, *args, **named: m.linear([*args, *named.values()][0]))
    ntk = NTK(model, inputs, batch_dim=batch_dim)
    with pytest.raises(ValueError, match=text):
        ntk.trace(method="exact")


def test_a_module_that_cannot_be_copied_is_measured() -> None:
    class Lock(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copies")

    assert NTK(Lock(3, 2), X).trace("exact").value == NTK(nn.Linear(3, 2), X).trace("exact").value


def test_a_model_that_counts_its_calls_is_that_of_the_first_one() -> None:
    model = _Counting(3, 2)
    ntk = NTK(model, X)
    assert ntk.trace("exact").value == ntk.trace("exact").value > 0


def test_a_model_that_fails_says_so_in_its_own_words() -> None:
    def fail(m: Any, x: Tensor) -> Tensor:
        raise RuntimeError("the user's own error")

    with pytest.raises(RuntimeError, match="the user's own error"):
        NTK(_model(fail), X)
