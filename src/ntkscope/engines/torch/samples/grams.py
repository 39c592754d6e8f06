"""Inner products of the samples' gradients for sets of probes, by layer factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Factor, Outer
from ntkscope.engines.torch.gradients.sides import in_range, widened
from ntkscope.engines.torch.probes import one_hot
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.linearization import Gradient, Linearization
from ntkscope.operators.space import Small

__all__ = ["Outputs", "factor_grams", "output_grams", "probe_grams"]


def probe_grams(jacobian: SampleJacobian, probes: Tensor, rows: int, *, across: bool) -> Small:
    """As :meth:`ntkscope.engines.base.Samples.grams`.

    Args:
        jacobian: The samples.
        probes: Shape (n, r · rows).
        rows: How many make a set.
        across: Whether samples are rows too.

    Raises:
        MemoryError: If a single sample with a single probe does not fit.
    """
    work = lambda: _probe_grams(jacobian, probes, rows, across)  # noqa: E731
    return jacobian.portioned(work, rows)


def _probe_grams(jacobian: SampleJacobian, probes: Tensor, rows: int, across: bool) -> Small:
    function, batch = jacobian.function, jacobian.batch
    sets = probes.shape[1] // rows
    shape = (sets, rows, batch, rows, batch) if across else (sets, rows, rows)
    out = np.zeros(shape)
    samples, fitting = jacobian.portions(rows * sets)
    step = max(1, fitting // rows)
    for part, linear in jacobian.linearizations(batch if across else samples):
        for start in range(0, sets, step):
            stop = min(start + step, sets)
            block = probes[:, start * rows : stop * rows].T.to(function.device, function.dtype)
            z = jacobian.axes.to_samples(block)[:, part.start : part.stop]
            for gradient in linear.pull(z):
                found = factor_grams(gradient.factor, stop - start, across=across)
                out[start:stop] += found.cpu().numpy().reshape(stop - start, *shape[1:])
    jacobian.ledger.add(vjps=probes.shape[1])
    return out


def output_grams(
    jacobian: SampleJacobian,
    outputs: NDArray[np.int64],
    *,
    across: bool,
    report: Callable[[int, int], None] | None = None,
) -> Small:
    """As :meth:`ntkscope.engines.base.Samples.output_grams`.

    Outputs that a recurrence computes early are pulled back through the steps before them alone.

    Raises:
        MemoryError: If a single sample with a single probe does not fit.
    """
    work = lambda: _output_grams(jacobian, outputs, across, report)  # noqa: E731
    return jacobian.portioned(work, outputs.shape[0])


def _output_grams(
    jacobian: SampleJacobian,
    outputs: NDArray[np.int64],
    across: bool,
    report: Callable[[int, int], None] | None,
) -> Small:
    batch, (rows, columns) = jacobian.batch, outputs.shape
    out = np.zeros((rows, batch, rows, batch) if across else (rows, rows))
    samples, fitting = jacobian.portions(outputs.size)
    step = max(1, fitting // rows)
    places = Outputs(jacobian)
    for part, linear in jacobian.linearizations(batch if across else samples):
        for start in range(0, columns, step):
            chosen = outputs[:, start : start + step]
            for gradient in places.pull(linear, chosen.T.reshape(-1)):
                found = factor_grams(gradient.factor, chosen.shape[1], across=across).sum(0)
                out += found.cpu().numpy().reshape(out.shape)
            if report is not None:
                done = part.start * columns + min(start + step, columns) * len(part)
                report(done, batch * columns)
    jacobian.ledger.add(vjps=outputs.size)
    return out


class Outputs:
    """Where the outputs of a sample are computed: the piece, and the entry of it.

    Args:
        jacobian: The samples.
    """

    def __init__(self, jacobian: SampleJacobian) -> None:
        self._size = jacobian.outputs
        self._piece = torch.zeros(self._size, dtype=torch.long)
        self._entry = torch.zeros(self._size, dtype=torch.long)
        for number, piece in enumerate(jacobian.graph.pieces):
            self._piece[piece.index] = number
            self._entry[piece.index] = piece.entries

    @property
    def order(self) -> NDArray[np.int64]:
        """All outputs, piece by piece."""
        return np.asarray(self._piece.argsort(stable=True).numpy())

    def pull(self, linear: Linearization, outputs: NDArray[np.int64]) -> list[Gradient]:
        """The gradients of some outputs, one probe each, piece by piece where they come in that order."""
        wanted = torch.from_numpy(np.ascontiguousarray(outputs))
        piece = self._piece[wanted]
        if bool((piece.diff() >= 0).all()):
            numbers, counts = piece.unique_consecutive(return_counts=True)
            entries = self._entry[wanted].split(counts.tolist())
            return linear.pull_pieces(list(zip(numbers.tolist(), entries, strict=True)))
        state = linear.state
        probes = one_hot(wanted, self._size, state.dtype, state.device)
        return linear.pull(probes.unsqueeze(1).expand(-1, len(state), -1))


def factor_grams(factor: Factor, sets: int, *, across: bool) -> Tensor:
    """Inner products within each set of probes, in float64.

    Args:
        factor: Gradients G of k probes, ``sets`` sets one after the other, and B samples.
        sets: How many sets r.
        across: Whether samples are rows as well as probes.

    Returns:
        Shape (r, k/r · B, k/r · B); without ``across`` Σ_b over samples, (r, k/r, k/r).
    """
    rows = factor.probes // sets
    batch = factor.probe_side.shape[1] if isinstance(factor, Outer) else factor.rows().shape[1]
    factor = factor.settled(rows * batch if across else rows)
    if not isinstance(factor, Outer):
        return _own_products(_in_sets(factor.rows(), sets, across))
    positions = factor.probe_side.shape[3]
    if positions == 1 and not across:
        # Σ_b ‖a_b‖² δ_ab·δ_a'b.
        lengths = factor.sample_side.own_gram()[..., 0].sqrt()
        return _own_products(_in_sets((factor.probe_side[..., 0, :] * lengths).flatten(2), sets, False))
    return torch.stack([_by_tiles(factor, slice(i * rows, (i + 1) * rows), across) for i in range(sets)])


def _in_sets(rows: Tensor, sets: int, across: bool) -> Tensor:
    """(k, B, P) to (r, k/r · B, P), or to (r, k/r, B · P)."""
    x = rows.unflatten(0, (sets, -1))
    return x.flatten(1, 2) if across else x.flatten(2)


def _own_products(x: Tensor) -> Tensor:
    """XXᵀ of each set, in float64 where the range of float32 is too small."""
    x = widened(x)
    found = x @ x.mT
    if in_range(found.diagonal(dim1=1, dim2=2)) or not bool(x.any()):
        return found.double()
    x = x.double()
    return x @ x.mT


def _by_tiles(factor: Outer, probes: slice, across: bool) -> Tensor:
    """One set, by products of δ and of the features, sample by sample where they are summed over."""
    own = factor.probe_side[probes]
    rows, batch = own.shape[:2]
    dtype = torch.promote_types(factor.dtype, torch.float32)
    if across:
        total = torch.zeros(rows, batch, rows, batch, dtype=dtype, device=own.device)
        some = dataclasses.replace(factor, probe_side=own)
        some.add_tile(some, total)
        return total.flatten(0, 1).flatten(1).double()
    total = torch.zeros(rows, 1, rows, 1, dtype=dtype, device=own.device)
    for b in range(batch):
        side = factor.sample_side.picked(torch.tensor([b], device=own.device))
        some = dataclasses.replace(factor, probe_side=own[:, b : b + 1], sample_side=side)
        some.add_tile(some, total)
    return total[:, 0, :, 0].double()
