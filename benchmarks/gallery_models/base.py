"""What the gallery knows of a model: how it is made, what it needs, and what was learned from it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GALLERY", "Model", "Parts", "entry"]

#: A model, its inputs, and what an NTK is told besides.
Parts = tuple[nn.Module, Any, dict[str, Any]]


@dataclass(frozen=True)
class Model:
    """One model of the gallery.

    Attributes:
        name: What it is called on the page.
        family: The page.
        make: The model and its inputs; keywords change its size.
        trap: What it is apt to go wrong by, and what is done about it.
        small: Keywords of a size whose Jacobian can be had row by row.
        package: What must be installed besides torch.
        coupled: Why its samples depend on one another, a part of the refusal; empty if they do not.
        shown: What the snippet shows before the function.
    """

    name: str
    family: str
    make: Callable[..., Parts]
    trap: str
    small: Mapping[str, Any]
    package: str = ""
    coupled: str = ""
    shown: tuple[Any, ...] = field(default=())

    @property
    def key(self) -> str:
        """Its name in commands and in the file of results."""
        return self.make.__name__

    def missing(self) -> str:
        """Why it cannot be made here; empty if it can."""
        try:
            if self.package:
                importlib.import_module(self.package)
        except (ImportError, RuntimeError) as error:
            return f"{self.package} cannot be imported: {str(error).splitlines()[0]}"
        return ""

    def build(self, *, small: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Parts:
        """The model with the parameters of a seed, on inputs that do not depend on it."""
        with torch.random.fork_rng():
            torch.manual_seed(1234)
            _, inputs, options = self.make(**(self.small if small else {}))
            torch.manual_seed(seed)
            model, _, _ = self.make(**(self.small if small else {}))
        return model.to(dtype), cast(inputs, dtype), options

    def snippet(self) -> str:
        """What a user copies."""
        parts = [inspect.getsource(part) for part in (*self.shown, self.make)]
        parts[-1] = parts[-1][parts[-1].index("def ") :].replace(" -> Parts", "")
        use = f"model, inputs, options = {self.key}()\nntk = NTK(model, inputs, **options)\nntk.trace()\n"
        body = "\n\n".join([*parts, use]).replace(": Any", "")
        return f"{_imports(body)}\n\n\n{body}"


def _imports(body: str) -> str:
    """What a snippet imports at its top."""
    homes = {
        "itertools": ("pairwise",),
        "torch": ("Tensor", "nn"),
        "torch.nn.utils": ("parametrizations", "prune"),
        "torch.nn.utils.rnn": ("pack_padded_sequence", "pad_packed_sequence"),
    }
    lines = []
    for home, names in homes.items():
        if used := [name for name in names if re.search(rf"(?<!\.)\b{name}\b", body)]:
            lines.append(f"from {home} import {', '.join(used)}")
    # Of the standard library first.
    standard = [line for line in lines if "torch" not in line]
    lines = [*standard, *[""] * bool(standard), "import torch", *lines[len(standard) :]]
    lines = [line for line in lines if "itertools" in line] + [
        line for line in lines if "itertools" not in line
    ]
    return "\n".join([*lines, "", "from ntkscope import NTK"])


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Every floating tensor of the inputs in another dtype."""
    if isinstance(value, dict):
        return {name: cast(item, dtype) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


#: By key, in the order of the pages.
GALLERY: dict[str, Model] = {}


def entry(name: str, family: str, trap: str, **more: Any) -> Callable[[Callable[..., Parts]], Any]:
    """Puts what a function makes into the gallery; the arguments are those of :class:`Model`."""

    def keep(make: Callable[..., Parts]) -> Callable[..., Parts]:
        GALLERY[make.__name__] = Model(name, family, make, trap, **more)
        return make

    return keep
