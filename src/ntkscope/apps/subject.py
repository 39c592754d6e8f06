"""The model that a command is about, and its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ntkscope import NTK
from ntkscope.apps.factory import build_model
from ntkscope.apps.loading import cast_inputs, load_checkpoint, load_inputs, map_tensors, one_line
from ntkscope.apps.options import parse_batch_dim, parse_device, parse_dtype
from ntkscope.apps.processes import join, local_device, own_share
from ntkscope.errors import ProcessLostError

__all__ = ["Subject", "describe"]


@dataclass(frozen=True)
class Subject:
    """A model and how to look at it, in the words of the command line.

    Attributes:
        factory: ``package.module:factory``.
        inputs: File of inputs, if the factory returns none.
        layer: Submodule to watch.
        output: Number or name of the part of the output to watch.
        batch_dim: A number, or ``"none"``.
        dtype: To bring the model and its inputs to.
        device: To bring them to.
        seed: Of torch while the factory runs.
        train_mode: Leave the model in training mode.
        memory: What one step of work may take.
    """

    factory: str
    inputs: Path | None
    layer: str | None
    output: str | None
    batch_dim: str
    dtype: str | None
    device: str
    seed: int
    train_mode: bool
    memory: str | None = None

    def kernels(self, checkpoints: Sequence[Path | None]) -> list[NTK]:
        """The model's kernel at each checkpoint (``None``: as the factory made it)."""
        return [kernel for _, kernel in self.moments(checkpoints)]

    def moments(self, checkpoints: Sequence[Path | None]) -> Iterator[tuple[torch.nn.Module, NTK]]:
        """The model, which is the same one every time, and its kernel at each checkpoint."""
        batch_dim, dtype, device = (
            parse_batch_dim(self.batch_dim),
            parse_dtype(self.dtype),
            parse_device(self.device),
        )
        given = None if self.inputs is None else load_inputs(self.inputs)
        model, own = build_model(self.factory, self.seed)
        inputs = own if given is None else given
        if inputs is None:
            raise ValueError(f"{self.factory} returned no inputs; name a file of them with --inputs")
        group, device = join(device), local_device(device)
        inputs = own_share(inputs, batch_dim)
        model = model.to(device, dtype).train(model.training and self.train_mode)
        inputs = cast_inputs(inputs, model, device)
        first: NTK | None = None
        for checkpoint in checkpoints:
            if checkpoint is not None:
                load_checkpoint(model, checkpoint)
            kernel = self._kernel(model, inputs, batch_dim, first, group)
            first = first or kernel
            yield model, kernel

    def _kernel(
        self,
        model: torch.nn.Module,
        inputs: Any,
        batch_dim: int | None,
        first: NTK | None,
        group: str | None,
    ) -> NTK:
        pick = None if self.output is None else _Pick(self.output)
        try:
            if first is not None:
                return first.at(model)
            return NTK(
                model,
                inputs,
                outputs=pick,
                layer=self.layer,
                batch_dim=batch_dim,
                memory=self.memory,
                group=group,
            )
        except (ValueError, TypeError, ProcessLostError):
            raise
        except Exception as error:
            raise ValueError(
                f"the model failed on the inputs ({_shapes(inputs)}): {one_line(error)}"
            ) from error


@dataclass(frozen=True)
class _Pick:
    """Picks a part of what a model returns, by number or name."""

    key: str

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            raise ValueError(f"--output {self.key}: the model returned one tensor; leave --output out")
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
            return value[int(self.key)]
        with contextlib.suppress(KeyError, IndexError, TypeError):
            return value[self.key]
        raise ValueError(f"--output {self.key}: the model returned a {type(value).__name__} without it")


def _shapes(inputs: Any) -> str:
    parts: list[str] = []
    for name, value in inputs.items() if isinstance(inputs, dict) else [("", inputs)]:
        tensors: list[torch.Tensor] = []
        map_tensors(tensors.append, value)
        parts += [f"{name} {tuple(tensor.shape)} {tensor.dtype}".strip() for tensor in tensors]
    return ", ".join(parts)


def describe(kernel: NTK) -> str:
    """A kernel's sizes in one line."""
    shape = "×".join(map(str, kernel.output_shape)) or "scalar"
    dtype = str(kernel.dtype).removeprefix("torch.")
    return f"state {shape} (n={kernel.n:,}), {kernel.n_params:,} parameters, {dtype}, {kernel.device}"
