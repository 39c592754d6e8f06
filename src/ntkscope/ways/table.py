"""Every way there is, one line each. Plans, ``auto`` and ``exact`` go through this list."""

from __future__ import annotations

from ntkscope.metrics import METRICS
from ntkscope.runs.nystrom import NystromRun
from ntkscope.runs.sketch import SketchRun
from ntkscope.ways.base import Way
from ntkscope.ways.exact import (
    Columns,
    ForwardProducts,
    OneHotSamples,
    ParameterGram,
    ReverseProducts,
    Rows,
    Tiles,
)
from ntkscope.ways.per_sample import PerSample, PerSampleForward, PerSampleGram
from ntkscope.ways.products import Gram, Hutchinson, HutchPlusPlus, OneSided, Shared

__all__ = ["WAYS", "methods_of"]

WAYS: list[Way] = [
    OneHotSamples(),
    ReverseProducts(),
    ForwardProducts(),
    Tiles(),
    Rows(),
    ParameterGram(),
    Columns(),
    PerSample(),
    PerSampleForward(),
    PerSampleGram(),
    Shared("sketch", SketchRun, automatic_for="products"),
    Shared("nystrom", NystromRun),
    HutchPlusPlus(),
    # Nyström spends every product on a probe; the sketch's power pays in squares of kernels.
    Shared("xnystrace", NystromRun, automatic_for="traces", traces_alone=True),
    Shared("xtrace", SketchRun, traces_alone=True),
    Hutchinson(),
    OneSided("rhutch", is_reverse=True, needs="reverse mode (Jᵀz)"),
    OneSided("fhutch", is_reverse=False, needs="forward mode (Ju)"),
    # The last one that "auto" takes: what is left where a model has no forward mode.
    Gram(),
]


def methods_of(quantity: str, *, models: bool = True) -> tuple[str, ...]:
    """The methods of a metric, of ``"measure"`` or of ``"measure_all"``.

    Args:
        quantity: A metric's name, or one of the two.
        models: Whether those that need a model are among them.

    >>> "per-sample" in methods_of("trace"), "per-sample" in methods_of("trace", models=False)
    (True, False)
    """
    of_products = quantity not in METRICS or any(len(moment) == 2 for moment in METRICS[quantity])
    names = [
        way.method
        for way in WAYS
        if way.serves(of_products)
        and (models or not way.needs_model)
        # As many separate runs as there are pairs are no shared work.
        and not (quantity == "measure_all" and way.method == HutchPlusPlus.method)
    ]
    return tuple(dict.fromkeys(["auto", "exact", *names]))
