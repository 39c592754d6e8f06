"""The arguments and options that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer

from ntkscope.apps.loading import first_line
from ntkscope.measure import METHODS
from ntkscope.report import METRICS

__all__ = ["METHODS", "parse_batch_dim", "parse_device", "parse_dtype", "parse_metrics"]

Factory: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FACTORY",
        help="A function that returns the model, or the model and its inputs, such as mypackage.models:make.",
    ),
]
Inputs: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        "-i",
        help="Inputs of the model: .npz, .npy, .safetensors or .pt. Several arrays are passed by name.",
    ),
]
Metrics: TypeAlias = Annotated[
    str, typer.Option(help="What to measure, separated by commas: " + ", ".join(METRICS) + ".")
]
Method: TypeAlias = Annotated[
    str, typer.Option(help="auto, exact, sketch, hutch++ ...; rhutch and fhutch for the trace alone.")
]
Products: TypeAlias = Annotated[
    int | None, typer.Option(help="Products to spend, in place of a tolerance.", min=1)
]
Rtol: TypeAlias = Annotated[
    float | None, typer.Option(help="Relative tolerance to reach; 0.01 if nothing is given.")
]
Seed: TypeAlias = Annotated[
    int, typer.Option(help="Of the probes, and of torch while the factory runs.", min=0)
]
Layer: TypeAlias = Annotated[
    str | None, typer.Option(help="Watch the output of this submodule, such as encoder.1.")
]
Output: TypeAlias = Annotated[
    str | None, typer.Option(help="Which part of what the model returns to watch: a number or a name.")
]
BatchDim: TypeAlias = Annotated[
    str, typer.Option(help="Axis of the inputs that holds the samples; none if samples are coupled.")
]
Dtype: TypeAlias = Annotated[
    str | None, typer.Option(help="Bring the model and the inputs to float64, float32, bfloat16 or float16.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
TrainMode: TypeAlias = Annotated[
    bool,
    typer.Option("--train-mode", help="Leave the model in training mode; by default it is put in eval mode."),
]
Json: TypeAlias = Annotated[
    Path | None,
    typer.Option("--json", help="Write the numbers to this file; - prints them instead of the table."),
]
Plot: TypeAlias = Annotated[
    Path | None, typer.Option("--plot", help="Draw the numbers to this file: .png, .pdf or .svg.")
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def parse_metrics(text: str) -> tuple[str, ...]:
    """``"trace,effective_rank"`` to names, in the order of tables.

    >>> parse_metrics("effective_rank, trace")
    ('trace', 'effective_rank')
    """
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - set(METRICS))
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or repr(text)
        raise ValueError(f"unknown metric {found}; choose from {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in names)


def parse_batch_dim(text: str) -> int | None:
    """``"0"`` to 0, ``"none"`` to ``None``."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--batch-dim must be a number or none, found {text!r}") from None


def parse_dtype(text: str | None) -> torch.dtype | None:
    """``"float64"`` to ``torch.float64``."""
    if text is None or text in _DTYPES:
        return None if text is None else _DTYPES[text]
    raise ValueError(f"unknown dtype {text!r}; choose from {', '.join(_DTYPES)}")


def parse_device(text: str) -> torch.device:
    """``"cpu"`` or ``"cuda"``, if it is there."""
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {text!r} cannot be used here: {first_line(error)}") from error
    return device
