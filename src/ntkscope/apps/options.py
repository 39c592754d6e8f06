"""The arguments and options that the commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ntkscope.words import METRICS, SPECTRAL, TITLES

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_by",
    "check_method",
    "parse_batch_dim",
    "parse_by",
    "parse_device",
    "parse_dtype",
    "parse_metrics",
]

#: What ``--by`` calls the parts of a kernel.
PARTS = ("layer", "parameter", "sample", "output")

#: What models can be brought to.
DTYPES = ("float64", "float32", "bfloat16", "float16")


def methods() -> dict[str, tuple[str, ...]]:
    """The methods of every metric; loaded when they are needed, which ``--help`` does not."""
    from ntkscope.measure import METHODS

    return METHODS


def _known_methods() -> list[str]:
    return sorted({name for names in methods().values() for name in names})


def _starting(names: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """What completes a word: the names that begin with it, after the last comma of a list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


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
    str,
    typer.Option(
        help="What to measure, separated by commas: " + ", ".join([*METRICS, *SPECTRAL]) + ".",
        autocompletion=_starting(lambda: [*METRICS, *SPECTRAL]),
    ),
]
By: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--by",
        help="Parts to show besides: layer, parameter, sample, output, or patterns of parameters' names "
        "separated by commas, such as '*.attn.*,*.mlp.*'.",
        autocompletion=_starting(lambda: PARTS),
    ),
]
PairMetrics: TypeAlias = Annotated[
    str,
    typer.Option(
        help="What to measure, separated by commas: " + ", ".join(TITLES) + ".",
        autocompletion=_starting(lambda: list(TITLES)),
    ),
]
Metric: TypeAlias = Annotated[
    str,
    typer.Option(
        help="trace, frobenius_norm, effective_rank, or measure: all.",
        autocompletion=_starting(lambda: [*METRICS, "measure"]),
    ),
]
Method: TypeAlias = Annotated[
    str,
    typer.Option(
        help="auto, exact, sketch, hutch++ ...; rhutch and fhutch for the trace alone.",
        autocompletion=_starting(_known_methods),
    ),
]
Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="Parameters: .safetensors, or a state dict in .pt, .pth, .ckpt or .bin."
    ),
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
    str | None,
    typer.Option(
        help="Bring the model and the inputs to float64, float32, bfloat16 or float16.",
        autocompletion=_starting(lambda: DTYPES),
    ),
]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
Memory: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What one step of work may take, such as 4GiB; 1 GiB, or a quarter of what is free, by default."
    ),
]
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


def parse_metrics(text: str, known: Sequence[str] = METRICS) -> tuple[str, ...]:
    """``"trace,effective_rank"`` to names, in the order of tables.

    >>> parse_metrics("effective_rank, trace")
    ('trace', 'effective_rank')
    """
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - set(known))
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or repr(text)
        raise ValueError(f"unknown metric {found}; choose from {', '.join(known)}")
    return tuple(name for name in known if name in names)


def check_method(method: str, metrics: Sequence[str]) -> None:
    """A method must know all that is asked for, before anything is loaded."""
    known = methods()
    if method not in _known_methods():
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(_known_methods())}")
    spectral = [metric for metric in metrics if metric in SPECTRAL]
    if spectral and method not in ("auto", "exact"):
        raise ValueError(
            f"method {method!r} gives no {SPECTRAL[spectral[0]]}; choose from auto, exact, or leave "
            f"{spectral[0]} out of --metrics"
        )
    joint = metrics[0] if len(metrics) == 1 and metrics[0] in METRICS else "measure"
    if method not in known[joint]:
        alone = [metric for metric in METRICS if method in known[metric]]
        raise ValueError(
            f"method {method!r} is for {', '.join(alone)} alone; add --metrics {alone[0]}"
            f", or choose from {', '.join(known[joint])}"
        )


def check_by(by: str | None, method: str, metrics: Sequence[str]) -> None:
    """There must be parts of this name, of a metric that has parts, by a method that gives them."""
    if by is None:
        return
    if by not in PARTS and not set(by) & set("*?["):
        raise ValueError(
            f"unknown --by {by!r}; choose from {', '.join(PARTS)}, or give patterns of parameters' names "
            f"such as '{by}*'"
        )
    if not set(metrics) & set(METRICS):
        raise ValueError(f"--by splits {', '.join(METRICS)}; add one of them to --metrics, or leave it out")
    if method not in ("auto", "exact", "per-sample"):
        raise ValueError(f"method {method!r} gives no parts; choose from auto, exact, per-sample")


def parse_by(text: str) -> str | list[str]:
    """``"layer"`` to itself, ``"*.attn.*, *.mlp.*"`` to patterns."""
    return text if text in PARTS else [part.strip() for part in text.split(",") if part.strip()]


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
    import torch

    if text is None:
        return None
    if text not in DTYPES:
        raise ValueError(f"unknown dtype {text!r}; choose from {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, text)
    return found


def parse_device(text: str) -> torch.device:
    """``"cpu"`` or ``"cuda"``, if it is there."""
    import torch

    from ntkscope.apps.loading import first_line

    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {text!r} cannot be used here: {first_line(error)}") from error
    return device
