"""From ``package.module:factory`` to a model."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ntkscope.apps.loading import LoadingError, kind_of, one_line

__all__ = ["build_model"]


def build_model(reference: str, seed: int = 0) -> tuple[nn.Module, Any | None]:
    """Calls a factory, with its random initialisation fixed by the seed.

    Args:
        reference: ``package.module:factory``, found with the current directory on ``sys.path``.
        seed: Of torch's generator while the factory runs; the caller's generator is left as it was.

    Returns:
        The model, and its inputs if the factory returned them too.

    Raises:
        LoadingError: If the factory cannot be found, fails, or returns something else.
    """
    factory = _find_factory(reference)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:
        raise LoadingError(f"the factory {reference} failed: {one_line(error)}{_place(error)}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise LoadingError(
            f"the factory {reference} returned {kind_of(made)}, expected a torch.nn.Module "
            "or a pair (module, inputs)"
        )
    return model, inputs


def _find_factory(reference: str) -> Callable[[], Any]:
    module_name, colon, path = reference.partition(":")
    if not (module_name and colon and path):
        raise LoadingError(
            f"expected package.module:factory, found {reference!r}; "
            "for a function make() in models.py write models:make"
        )
    if module_name.endswith(".py") or os.sep in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise LoadingError(f"expected a module, found the file {module_name!r}; write {dotted}:{path}")
    found: Any = _import(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            public = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            offer = f"; it has {', '.join(sorted(public)[:12])}" if public else ""
            raise LoadingError(f"module {module_name!r} has no attribute {path!r}{offer}")
        found = getattr(found, name)
    if not callable(found):
        raise LoadingError(
            f"{reference} is {kind_of(found)}, expected a function without arguments that returns a model"
        )
    return found


def _import(name: str) -> Any:
    """The module, with the current directory first on the path."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            message = f"no module named {name!r}; looked in {here} and in the installed packages"
        else:
            message = f"module {name!r} does not import: {one_line(error)}{_place(error)}"
        raise LoadingError(message) from error
    except Exception as error:
        raise LoadingError(f"module {name!r} does not import: {one_line(error)}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Where in the user's own code it happened."""
    if isinstance(error, SyntaxError):
        return ""
    here = Path.cwd()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(here)]
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
