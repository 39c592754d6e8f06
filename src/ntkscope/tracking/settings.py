"""What a log says about a run besides its numbers, in plain values."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ntkscope.ntk import NTK

__all__ = ["plain_config", "plain_number", "sizes", "versions", "whole_step"]


def sizes(kernel: NTK) -> dict[str, Any]:
    """The sizes of a kernel, and in what and where it is measured."""
    return {
        "n": kernel.n,
        "n_params": kernel.n_params,
        "output_shape": list(kernel.output_shape),
        "dtype": str(kernel.dtype).removeprefix("torch."),
        "device": str(kernel.device),
    }


def versions() -> dict[str, str]:
    """Of the packages that the numbers come from."""
    from importlib.metadata import version

    return {
        "ntkscope": version("ntkscope"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a user says about a run; what JSON has no word for as a text."""
    return {str(name): value if _is_plain(value) else str(value) for name, value in config.items()}


def plain_number(value: Any) -> float:
    """A number of what a training loop hands over, such as its loss."""
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def whole_step(step: Any) -> int:
    """A number of steps, checked.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is negative.
    """
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"a step must be a whole number, found {step!r}; count optimiser steps")
    if step < 0:
        raise ValueError(f"a step must not be negative, found {step}; count from 0")
    return step


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))
