"""What a run is that is kept in a file, so that no other one goes on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.errors import argument
from ntkscope.operators.probes import random_signs
from ntkscope.settings import Options
from ntkscope.ways.base import Problem
from ntkscope.ways.dense import on_host

__all__ = ["identity_of"]

_STREAM = 29
_SUMS = 4


def identity_of(problem: Problem, asked: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """What is measured, of what, and how far.

    Args:
        problem: The kernels.
        asked: What was asked for, in plain values.
        options: How far.

    Raises:
        ValueError: If a kernel is none whose work can be kept.
    """
    engines = problem.engines
    if engines is None or not all(getattr(engine, "keeps_work", False) for engine in engines):
        raise ValueError(
            f"{argument('resume')} is for kernels of models that are traced, on one process; leave it out "
            "for matrices, hooks and groups of processes"
        )
    found: dict[str, Any] = {key: json.loads(json.dumps(value)) for key, value in asked.items()}
    for name in ("rtol", "atol", "products", "max_products", "seed"):
        found[name] = getattr(options, name)
    for number, engine in enumerate(engines):
        of = f"of kernel {number}"
        with engine.session():
            found[f"inputs {of}"] = engine.inputs_digest()
            found[f"parameters {of}"] = {name: list(shape) for name, shape in engine.parameters.items()}
            found[f"dtype {of}"] = str(engine.dtype)
            found[f"state {of}"] = _sketch(on_host(engine.state).reshape(-1))
    return found


def _sketch(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """A few numbers that tell one state, and so the parameters, from another."""
    signs = random_signs(state.size, 0, _SUMS, seed=0, stream=_STREAM)
    return np.array([np.linalg.norm(state), *(state @ signs[:, j] for j in range(_SUMS))])
