"""The metrics of a kernel, one by one, all from shared work, or kept to be compared later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from ntkscope import measure
from ntkscope.engines.base import Engine
from ntkscope.fingerprints import Fingerprint
from ntkscope.fingerprints.take import take_fingerprint
from ntkscope.metrics import STANDARD, check_metrics
from ntkscope.results import Estimate, Measurement, named_kernels
from ntkscope.settings import Limits, Method, Options, TraceMethod, TraceSource, options_of
from ntkscope.variants.centered import centered_alignment
from ntkscope.variants.population import population_effective_rank
from ntkscope.verbs.others import checked_other

__all__ = ["MetricVerbs"]


class MetricVerbs:
    """What is measured of a kernel as a whole."""

    engine: Engine

    def trace(
        self,
        method: TraceMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """Tr K = ‖J‖²_F.

        Args:
            method: ``"exact"``: one-hot probes, s a sample where samples are independent (s outputs a
                sample), else n VJPs or p JVPs. ``"per-sample"``: random probes for every sample on its
                own, one batched VJP a probe. ``"per-sample-forward"``: its twin in forward mode, with random
                parameter directions for every sample. ``"hutch++"``, ``"rhutch"`` (reverse mode alone),
                ``"fhutch"`` (forward mode alone): arXiv 2511.10796. ``"auto"``: the cheapest way to the
                tolerance, see :meth:`explain`.
            products: Products to spend (NTK products; VJPs or JVPs for the one-sided methods).
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword: ``rtol`` (0.01 where neither it, ``atol`` nor ``products``
                is given), ``atol``, ``max_products``, ``seconds``, ``progress``.

        Returns:
            The estimate with its standard error and cost.

        Raises:
            ValueError: For an unknown method, one that does not apply to this model, or a budget
                below the method's minimum.
            TypeError: For an option that there is not, or of the wrong kind.
        """
        return measure.single(
            "trace", [self], method, options_of(options, products, seed, limits, keeps=True)
        )

    def frobenius_norm(
        self,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """‖K‖_F = √tr(K²).

        Args and errors as in :meth:`trace`. ``"exact"`` goes by tiles of K from layer factors, by
        rows of J, or by JᵀJ, whichever is cheapest; ``"hutch++"`` runs Hutch++ on K², two NTK
        products a probe, as arXiv 2511.10796 does.
        """
        chosen = options_of(options, products, seed, limits, keeps=True)
        return measure.single("frobenius_norm", [self], method, chosen)

    def effective_rank(
        self,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        trace_method: TraceSource | None = None,
        population: bool = False,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """(tr K)² / ‖K‖²_F: between 1 and the rank of K; how many directions of state share the motion.

        Args and errors as in :meth:`frobenius_norm`, and ``trace_method``: where the trace comes from,
        ``"per-sample"``, ``"per-sample-forward"``, ``"exact"``, or ``None`` for the same products as the
        norm's. ``method="auto"`` takes ``"per-sample"`` where samples are independent.

        ``population=True``: Σ_{b≠b'} tr K_bb tr K_b'b' / Σ_{b≠b'} ‖K_bb'‖², from different samples
        alone, which does not depend on their number (arXiv 2509.26560); by ``"exact"`` or ``"per-sample"``.
        """
        chosen = options_of(options, products, seed, limits, keeps=not population)
        if population:
            if trace_method is not None:
                raise ValueError("population=True has traces of its own; leave trace_method= out")
            return population_effective_rank(self.engine, method, chosen)
        return measure.single("effective_rank", [self], method, chosen, trace_method=trace_method)

    def alignment(
        self,
        other: Any,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        centered: bool = False,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """cos(K, K′) = tr(KK′) / (‖K‖_F ‖K′‖_F) with another kernel on the same state.

        Args:
            other: An NTK on a state of the same shape, or a symmetric matrix of shape (n, n), such as
                the kernel yyᵀ of the targets.
            method: As in :meth:`frobenius_norm`.
            products: NTK products to spend, with both kernels together.
            seed: Of the probes; 0 if not given.
            centered: Whether J_b - mean_b J_b takes the place of J_b, so that the kernels are H K H with
                H = I - 11ᵀ/B over the samples, for each output (CKA, arXiv 1905.00414). ``"exact"`` is by
                dense kernels where they fit the memory budget, ``"per-sample"`` by probes that all
                samples share; all other methods go by products with H K H.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword, as in :meth:`trace`.

        Raises:
            ValueError: If the kernels do not act on states of one shape, or with ``centered=True`` if
                there are no samples that are treated on their own.
        """
        chosen = options_of(options, products, seed, limits, keeps=not centered)
        if centered:
            return centered_alignment(self.engine, checked_other(self, other), method, chosen)
        return measure.single("alignment", [self, checked_other(self, other)], method, chosen)

    def metric(
        self,
        name: str,
        *others: Any,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """Any metric of :data:`ntkscope.metrics.METRICS` by its name.

        Args and errors as in :meth:`alignment`; ``others`` is the other kernel of a metric that takes two.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.eye(2))
        >>> round(ntk.metric("inner_product", ntk, method="exact").value, 6)
        2.0
        """
        chosen = options_of(options, products, seed, limits, keeps=True)
        return measure.single(name, [self, *(checked_other(self, other) for other in others)], method, chosen)

    def measure(
        self,
        others: Sequence[Any] | Mapping[str, Any] = (),
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        metrics: Sequence[str] = STANDARD,
        trace_method: TraceSource | None = None,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Measurement:
        """Trace, norm, effective rank, and the alignment with each of ``others``, from shared work.

        Args and errors as in :meth:`alignment`, ``trace_method`` as in :meth:`effective_rank`, and
        ``metrics``: which of :data:`ntkscope.metrics.METRICS`. The others have names if they come as
        ``{"init": other}``. ``method="sketch"`` goes by products alone, each kernel's counted once. A
        tolerance is met when every metric meets it.

        >>> import torch
        >>> from ntkscope import NTK
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> round(NTK(model, torch.eye(3)).measure().effective_rank.value, 4)
        3.0
        """
        given, names = named_kernels(others)
        kernels = [self, *(checked_other(self, other) for other in given)]
        chosen = options_of(options, products, seed, limits, keeps=True)
        wanted = check_metrics(metrics)
        found = measure.measure(kernels, wanted, method, chosen, trace_method=trace_method)
        return dataclasses.replace(found, others=names)

    def fingerprint(
        self, probes: int = 2, seed: int = 0, by: str | None = None, *, centered: bool = False
    ) -> Fingerprint:
        """All of K that its metrics and alignments need, to be kept in place of the parameters.

        Args:
            probes: m ≥ 2, random signs of every sample; errors fall as 1/√m. One batched VJP each.
            seed: Of the probes. Fingerprints that are to be compared have the same probes and seed.
            by: ``"layer"`` keeps the parts of K that each module's own parameters make apart.
            centered: Whether of H K H, J_b - mean_b J_b in the place of J_b (CKA). All samples share their
                probes then, of which there are 4 or more, and all pairs of samples are kept.

        Returns:
            The fingerprint, (1 + c)·B·q·m² numbers for B samples in blocks of q ≤ 16 and c ≤ 16 offsets
            (all pairs of up to 80 samples), a layer each with ``by="layer"``.

        Raises:
            TypeError: If ``probes`` or ``seed`` is no whole number.
            ValueError: If there are fewer than 2 probes, for an unknown ``by``, if the samples are
                coupled, or if their gradients do not fit the memory budget together.

        >>> import torch
        >>> from ntkscope import NTK
        >>> model = torch.nn.Linear(3, 2)
        >>> before = NTK(model, torch.eye(3)).fingerprint()
        >>> before.trace().cost.vjps
        2
        """
        return take_fingerprint(self.engine, probes, seed, by, centered)
