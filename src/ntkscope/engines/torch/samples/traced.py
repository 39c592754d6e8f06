"""The samples of a model that is traced, as every way to a metric asks for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.base import Directions
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.samples.grams import output_grams, probe_grams
from ntkscope.engines.torch.samples.inner_products import kernel_inner_products
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.parts import PartsOfSamples, output_squares
from ntkscope.engines.torch.samples.probed import ProbedGradients
from ntkscope.engines.torch.samples.strata import on_spheres, strata_of
from ntkscope.engines.torch.samples.tangents import SampleTangents
from ntkscope.engines.torch.samples.tiles import SampleRows
from ntkscope.journal import active, recorded
from ntkscope.operators.space import Small

__all__ = ["TorchSamples"]

# Probes that are kept together in a file.
_TOGETHER = 8


class TorchSamples:
    """A :class:`SampleJacobian` as :class:`ntkscope.engines.base.Samples` describes it.

    Args:
        jacobian: The samples and their graph.
    """

    def __init__(self, jacobian: SampleJacobian) -> None:
        self.jacobian = jacobian
        self._tangents: SampleTangents | None = None

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.jacobian.batch

    @property
    def outputs(self) -> int:
        """The size of one sample's state."""
        return self.jacobian.outputs

    def state_index(self) -> NDArray[np.int64]:
        """As :meth:`ntkscope.engines.base.Samples.state_index`."""
        return np.asarray(self.jacobian.axes.state_index().numpy(), dtype=np.int64)

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² for probes of shape (n, k), the strata of every z_b on their spheres, to (k, B)."""
        starts = range(0, probes.shape[1], _TOGETHER if active() else max(probes.shape[1], 1))
        parts = [probes[:, start : start + starts.step] for start in starts]
        ledger = self.jacobian.ledger
        return np.concatenate([recorded("squares", partial(self._squares, z), ledger) for z in parts])

    def _squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        z = self._tensor(probes.T).contiguous()
        scales = on_spheres(self.jacobian.axes.to_samples(z), self._silent)
        return np.asarray((self.jacobian.squared_norms(z) * scales).cpu().numpy(), dtype=np.float64)

    @functools.cached_property
    def _silent(self) -> Tensor | None:
        """Which outputs are 0 in the batch, as a ReLU leaves them; ``None`` where they make no strata."""
        state = self.jacobian.axes.to_samples(self.jacobian.function.state.reshape(1, -1))[0].flatten(1)
        return strata_of(state == 0)

    def forward_squares(self, count: int, directions: Directions) -> Small:
        """‖J_b u_b‖² with a direction for every probe and sample: shape (count, B)."""

        def work() -> Small:
            norms = self.tangents().squared_norms(
                count, lambda probes, samples: self._tensor(directions(probes, samples))
            )
            self.jacobian.ledger.add(jvps=count)
            return np.asarray(norms.cpu().numpy(), dtype=np.float64)

        return recorded("forward squares", work, self.jacobian.ledger)

    @property
    def direction_size(self) -> int:
        """Length of a sample's direction."""
        return self.tangents().size

    def tangents(self) -> SampleTangents:
        """The forward half, checked once.

        Raises:
            ValueError: If an operation has no forward mode, or a wrong one.
        """
        if self._tangents is None:
            try:
                self._tangents = SampleTangents(self.jacobian)
            except StructureError as error:
                raise ValueError(
                    f"method 'per-sample-forward' does not apply: {error}; use 'per-sample'"
                ) from error
        return self._tangents

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every sample, by one-hot probes."""
        return np.asarray(self.jacobian.frobenius_squared(report).cpu().numpy(), dtype=np.float64)

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products in tiles, by layer factors."""
        sources = [SampleRows(samples.jacobian) for samples in (self, *others)]
        return kernel_inner_products(sources, self.jacobian.budget, report)

    def probed(self) -> ProbedGradients:
        """As :meth:`ntkscope.engines.base.Samples.probed`."""
        return ProbedGradients(self.jacobian)

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.grams`."""
        return probe_grams(self.jacobian, torch.from_numpy(probes), rows, across=across)

    def output_grams(
        self, outputs: NDArray[np.int64], *, across: bool, report: Callable[[int, int], None]
    ) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.output_grams`."""
        return output_grams(self.jacobian, outputs, across=across, report=report)

    def output_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖∂h_bi/∂θ‖² of every output, by one-hot probes: shape (B, s)."""
        return output_squares(self.jacobian, report).cpu().numpy()

    def in_parts(self, parts: Mapping[str, int]) -> PartsOfSamples:
        """The same by parts of the parameters."""
        return PartsOfSamples(self.jacobian, parts, self._silent)

    def forward(self, count: int, directions: Directions) -> Small:
        """J_b u_b with a direction for every probe and sample: shape (count, n)."""
        states = self.tangents().states(
            count, lambda probes, samples: self._tensor(directions(probes, samples))
        )
        self.jacobian.ledger.add(jvps=count)
        flat = np.empty((count, states[0].numel()))
        flat[:, self.state_index()] = states.flatten(2).double().cpu().numpy()
        return flat

    def is_comparable(self, other: Any) -> bool:
        """Whether the other's samples lie along the same axes of the state."""
        if not isinstance(other, TorchSamples):
            return False
        ours, theirs = self.jacobian.axes, other.jacobian.axes
        return (ours.batch, ours.state_axis, ours.state_shape) == (
            theirs.batch,
            theirs.state_axis,
            theirs.state_shape,
        )

    def describe(self) -> str:
        """What is known of the model, in words."""
        return self.jacobian.describe()

    def _tensor(self, probes: NDArray[np.floating[Any]]) -> Tensor:
        function = self.jacobian.function
        return torch.from_numpy(probes).to(function.device, function.dtype)
