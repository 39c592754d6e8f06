"""A kernel in parts: partial traces, splits by layer, sample or output, the diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

from ntkscope.engines.base import Engine
from ntkscope.parts.diagonal import diagonal, squared_gradients
from ntkscope.parts.grouping import By
from ntkscope.parts.partial import partial_trace
from ntkscope.parts.split import part_alignments, split
from ntkscope.results import ArrayEstimate, PartAlignments, PartialTrace, Split
from ntkscope.settings import Limits, Options, PartialMethod, SplitMethod, options_of
from ntkscope.verbs.others import checked_other

__all__ = ["PartVerbs"]


class PartVerbs:
    """What the parts of a kernel say."""

    engine: Engine

    def partial_trace(
        self,
        keep: str | int | Sequence[str | int] = 0,
        names: Sequence[str] | None = None,
        method: PartialMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> PartialTrace:
        """K traced over all axes of the state but some: P[a, a′] = Σ_c K[(a, c), (a′, c)].

        Kept samples make the contracted kernel between samples, kept time steps or units that between
        these. P is unbiased, positive semidefinite up to its error, and has the trace of K; no terms with
        c ≠ c′ are in it (those that a contraction of K with ones has).

        Args:
            keep: Names or numbers of the axes to keep, in the order of the matrix.
            names: A name for every axis of the state; if ``None``, ``"batch"`` for that of the samples,
                and ``"axis1"`` and the like for the others.
            method: ``"exact"``: one-hot probes, as many VJPs as one sample has outputs. ``"reverse"``:
                random signs over the traced axes, a VJP for every kept entry of one sample, so one where
                samples alone are kept. ``"forward"``: random parameter directions, one JVP each.
                ``"auto"``: what is predicted to be the cheapest to the tolerance.
            products: VJPs or JVPs to spend.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword. A tolerance is met when P as a whole (the root of its summed
                squared errors, relative to ‖P‖), its trace and its effective rank meet it.

        Returns:
            The matrix with its error bars, trace, norm, effective rank and alignment with another one.

        Raises:
            ValueError: For an unknown axis or method, or one that does not apply.
            TypeError: For an axis that is neither a name nor a number.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(3, 2), torch.eye(3))
        >>> ntk.partial_trace("batch").values.round(6).tolist()  # 2 (x·x′ + 1)
        [[4.0, 2.0, 2.0], [2.0, 4.0, 2.0], [2.0, 2.0, 4.0]]
        """
        return partial_trace(self.engine, keep, names, method, options_of(options, products, seed, limits))

    def split(
        self,
        metric: str = "trace",
        by: By = "layer",
        other: Any = None,
        method: SplitMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Split:
        """A metric of every part of K, all parts from the same products.

        Over the parameters K is a sum, K = Σ_ℓ K_ℓ with K_ℓ = J_ℓJ_ℓᵀ of the parameters of part ℓ, so that
        the traces of the parts add up to the whole; norms do not.

        Args:
            metric: One of :data:`ntkscope.metrics.METRICS`.
            by: ``"layer"``: the module that holds a parameter. ``"parameter"``: each alone. A function of
                a parameter's name to the name of its part. Glob patterns by name, ``{"attention":
                "*.attn.*"}``, or a list of them, what none matches is ``"rest"``. And for the trace alone:
                ``"sample"`` (‖J_b‖²_F), ``"output"``: the places along the last axis of the state, such as
                classes.
            other: The other kernel of a metric of two, part by part: another moment of training.
            method: ``"exact"``; ``"per-sample"``: random probes of every sample, one batched VJP each;
                ``"gram"``: of the whole batch, where samples are coupled; ``"auto"``.
            products: VJPs to spend.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword. A tolerance is for the whole trace, whose cost this has; for
                other metrics it is met when every part meets it.

        Returns:
            An estimate a part, by its name.

        Raises:
            ValueError: For an unknown metric, part or method, or one that does not apply.
            TypeError: For a ``by`` of another kind.

        >>> import torch
        >>> from ntkscope import NTK
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> ntk = NTK(model, torch.eye(3))
        >>> by_layer = ntk.split()
        >>> list(by_layer), bool(abs(sum(map(float, by_layer.values())) / float(ntk.trace()) - 1) < 1e-6)
        (['0', '1'], True)
        """
        kernel = None if other is None else checked_other(self, other)
        chosen = options_of(options, products, seed, limits)
        return split(self.engine, metric, by, _engine_of(kernel), method, chosen)

    def part_alignments(
        self,
        by: By = "layer",
        other: Any = None,
        method: SplitMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> PartAlignments:
        """cos(K_ℓ, K_m) of the kernels of all pairs of parts, shape (L, L).

        Args and errors as in :meth:`split`. With ``other``, rows are parts of this kernel, columns of the
        other one. A few backward passes give all of it, however many parts there are.
        """
        kernel = None if other is None else checked_other(self, other)
        chosen = options_of(options, products, seed, limits)
        return part_alignments(self.engine, by, _engine_of(kernel), method, chosen)

    def squared_gradients(
        self,
        method: Literal["auto", "exact", "per-sample"] = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> ArrayEstimate:
        """‖J_b‖²_F of every sample b: shape (B,); they add up to the trace.

        Args:
            method: ``"exact"``: as many batched VJPs as a sample has outputs. ``"per-sample"``: random
                probes of every sample.
            products: VJPs to spend.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword; a tolerance is for √Σ stderr² relative to √Σ value².

        Raises:
            ValueError: If the samples are coupled, or for an unknown method.
        """
        return squared_gradients(self.engine, method, options_of(options, products, seed, limits))

    def diagonal(
        self,
        method: Literal["auto", "exact", "forward"] = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> ArrayEstimate:
        """K_ii = ‖∂h_i/∂θ‖² of every entry of the state, in its shape.

        Args:
            method: ``"exact"``: as many batched VJPs as a sample has outputs (n VJPs where samples are
                coupled). ``"forward"``: the mean of (Ju)_i² over random directions u, off by √(2/k) after
                k JVPs.
            products: JVPs to spend.
            seed: Of the directions; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword; a tolerance is for √Σ stderr² relative to √Σ value².

        Raises:
            ValueError: For an unknown method.
            NotImplementedError: If ``"forward"`` is asked for and the model has no forward mode.

        >>> import torch
        >>> from ntkscope import NTK
        >>> NTK(torch.nn.Linear(3, 2), torch.eye(3)).diagonal().values.tolist()  # ‖x‖² + 1
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
        """
        return diagonal(self.engine, method, options_of(options, products, seed, limits))


def _engine_of(kernel: Any) -> Engine | None:
    """The engine of another kernel that is compared part by part."""
    if kernel is None:
        return None
    engine: Engine | None = getattr(kernel, "engine", None)
    if engine is None:
        raise TypeError(f"a {type(kernel).__name__} has no parts to compare with; pass an NTK as other=")
    return engine
