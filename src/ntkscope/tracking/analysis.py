"""One call for one moment: four numbers, the layers, the spectrum and the kernel's map, as a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ntkscope.fingerprints import Fingerprint
from ntkscope.ntk import NTK
from ntkscope.results import Cost, Estimate
from ntkscope.tracking.metrics import Moment, numbers, target_alignment
from ntkscope.tracking.modes import evaluating
from ntkscope.tracking.moment import Analysis
from ntkscope.tracking.settings import sizes, versions
from ntkscope.tracking.targets import Targets

__all__ = ["analyze"]

#: The largest state whose eigenvalues are found, and the most samples of the map.
MOST_ROWS, MOST_SAMPLES = 2048, 48

#: Random signs of every sample, for the layers' numbers.
_PROBES = 4


def analyze(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    rtol: float = 0.01,
    seed: int = 0,
    outputs: Callable[[Any], Any] | None = None,
    layer: str | None = None,
    batch_dim: Any = 0,
) -> Analysis:
    """Everything worth a first look at a model's kernel; ``.save("page.html")`` shows it.

    The model is measured in evaluation mode, and left as it was.

    Args:
        model: The module.
        inputs: One batch.
        targets: y of the inputs: numbers of the state's shape, or classes.
        rtol: Relative standard error of trace, norm and effective rank.
        seed: Of the probes.
        outputs: As of :class:`ntkscope.NTK`.
        layer: As of :class:`ntkscope.NTK`.
        batch_dim: As of :class:`ntkscope.NTK`.

    Returns:
        The numbers; the layers and the map of up to 48 samples where samples are independent; all
        eigenvalues up to n = 2,048.

    Raises:
        TypeError: As :class:`ntkscope.NTK`.
        ValueError: As :class:`ntkscope.NTK`, and for targets that do not fit.

    >>> import torch
    >>> found = analyze(nn.Linear(3, 2), torch.eye(3), targets=torch.tensor([0, 1, 0]))
    >>> list(found.metrics), list(found.layers), found.eigenvalues.shape
    (['trace', 'frobenius_norm', 'effective_rank', 'target_alignment'], ['self'], (6,))
    """
    start = time.perf_counter()
    with evaluating(model):
        kernel = NTK(model, inputs, outputs=outputs, layer=layer, batch_dim=batch_dim)
        given = None if targets is None else Targets.of(targets, kernel)
        pulls: Mapping[str, float] = {} if given is None else given.pull(kernel, model)
        measured = kernel.measure(rtol=rtol, seed=seed, progress=False)
        metrics = dict(measured.estimates)
        if pulls:
            metrics["target_alignment"] = target_alignment(
                pulls[""], metrics["frobenius_norm"], Cost(1, 1, 0)
            )
        notes: list[str] = []
        layers: Mapping[str, Mapping[str, Estimate]] = {}
        cosines, order, classes, eigenvalues = None, None, None, None
        try:
            layers = _layers(kernel.fingerprint(_PROBES, seed, "layer"), pulls)
            cosines, order, classes = _map(kernel, seed, given)
        except ValueError as error:  # coupled samples, or too little memory
            notes.append(f"what is found sample by sample is left out: {error}")
        if kernel.n <= MOST_ROWS:
            eigenvalues = kernel.spectrum("exact").eigenvalues
        else:
            notes.append(f"the spectrum is left out: n = {kernel.n:,} is more than {MOST_ROWS:,}")
    spent = kernel.cost
    return Analysis(
        metrics,
        layers,
        eigenvalues,
        cosines,
        order,
        classes,
        {"model": type(model).__name__, **sizes(kernel), "seed": seed, **versions()},
        tuple(notes),
        Cost(spent.products, spent.vjps, spent.jvps, time.perf_counter() - start),
    )


def _layers(fingerprint: Fingerprint, pulls: Mapping[str, float]) -> Mapping[str, Mapping[str, Estimate]]:
    names = ("target_alignment", "trace")
    return {
        layer: numbers(names, Moment(fingerprint[layer], pull=pulls.get(layer), pull_cost=Cost(1, 1, 0)))
        for layer in fingerprint.layers
    }


def _map(
    kernel: NTK, seed: int, targets: Targets | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Cosines of some samples' gradients, which samples those are, and their classes."""
    between = kernel.partial_trace("batch", rtol=0.05, seed=seed, progress=False).values
    batch = len(between)
    order = np.linspace(0, batch - 1, min(batch, MOST_SAMPLES)).round().astype(np.int64)
    classes = None
    if targets is not None and targets.classes is not None and targets.classes.shape == (batch,):
        order = order[np.argsort(targets.classes[order], kind="stable")]
        classes = targets.classes[order]
    scale = np.sqrt(np.diag(between))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines: NDArray[np.float64] = between / np.outer(scale, scale)
    return cosines[np.ix_(order, order)], order, classes
