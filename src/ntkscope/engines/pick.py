"""Which engine a model belongs to; none is loaded before it is needed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ntkscope.engines.base import Engine

__all__ = ["ENGINES", "make_engine"]

#: Framework and the module of its engine. The module offers ``accepts(model)``, whether a model is
#: its own, and ``make(model, inputs, **options)``, which returns an :class:`~ntkscope.engines.base.Engine`.
ENGINES: list[tuple[str, str]] = [
    ("torch", "ntkscope.engines.torch.make"),
]


def make_engine(model: Any, inputs: Any, **options: Any) -> Engine:
    """The engine of a model.

    Args:
        model: A model of one of the frameworks.
        inputs: What it is called with.
        **options: As :class:`ntkscope.NTK` takes them.

    Raises:
        TypeError: If no engine knows such models.
    """
    for framework, module in ENGINES:
        # A model of a framework cannot be before the framework is loaded.
        if framework in sys.modules:
            engine = importlib.import_module(module)
            if engine.accepts(model):
                made: Engine = engine.make(model, inputs, **options)
                return made
    raise TypeError(
        f"model must be a torch.nn.Module, found {type(model).__name__}; "
        "wrap a function in a module whose parameters it uses"
    )
