"""Partial traces against dense kernels: every split of the axes, every way, error bars and results."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import linear_engine
from linear_engine import Layer
from ntkscope import NTK, PartialTrace
from ntkscope.engines import pick
from ntkscope.ways import partial as ways
from zoo import BY_NAME, ZOO, Case, each, paper_gru


def naive(kernel: np.ndarray, shape: tuple[int, ...], keep: tuple[int, ...]) -> np.ndarray:
    """P[a, a'] = Σ_c K[(a, c), (a', c)], index by index of the traced axes."""
    traced = [axis for axis in range(len(shape)) if axis not in keep]
    whole = kernel.reshape((*shape, *shape))
    order = [*keep, *traced]
    whole = whole.transpose([*order, *(len(shape) + axis for axis in order)])
    kept = [shape[axis] for axis in keep]
    total = np.zeros((int(np.prod(kept)),) * 2)
    for c in itertools.product(*(range(shape[axis]) for axis in traced)):
        part = whole[(slice(None),) * len(keep) + c]
        part = part[(slice(None),) * len(keep) + (slice(None),) * len(keep) + c]
        total += part.reshape(total.shape)
    return total


def _splits(axes: int) -> list[tuple[int, ...]]:
    return [keep for size in range(axes + 1) for keep in itertools.combinations(range(axes), size)]


@each(ZOO)
def test_exact_ones_are_those_of_the_dense_kernel(case: Case) -> None:
    ntk, kernel = case.shared(), case.dense().kernel.numpy()
    for keep in _splits(len(ntk.output_shape)):
        found = ntk.partial_trace(keep, method="exact")
        expected = naive(kernel, ntk.output_shape, keep)
        np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        assert found.is_exact
        assert found.trace.stderr == 0
        assert found.trace.value == pytest.approx(np.trace(kernel), rel=1e-9)


def test_axes_are_kept_in_the_order_they_are_named_in() -> None:
    case = BY_NAME["gru"]
    ntk, names = case.shared(), ("time", "batch", "unit")
    kernel = case.dense().kernel.numpy()
    found = ntk.partial_trace(("unit", "batch"), names, method="exact")
    np.testing.assert_allclose(found.values, naive(kernel, ntk.output_shape, (2, 1)), rtol=1e-9, atol=1e-12)
    assert (found.keep, found.kept_shape) == (("unit", "batch"), (4, 3))
    assert found.tensor().shape == (4, 3, 4, 3)
    again = ntk.partial_trace((-1, "batch"), method="exact")
    np.testing.assert_array_equal(again.values, found.values)
    assert again.keep == ("axis2", "batch")


def _sequence(seed: int = 0, **options: Any) -> NTK:
    """A state of shape (4, 30, 5): enough traced entries that few probes of signs are no exact way."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        x = torch.randn(4, 30, 3, dtype=torch.float64)
        torch.manual_seed(seed)
        return NTK(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5)).double(), x, **options)


# What is kept, by which method, of independent samples or not, and products of 12 probes.
ESTIMATES = [
    ((0,), "reverse", True, 12),
    ((0,), "forward", True, 12),
    ((1,), "forward", True, 12),
    ((2,), "reverse", True, 60),
    ((0, 2), "reverse", True, 60),
    ((2,), "reverse", False, 60),
    ((2,), "forward", False, 12),
]


@functools.cache
def _found(
    keep: tuple[int, ...], method: str, independent: bool, products: int
) -> tuple[list[PartialTrace], np.ndarray]:
    ntk = _sequence() if independent else _sequence(batch_dim=None)
    found = [ntk.partial_trace(keep, method=method, products=products, seed=seed) for seed in range(200)]
    return found, naive(ntk.to_dense().numpy(), ntk.output_shape, keep)


@pytest.mark.parametrize("case", ESTIMATES)
def test_estimates_are_unbiased_and_their_bars_cover(case: Any) -> None:
    """|z| < 4 of the mean of 200 seeds, and 95% intervals cover 91 to 99%."""
    found, truth = _found(*case)
    assert found[0].method == case[1]
    assert found[0].cost.vjps + found[0].cost.jvps == case[3]
    values = np.array([one.values for one in found])
    entries = values.reshape(len(found), -1)
    # All entries together, along directions that do not depend on them.
    along = np.random.default_rng(0).standard_normal((entries.shape[1], 5))
    projected, expected = entries @ along, truth.reshape(-1) @ along
    z = (projected.mean(0) - expected) / (projected.std(0, ddof=1) / np.sqrt(len(found)))
    assert np.abs(z).max() < 4
    inside = [(one.interval()[0] <= truth) & (truth <= one.interval()[1]) for one in found]
    assert 0.91 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("case", ESTIMATES)
def test_numbers_made_of_them_are_covered(case: Any) -> None:
    found, truth = _found(*case)
    trace, norm = np.trace(truth), np.linalg.norm(truth)
    expected = {"trace": trace, "frobenius_norm": norm, "effective_rank": (trace / norm) ** 2}
    for name, value in expected.items():
        estimates = [getattr(one, name) for one in found]
        z = (np.mean([e.value for e in estimates]) - value) / (
            np.std([e.value for e in estimates], ddof=1) / np.sqrt(len(found))
        )
        assert abs(z) < 4, name
        covered = np.mean([e.interval()[0] <= value <= e.interval()[1] for e in estimates])
        assert 0.91 <= covered <= 0.99, name


def test_signs_replaced_by_ones_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ones keep the terms between different traced entries; so no error bar would tell."""
    ntk = _sequence()
    kernel = ntk.to_dense().numpy()
    truth = naive(kernel, ntk.output_shape, (0,))
    monkeypatch.setattr(ways, "random_signs", lambda n, i, j, **_: np.ones((n, j - i), dtype=np.int8))
    broken = ntk.partial_trace(0, method="reverse", products=6).values
    with_ones = kernel.reshape(4, 150, 4, 150).sum((1, 3))
    np.testing.assert_allclose(broken, with_ones, rtol=1e-9)
    assert np.linalg.norm(broken - truth) > 5 * np.linalg.norm(truth)


def test_matrices_are_positive_up_to_their_error() -> None:
    found, _ = _found(*ESTIMATES[2])
    for one in found[:20]:
        assert np.linalg.eigvalsh(one.values)[0] >= -1e-9 * one.trace.value
        np.testing.assert_array_equal(one.values, one.values.T)


def test_alignments_share_probes() -> None:
    first, second = _sequence(0), _sequence(1)
    exact = [ntk.partial_trace("batch", method="exact") for ntk in (first, second)]
    truth = np.sum(exact[0].values * exact[1].values) / np.prod([np.linalg.norm(one) for one in exact])
    assert exact[0].alignment(exact[1]).value == pytest.approx(truth, rel=1e-9)
    assert exact[0].alignment(exact[1]).stderr == 0
    assert exact[0].alignment(exact[0].values).value == pytest.approx(1)
    drawn = [ntk.partial_trace("batch", method="reverse", products=60) for ntk in (first, second)]
    longer = second.partial_trace("batch", method="reverse", products=24)
    for other in (drawn[1], longer, exact[1], exact[1].values):
        found = drawn[0].alignment(other)
        assert found.stderr
        assert abs(found.value - truth) < 5 * found.stderr
    with pytest.raises(ValueError, match="keep the same axes of both"):
        exact[0].alignment(first.partial_trace("axis2"))


def test_to_a_tolerance() -> None:
    ntk = _sequence()
    truth = ntk.partial_trace("batch", method="exact")
    found = ntk.partial_trace("batch", method="forward", rtol=0.1)
    assert found.converged
    assert found.relative_stderr is not None
    assert 0 < found.relative_stderr < 0.1
    assert np.linalg.norm(found.values - truth.values) < 0.3 * np.linalg.norm(truth.values)
    # Signs that would cost every row are replaced by the rows.
    assert ntk.partial_trace("batch", method="reverse", rtol=1e-4).is_exact
    assert ntk.partial_trace("batch", rtol=1e-4).is_exact
    short = ntk.partial_trace("batch", method="forward", rtol=1e-3, max_products=20)
    assert not short.converged
    assert "max_products=20" in short.note


def test_the_numbers_do_not_depend_on_the_budget() -> None:
    whole = _sequence()
    small = _sequence(memory=1 << 18)
    for keep, method, products in (((0,), "reverse", 12), ((2,), "reverse", 60), ((1,), "forward", 12)):
        one, two = (ntk.partial_trace(keep, method=method, products=products) for ntk in (whole, small))
        np.testing.assert_allclose(one.values, two.values, rtol=1e-9, atol=1e-12)
    for keep in ((0,), (1,), (0, 2)):
        one, two = (ntk.partial_trace(keep, method="exact") for ntk in (whole, small))
        np.testing.assert_allclose(one.values, two.values, rtol=1e-9, atol=1e-12)
    tiny = _sequence(memory=1 << 10)
    with pytest.raises(ValueError, match="do not fit the memory budget together; use method='forward'"):
        tiny.partial_trace("batch", method="exact")
    assert tiny.partial_trace("batch", rtol=0.2).method == "forward"


def test_the_papers_network_over_units_time_and_samples() -> None:
    """Exact effective ranks, from every row of J; 2% of the matrix and of its effective rank."""
    model, inputs = paper_gru()
    ntk = NTK(model, inputs, outputs=lambda y: y[0], batch_dim=1)
    for keep, rank in (("batch", 7.104041), ("time", 7.908675)):
        found = ntk.partial_trace(keep, ("time", "batch", "unit"), rtol=0.02)
        assert found.effective_rank.value == pytest.approx(rank, rel=0.04)
        assert found.trace.value == pytest.approx(223056.46, rel=0.04)
        assert found.converged
        assert found.cost.vjps + found.cost.jvps < 1000


@pytest.mark.parametrize("keep", [(0,), (1,), (0, 1), ()])
@pytest.mark.parametrize("batch_dim", [0, None])
def test_another_engine(monkeypatch: pytest.MonkeyPatch, keep: tuple[int, ...], batch_dim: Any) -> None:
    monkeypatch.setattr(pick, "ENGINES", [*pick.ENGINES, linear_engine.ENGINE])
    generator = np.random.default_rng(0)
    layer = Layer(generator.standard_normal((4, 5)), True)
    ntk = NTK(layer, generator.standard_normal((6, 5)), batch_dim=batch_dim)
    truth = naive(ntk.to_dense(), (6, 4), keep)
    found = ntk.partial_trace(keep, method="exact")
    np.testing.assert_allclose(found.values, truth, rtol=1e-9, atol=1e-12)
    for method in ("reverse", "forward"):
        drawn = ntk.partial_trace(keep, method=method, products=4000)
        np.testing.assert_allclose(drawn.values, truth, rtol=0.15, atol=0.15 * np.abs(truth).max())


def test_written_down_and_read_back() -> None:
    ntk = _sequence()
    for found in (
        ntk.partial_trace("batch", method="exact"),
        ntk.partial_trace("axis2", method="forward", products=10),
    ):
        text = json.dumps(found.to_dict(), allow_nan=False)
        back = PartialTrace.from_dict(json.loads(text))
        assert back.to_dict() == found.to_dict()
        assert back.effective_rank == found.effective_rank
        np.testing.assert_array_equal(back.values, found.values)
        np.testing.assert_array_equal(np.asarray(back), found.values)
    with pytest.raises(ValueError, match="lacks the field 'kept_shape'"):
        PartialTrace.from_dict({k: v for k, v in found.to_dict().items() if k != "kept_shape"})


def test_for_people() -> None:
    exact = _sequence().partial_trace("batch", method="exact")
    assert repr(exact).startswith("partial trace (batch 4) exact, effective rank ")
    assert exact._repr_html_().startswith("<span>partial trace (batch 4)")
    drawn = _sequence().partial_trace("batch", method="reverse", products=10)
    assert "±" in repr(drawn)
    low, high = exact.interval()
    np.testing.assert_array_equal(low, high)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        exact.interval(1.0)
    two = _sequence().partial_trace("batch", method="reverse", products=2)
    assert two.effective_rank.stderr is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"keep": "unit"},
            ValueError,
            "no axis is named 'unit'; .* are batch, axis1, axis2",
        ),
        ({"keep": 3}, ValueError, "the state has no axis 3"),
        ({"keep": (0, "batch")}, ValueError, "names an axis twice"),
        ({"keep": 1.5}, TypeError, "not iterable|a name or a number"),
        ({"keep": (1.5,)}, TypeError, "an axis is a name or a number, found 1.5"),
        ({"names": ("a", "b")}, ValueError, "give 3 different names"),
        ({"names": "abc"}, TypeError, "names must be a text for every axis"),
        ({"method": "sketch"}, ValueError, "unknown method 'sketch' for partial_trace; choose one of 'auto'"),
        ({"method": "reverse", "products": 1}, ValueError, "at least 2 products"),
    ],
)
def test_errors_name_the_remedy(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _sequence().partial_trace(**arguments)


def test_no_forward_mode_is_no_end() -> None:
    case = BY_NAME["custom-backward"]
    ntk = case.shared()
    assert ntk.partial_trace(0, method="exact").is_exact
