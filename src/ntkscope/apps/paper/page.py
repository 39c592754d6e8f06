"""The page of documentation: every number on it is read from the measurements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ntkscope import report
from ntkscope.apps.paper.analysis import (
    TOLERANCES,
    Behind,
    behind,
    best_speedup,
    falling,
    median_speedup,
    time_to,
)
from ntkscope.apps.paper.comparison import OURS_TRACE, PUBLISHED, published_rows, speedup_words
from ntkscope.apps.paper.experiments import METHOD_NAMES, PAPER_METHODS
from ntkscope.apps.paper.store import Results
from ntkscope.apps.paper.table import Block, blocks, markdown
from ntkscope.apps.paper.words import (
    TITLES,
    count,
    duration,
    error_words,
    factor,
    machine_words,
)

__all__ = ["page", "readme_table"]

_HEAD = """# The paper's experiments

arXiv 2511.10796 introduced Hutch++, RHutch and FHutch for tangent kernels. Its three experiments are run
again here: the same models, inputs and seeds, the same estimators spending their products as its code does,
and this library's methods on the same axes. All times are of one machine, repetition by repetition, the
methods in turn, so that what disturbs one disturbs all.

{machine}

    ntkscope paper all            # the whole run; stopped, it goes on where it was
    ntkscope paper all --quick    # a look, in minutes
    ntkscope paper all --redraw   # figures and tables from the raw data

The raw measurements are in `results/paper/measurements.csv`; this page and its figures are made from them by
`python scripts/paper_page.py`.
"""

_HOW = """## How it is measured

- **Their methods**: m counts probes asked for. Hutch++ puts m/6 into its sketch and half of the others into
  the residual, about 0.75 m NTK products; RHutch and FHutch run m one-sided products, m/6 of them with
  orthonormal signs. Products run in blocks under `vmap`, as all products of this library do. The first
  product of a kernel, which records the forward pass, is not counted.
- **Ours**: every run has a new kernel. Finding the structure of the samples is construction (last row of
  each experiment in *Every exact way*); what follows it is counted.
- **Exact by n NTK products**: where the table says so, a part of the columns is run, and its time is scaled.
- **Figure 1, solid**: the paper's rule. In every repetition each method reaches an accuracy at its first
  budget with such an error, and the quickest method counts: chosen knowing the truth, and lucky where many
  methods and budgets are tried. **Dashed**: the quickest budget whose *median* error is within it, which
  luck does not help. **Points**: `trace(rtol=...)`, which knows no truth and stops by its error bar.
- **Figure 4**: the paper measures norm, alignment and effective rank in separate Hutch++ runs, with one to
  six NTK products a probe; one run of ours gives all three for both kernels, and the whole of its time is
  drawn in every panel. The trace inside its effective rank comes by structure.
- **Errors** are relative to the exact value in float64; everything is measured in float32.
"""


def page(results: Results) -> str:
    """The whole page as Markdown."""
    present = [name for name in TITLES if name in results.experiments()]
    parts = [_HEAD.format(machine=machine_words(results))]
    if {"mlp", "gru"} <= set(present):
        parts.append(_figure("fig1", "Figure 1: speed-up against accuracy", _speedups(results)))
    for figure, experiment in (("fig2", "mlp"), ("fig3", "gru")):
        if experiment in present:
            title = f"Figure {figure[-1]}: the trace of the {TITLES[experiment]}"
            parts.append(_figure(figure, title, _trace_words(results, experiment)))
    if "mnist" in present:
        title = "Figure 4: norm, alignment and effective rank"
        parts.append(_figure("fig4", title, _kernel_words(results)))
    parts.append(_HOW)
    parts += [f"## {block.title}\n\n{markdown(block)}" for block in blocks(results)]
    return "\n".join(parts)


def _figure(name: str, title: str, lines: Iterator[str]) -> str:
    words = "\n".join(lines)
    return f"## {title}\n\n![{title}](images/paper/{name}.png)\n\n{words}\n"


def _speedups(results: Results) -> Iterator[str]:
    heads = ("", *(f"{100 * (1 - tolerance):.5g}%" for tolerance in TOLERANCES))
    rows = []
    for experiment in ("mlp", "gru"):
        name = TITLES[experiment]
        published = PUBLISHED[experiment].speedups
        rows.append((f"{name}, published", *(published[tolerance] for tolerance in TOLERANCES)))
        for words, methods in (("the paper's methods here", PAPER_METHODS), ("this library", OURS_TRACE)):
            cells = (speedup_words(results, experiment, tolerance, methods) for tolerance in TOLERANCES)
            rows.append((f"{name}, {words}", *cells))
            steady = median_speedup(results, experiment, np.array(TOLERANCES), methods)
            cells = (factor(value) if np.isfinite(value) else "not reached" for value in steady)
            rows.append((f"{name}, {words}, by median error", *cells))
    yield markdown(Block("", heads, rows))
    for experiment in ("mlp", "gru"):
        yield f"**{TITLES[experiment]}.** {_where_behind(results, experiment)}\n"


def _where_behind(results: Results, experiment: str) -> str:
    """In which part of Figure 1 the paper's curve lies above ours, by both rules."""
    tolerances = np.logspace(-2, -5, 31)
    rules = {
        "best of each repetition": [
            best_speedup(results, experiment, tolerances, methods).median
            for methods in (OURS_TRACE, PAPER_METHODS)
        ],
        "best by median error": [
            np.nan_to_num(median_speedup(results, experiment, tolerances, methods))
            for methods in (OURS_TRACE, PAPER_METHODS)
        ],
    }
    sentences = []
    for rule, (ours, theirs) in rules.items():
        lost = tolerances[theirs > ours]
        reached = theirs > 0
        if not len(lost):
            ratio = ours[reached] / theirs[reached]
            how = (
                f", {factor(float(ratio.min()))} to {factor(float(ratio.max()))} as fast"
                if len(ratio)
                else ""
            )
            sentences.append(f"By the {rule}, ours lies ahead at every accuracy{how}.")
        else:
            ratio = (theirs / np.maximum(ours, 1e-12))[theirs > ours].max()
            first, last = error_words(float(lost.max())), error_words(float(lost.min()))
            span = f"between errors of {first} and {last}" if len(lost) > 1 else f"at an error of {first}"
            sentences.append(
                f"By the {rule}, the paper's best lies ahead of ours at {len(lost)} of {len(tolerances)} "
                f"accuracies, {span}, by up to {factor(float(ratio))}."
            )
    return " ".join(sentences)


def _trace_words(results: Results, experiment: str) -> Iterator[str]:
    for method in ("rhutch", "fhutch"):
        curve = results.curve(experiment, method, "trace")
        if curve is not None:
            slope = f"m^{falling(curve):.2f}"
            yield f"- {METHOD_NAMES[method]}: the median error falls as {slope} (1/√m would be m^-0.50)."
    curve = results.curve(experiment, "hutch++", "trace")
    if curve is not None:
        target = time_to(curve, 1e-6)
        smallest = float(np.nanmin(np.nanmedian(curve.errors, axis=1)))
        if target is not None:
            yield f"- Hutch++: below 1e-6 at m = {target.setting:,.0f}, in {duration(target.seconds)}."
        else:
            yield f"- Hutch++: down to {error_words(smallest)} with the budgets run."
    for error in (2e-3, 1e-4):
        times = []
        for method in PAPER_METHODS:
            known = results.curve(experiment, method, "trace")
            target = time_to(known, error) if known else None
            reached = duration(target.seconds) if target else "not reached"
            times.append(f"{METHOD_NAMES[method]} {reached}")
        yield f"- The paper's methods to a median error of {error_words(error)}: {', '.join(times)}."
    exact = results.curve(experiment, "exact", "trace")
    if exact is not None:
        seconds, error = float(np.nanmedian(exact.seconds)), float(np.nanmedian(exact.errors))
        yield (
            f"- Exact by structure: {duration(seconds)} with an error of {error_words(error)} (float32), "
            f"{count(float(exact.vjps[0]), 'VJP')}."
        )
    yield f"- Of ours: {_points_words(behind(results, experiment, 'trace'))}"


def _kernel_words(results: Results) -> Iterator[str]:
    for metric in ("frobenius_norm", "alignment", "effective_rank"):
        name = report.TITLES[metric]
        yield f"- {name[0].upper()}{name[1:]}: {_points_words(behind(results, 'mnist', metric))}"


def _points_words(found: Behind) -> str:
    if not found.ahead:
        return (
            f"every one of the {found.points} points of the paper's curves is beaten by one of ours that is "
            "both quicker and at least as accurate."
        )
    listed = "; ".join(
        f"{METHOD_NAMES[point.method]} at m = {point.setting:,.0f} ({duration(point.seconds)}, "
        f"{error_words(point.error)})"
        for point in found.ahead
    )
    return (
        f"of the {found.points} points of the paper's curves, {len(found.ahead)} "
        f"{'is' if len(found.ahead) == 1 else 'are'} not beaten by one of ours that is both quicker and at "
        f"least as accurate: {listed}."
    )


def readme_table(results: Results) -> str:
    """The published figures beside ours, in short."""
    rows = [row[:4] for row in published_rows(results)]
    heads = ("quantity", "paper", "its methods here", "this library")
    return markdown(Block("", heads, rows)) + f"\n{machine_words(results)}\n"
