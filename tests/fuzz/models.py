"""From a seed to a model, its inputs and the way its user calls it."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fuzz.blocks_autograd import AUTOGRAD, COUPLED, LOW_PRECISION
from fuzz.blocks_flow import FLOW
from fuzz.blocks_habits import HABITS
from fuzz.blocks_layers import LAYERS, Block
from fuzz.blocks_weights import WEIGHTS

__all__ = ["Spec", "Subject", "build", "specify"]

WIDTH, OUTPUTS, WORDS = 4, 2, 6
SOURCES = (
    *("values", "values", "tokens", "padded tokens"),
    *("two inputs", "by name", "time first", "shared table"),
)
SINKS = ("mean", "last", "all", "dict", "tuple", "layer", "head outside")


@dataclass(frozen=True)
class Spec:
    """What a model is made of: enough to make it again, and to leave out parts of it.

    Attributes:
        seed: Of the weights and the inputs.
        source: Form of the inputs.
        blocks: Name and seed of every block.
        sink: Form of the outputs.
        batch: Samples.
        steps: Positions in a sample.
        budget: Bytes that NTK may work in; ``None`` for its own choice.
        mode: What is around the measurement: ``""``, ``"no_grad"`` or ``"inference"``.
    """

    seed: int
    source: str
    blocks: tuple[tuple[str, int], ...]
    sink: str
    batch: int
    steps: int
    budget: int | None = None
    mode: str = ""

    def __str__(self) -> str:
        parts = (self.mode, self.source, *(name for name, _ in self.blocks), self.sink)
        return " → ".join(part for part in parts if part)

    def around(self) -> AbstractContextManager[None]:
        """What the user has around the measurement."""
        made = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(self.mode, nullcontext)
        return made()

    def without(self, number: int) -> Spec:
        """The same without one block; the others keep their weights."""
        return replace(self, blocks=self.blocks[:number] + self.blocks[number + 1 :])


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its inputs.

    Attributes:
        model: The module.
        inputs: What NTK takes.
        call: Runs the module as its user does, and returns the state.
        options: Of NTK.
        rtol: To which an exact number is right.
    """

    model: nn.Module
    inputs: Any
    call: Callable[[], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    rtol: float = 1e-8


def specify(seed: int) -> Spec:
    """The model of a seed: one to four blocks, the plain ones more often than the others."""
    rng = random.Random(seed)
    kinds = (LAYERS, HABITS, WEIGHTS, FLOW, AUTOGRAD, COUPLED, LOW_PRECISION)
    chosen = rng.choices(kinds, weights=(6, 4, 3, 4, 3, 0.5, 0.3), k=rng.choice((1, 2, 2, 3, 3, 4)))
    names = tuple((rng.choice(sorted(kind)), rng.randrange(10**6)) for kind in chosen)
    batch, steps = rng.choice((1, 3, 4, 5, 12, 25)), rng.choice((2, 3))
    source, sink = rng.choice(SOURCES), rng.choice(SINKS)
    # A small budget cuts the batch and the probes into parts.
    budget = rng.choice((None, None, 20_000))
    mode = rng.choice(("", "", "", "", "no_grad", "inference"))
    return Spec(seed, source, names, sink, batch, steps, budget, mode)


def _block(name: str) -> Block:
    for kind in (LAYERS, HABITS, WEIGHTS, FLOW, AUTOGRAD, COUPLED):
        if name in kind:
            return kind[name]
    return LOW_PRECISION[name][0]


class Model(nn.Module):
    """A source, blocks, and a head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(spec.seed)
        padding = 0 if spec.source == "padded tokens" else None
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=padding) if "tokens" in spec.source else None
        blocks = []
        for name, seed in spec.blocks:
            torch.manual_seed(seed)
            blocks.append(_block(name)(WIDTH))
        self.blocks = nn.ModuleList(blocks)
        torch.manual_seed(spec.seed + 1)
        self.head = nn.Linear(WIDTH, OUTPUTS)
        self.sink, self.source = spec.sink, spec.source

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Any:
        if self.words is not None:
            x = self.words(x)
        if self.source == "time first":
            x = x.transpose(0, 1)
        if extra is not None:
            x = x * extra if self.source == "shared table" else x + extra[:, None]
        for block in self.blocks:
            x = block(x)
        if self.sink == "head outside":
            return x.mean(1)
        return self._picked(x)

    def _picked(self, x: Tensor) -> Any:
        y = self.head(x)
        if self.sink == "all":
            return y.transpose(0, 1) if self.source == "time first" else y
        pooled = y[:, -1] if self.sink == "last" else y.mean(1)
        if self.sink == "dict":
            return {"features": x, "logits": pooled}
        return (pooled, x) if self.sink == "tuple" else pooled


def _double(model: nn.Module) -> nn.Module:
    """In float64; complex parameters in complex128."""
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if "narrow" in name:
            continue
        wide = torch.cdouble if parameter.is_complex() else torch.double
        parameter.data = parameter.data.to(wide)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.double()
    return model


def _inputs(spec: Spec) -> tuple[Any, dict[str, Any]]:
    """The positional arguments by name, and NTK's options."""
    torch.manual_seed(spec.seed + 2)
    shape = (spec.steps, spec.batch) if spec.source == "time first" else (spec.batch, spec.steps)
    x = torch.randint(0, WORDS, shape) if "tokens" in spec.source else torch.randn(*shape, WIDTH).double()
    if spec.source in ("two inputs", "by name"):
        return {"x": x, "extra": torch.randn(spec.batch, WIDTH).double()}, {}
    if spec.source == "shared table":
        return {"x": x, "extra": torch.randn(spec.steps, WIDTH).double()}, {"batch_dim": (0, None)}
    return {"x": x}, {"batch_dim": 1} if spec.source == "time first" else {}


def _perturb(model: nn.Module, seed: int) -> None:
    """Other values of the parameters, as after some training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape).to(parameter.dtype))


def build(spec: Spec, *, trained: bool = False) -> Subject:
    """The model, made anew: the same spec gives the same numbers.

    Args:
        spec: What it is made of.
        trained: With perturbed parameters.
    """
    with torch.random.fork_rng():
        model = _double(Model(spec))
        arguments, options = _inputs(spec)
        if trained:
            _perturb(model, spec.seed + 3)
    if spec.budget is not None:
        options = {**options, "memory": spec.budget}
    pick: Callable[[Any], Tensor] = lambda y: y  # noqa: E731
    if spec.sink in ("dict", "tuple"):
        key: Any = "logits" if spec.sink == "dict" else 0
        pick = lambda y: y[key]  # noqa: E731
    elif spec.sink == "head outside":
        pick = model.head
    if spec.sink != "all":
        options = {**options, "outputs": pick}
    if spec.sink == "layer":
        options = {**options, "layer": "head", "outputs": lambda y: y.mean(1)}
    if spec.source == "by name":
        inputs: Any = arguments
    else:
        inputs = tuple(arguments.values()) if len(arguments) > 1 else arguments["x"]
    rtol = max([1e-8, *(LOW_PRECISION[name][1] for name, _ in spec.blocks if name in LOW_PRECISION)])
    return Subject(model, inputs, lambda: pick(model(**arguments)), options, rtol)
