"""Bounds that hold for certain: never broken, at any budget, seed or precision, and narrow in the end."""

from __future__ import annotations

import math

import pytest
import torch

from ntkscope import NTK, Estimate
from reference import alignment
from zoo import INDEPENDENT, Case, each

#: A sketch of these does not exhaust the kernel at once.
CASES = [case for case in INDEPENDENT if 12 <= case.shared().n <= 200]


@each(CASES)
def test_are_never_broken(case: Case) -> None:
    one, two = case.dense(0), case.dense(1)
    truths = {
        "frobenius_norm": one.frobenius_norm,
        "effective_rank": one.effective_rank,
        "alignment": alignment(one, two),
    }
    for dtype in (torch.float64, torch.float32):
        first, second = (case.ntk(seed, dtype) for seed in (0, 1))
        for products, seed in ((12, 0), (40, 1)):
            found = first.measure(
                [second], "sketch", products=products, seed=seed, trace_method="exact",
                metrics=("frobenius_norm", "effective_rank", "alignment"),
            )  # fmt: skip
            for name, truth in truths.items():
                estimate = found.alignment[0] if name == "alignment" else found[name]
                if estimate.stderr == 0:
                    continue
                assert estimate.bounds is not None, (name, products)
                low, high = estimate.bounds
                # The model in float32 has another kernel than in float64, by rounding.
                slack = (1e-13 if dtype == torch.float64 else 2e-5) * abs(truth)
                assert low - slack <= truth <= high + slack, (name, products, dtype, estimate.bounds, truth)


def wide() -> NTK:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 4)).double()
    return NTK(model, torch.randn(40, 20).double())


def test_close_in_as_the_sketch_grows() -> None:
    ntk = wide()
    truth = ntk.frobenius_norm(method="exact").value
    widths = []
    for products in (20, 60, 120, 150):
        found = ntk.measure(method="sketch", products=products, trace_method="exact")
        bounds = found.frobenius_norm.bounds
        assert bounds is not None
        assert bounds[0] <= truth <= bounds[1]
        widths.append((bounds[1] - bounds[0]) / truth)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.1 * widths[0]


def test_there_are_none_without_a_sketch_and_an_exact_trace() -> None:
    ntk = wide()
    assert ntk.effective_rank(method="sketch", products=40, trace_method="exact").bounds is not None
    for method, source in (
        ("sketch", None),
        ("sketch", "per-sample"),
        ("nystrom", "exact"),
        ("gram", "exact"),
    ):
        found = ntk.effective_rank(method=method, products=40, trace_method=source)  # type: ignore[arg-type]
        assert found.bounds is None, (method, source)
    assert ntk.effective_rank(method="exact").bounds is None
    assert ntk.frobenius_norm(method="sketch", products=40).bounds is None


def test_lie_where_the_metric_does() -> None:
    ntk = wide()
    found = ntk.measure([ntk], "sketch", products=40, trace_method="exact")
    for estimate, low, high in ((found.effective_rank, 1, ntk.n), (found.alignment[0], -1, 1)):
        assert estimate.bounds is not None
        assert low <= estimate.bounds[0] <= estimate.bounds[1] <= high


def test_are_kept_in_files() -> None:
    found = wide().effective_rank(method="sketch", products=40, trace_method="exact")
    data = found.to_dict()
    assert data["bounds"] == list(found.bounds or ())
    assert Estimate.from_dict(data) == found
    assert Estimate.from_dict({**data, "bounds": None}) != found
    del data["bounds"]
    assert Estimate.from_dict(data).bounds is None
    for wrong in ([1.0], [1.0, "2"], 3, [True, 2.0]):
        with pytest.raises(ValueError, match="expected two numbers or null"):
            Estimate.from_dict({**data, "bounds": wrong})
    assert all(math.isfinite(end) for end in found.bounds or ())
