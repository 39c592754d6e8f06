"""How tests look inside a kernel: its samples, and one way by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntkscope import NTK
from ntkscope.engines.base import Refusal
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.progress import ProgressListener
from ntkscope.ways.base import Problem
from ntkscope.ways.table import WAYS


def structure(ntk: NTK) -> SampleJacobian:
    """The per-sample Jacobian, which must be there."""
    samples = ntk.engine.samples()
    assert not isinstance(samples, Refusal), samples.reason
    jacobian: SampleJacobian = samples.jacobian  # type: ignore[attr-defined]
    return jacobian


def refusal(ntk: NTK) -> str:
    """Why there is no graph of one sample; empty if there is. Hooks may still be there in its place."""
    return str(getattr(ntk.engine.samples(), "reason", ""))


def moments_by(name: str, kernels: Sequence[NTK]) -> Any:
    """Traces and inner products of kernels by one of the exact ways."""
    count = len(kernels)
    pairs = tuple((a, b) for a in range(count) for b in range(a, count))
    problem = Problem(tuple(kernels), (*((a,) for a in range(count)), *pairs), 0.01)
    way = next(way for way in WAYS if way.name == name)
    run = way.start(problem, 0, ProgressListener()).run
    run.grow(run.minimum)
    return run.result()
