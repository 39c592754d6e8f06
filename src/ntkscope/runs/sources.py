"""Moments that come from several places: independent estimates, and a trace from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ntkscope.results import Estimate
from ntkscope.runs.moments import Moment, MomentSource, Monomial
from ntkscope.runs.statistics import Summary, combine_independent

__all__ = ["IndependentMoments", "TraceFromElsewhere", "TracesApart"]


class IndependentMoments:
    """Moments that were estimated one by one, by runs that share no randomness.

    Args:
        estimates: By moment.
    """

    def __init__(self, estimates: Mapping[Moment, Estimate]) -> None:
        self._estimates = estimates

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return self._estimates[moment].value

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ, its error to first order; a moment by itself keeps its samples."""
        estimates = [self._estimates[moment] for moment in powers]
        summaries = [_summary(estimate) for estimate in estimates]
        note = "; ".join(dict.fromkeys(e.note for e in estimates if e.note))
        if list(powers.values()) == [1]:
            return Monomial(summaries[0], estimates[0].samples, note)
        if any(summary.value == 0 for summary in summaries):
            return Monomial(Summary(0.0, None), note=note)
        return Monomial(combine_independent(summaries, list(powers.values())), note=note)


class TraceFromElsewhere:
    """The moments of a source, but for the trace of one kernel, which was found in another way.

    Args:
        rest: All other moments.
        trace: The trace, independent of them.
        kernel: Of which kernel.
    """

    def __init__(self, rest: MomentSource, trace: Estimate, kernel: int = 0) -> None:
        #: All other moments.
        self.rest = rest
        #: The trace.
        self.trace = trace
        #: Of which kernel.
        self.kernel = kernel
        self._moment = (kernel,)

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return self.trace.value if moment == self._moment else self.rest.value(moment)

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ, with the trace's error beside that of the rest."""
        power = powers.get(self._moment)
        if power is None:
            return self.rest.monomial(powers)
        trace = IndependentMoments({self._moment: self.trace}).monomial({self._moment: 1})
        others = {moment: p for moment, p in powers.items() if moment != self._moment}
        if not others and power == 1:
            return Monomial(trace.summary, trace.samples, trace.note, self.trace.method)
        rest = self.rest.monomial(others)
        summaries = [trace.summary, rest.summary]
        note = "; ".join(dict.fromkeys(note for note in (trace.note, rest.note) if note))
        source = f"trace by {self.trace.method}"
        if any(summary.value == 0 for summary in summaries):
            return Monomial(Summary(0.0, None), note=note, source=source)
        return Monomial(combine_independent(summaries, [power, 1]), note=note, source=source)


class TracesApart:
    """The traces of several kernels, each from a source of its own.

    Args:
        sources: Of kernel 0, 1 and so on; each knows its kernel as 0.
    """

    def __init__(self, sources: Sequence[MomentSource]) -> None:
        self._sources = sources

    def value(self, moment: Moment) -> float:
        """The trace of one kernel."""
        (kernel,) = moment
        return self._sources[kernel].value((0,))

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """A power of one trace."""
        (((kernel,), power),) = powers.items()
        return self._sources[kernel].monomial({(0,): power})


def _summary(estimate: Estimate) -> Summary:
    return Summary(estimate.value, estimate.stderr, estimate.degrees_of_freedom)
