"""The fingerprint of a kernel, and every number that follows from it."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkscope.fingerprints import file
from ntkscope.metrics import METRICS, Powers, evaluate, kernels_of, powers_of
from ntkscope.results import Cost, Estimate
from ntkscope.runs.centered import centered_moments
from ntkscope.runs.kept import KeptProducts, Tiles, distance
from ntkscope.runs.moments import MomentSource, Monomial
from ntkscope.runs.population import POWERS, QUANTITY, population_moments
from ntkscope.runs.ring import Ring
from ntkscope.runs.sample_gram import ring_moments

__all__ = ["Fingerprint"]

_METHOD = "fingerprint"


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """All of a kernel K = JJᵀ that its metrics and its alignments need, without the model.

    It holds the inner products T[(b,i),(b',j)] = (J_bᵀz_{b,i})·(J_b'ᵀz_{b',j}) of m random signs z of
    every sample b, over all pairs of some 80 samples, over a ring of blocks of pairs of more:

        ⟨K, K'⟩ ≈ Σ_{b≠b'} mean_{i,j} T T' + Σ_b mean_{i≠j} T T',    tr K ≈ Σ_b mean_i T[(b,i),(b,i)],

    without bias. Two fingerprints of the same inputs and the same probes give the alignment of the
    kernels by arithmetic alone, however long ago they were taken. ``NTK.fingerprint`` takes one.

    Attributes:
        tiles: T by layer, or under ``""`` that of the whole kernel: arrays of shape (1 + c, nb, q, m, q, m).
        ring: Which pairs of samples are in it: the order of the samples, blocks of q, c offsets.
        outputs: s, the size of one sample's state.
        n_params: p, the number of parameters.
        probes: m, of every sample.
        seed: Of the probes.
        inputs: A hash of the values of the inputs.
        epsilon: Relative rounding error of the products.
        cost: What taking it cost.
        centered: Whether it is of H K H, centred over the samples, whose samples share their probes.

    >>> import torch, ntkscope
    >>> model = torch.nn.Linear(3, 2)
    >>> before = ntkscope.NTK(model, torch.eye(3)).fingerprint()
    >>> round(before.alignment(before).value, 6), before.distance(before).value
    (1.0, 0.0)
    """

    tiles: Mapping[str, Tiles] = field(repr=False)
    ring: Ring = field(repr=False)
    outputs: int
    n_params: int
    probes: int
    seed: int
    inputs: str
    epsilon: float
    cost: Cost = field(default_factory=Cost)
    centered: bool = False

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return len(self.ring.order)

    @property
    def n(self) -> int:
        """Size of the state; K has shape (n, n)."""
        return self.batch * self.outputs

    @property
    def nbytes(self) -> int:
        """Bytes that the inner products take."""
        return sum(tiles.nbytes for tiles in self.tiles.values())

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are kept apart; none unless it was taken with ``by="layer"``."""
        return tuple(name for name in self.tiles if name)

    def __getitem__(self, layer: str) -> Fingerprint:
        """The fingerprint of one layer's part of the kernel, J_layer J_layerᵀ.

        Raises:
            KeyError: If there is no such layer.
        """
        if layer not in self.layers:
            known = ", ".join(map(repr, self.layers)) or "none; take the fingerprint with by='layer'"
            raise KeyError(f"unknown layer {layer!r}; its layers are {known}")
        return dataclasses.replace(self, tiles={"": self.tiles[layer]})

    def __iter__(self) -> Any:
        raise TypeError("a fingerprint is no sequence; its layers are named by .layers")

    def __repr__(self) -> str:
        layers = f", {len(self.layers)} layers" if self.layers else ""
        return (
            f"Fingerprint(n={self.n:,}, p={self.n_params:,}, {self.batch:,} samples, {self.probes} probes, "
            f"seed={self.seed}{layers}, {self.nbytes:,} bytes)"
        )

    # Numbers.

    def trace(self) -> Estimate:
        """Tr K, with its error bar."""
        return self.metric("trace")

    def frobenius_norm(self) -> Estimate:
        """‖K‖_F, with its error bar."""
        return self.metric("frobenius_norm")

    def effective_rank(self, population: bool = False) -> Estimate:
        """(tr K)² / ‖K‖²_F, with its error bar.

        Args:
            population: Whether from pairs of different samples alone, which does not depend on their
                number; see :meth:`ntkscope.NTK.effective_rank`.

        Raises:
            ValueError: For the population's of a centred kernel, or of one sample.
        """
        if not population:
            return self.metric("effective_rank")
        if self.centered or self.batch < 2:
            what = "a centred kernel" if self.centered else "one sample"
            raise ValueError(
                f"the population's effective rank is made of different samples, found {what}; take the "
                "fingerprint without centered=True, of two samples or more"
            )
        source = population_moments(self.products(), self.ring, self.probes, self.n // self.batch)
        found = self._evaluate(source, "effective_rank", powers=POWERS)
        return dataclasses.replace(found, quantity=QUANTITY)

    def alignment(self, other: Fingerprint) -> Estimate:
        """cos(K, K') = ⟨K, K'⟩ / (‖K‖_F ‖K'‖_F), with its error bar.

        Args:
            other: Taken of the same inputs with the same probes.

        Raises:
            TypeError: If it is no fingerprint.
            ValueError: If it was taken of other inputs, of another size, or with other probes.
        """
        return self.metric("alignment", other)

    def distance(self, other: Fingerprint) -> Estimate:
        """1 - cos(K, K') = ½‖K/‖K‖ - K'/‖K'‖‖²_F, with an error bar of its own.

        What both kernels share is taken off before anything is squared, so that the distance between
        two neighbouring steps of training, 1e-6 say, is as well known as the norm. Args and errors as
        in :meth:`alignment`.
        """
        self.check_comparable(other)
        found = distance(self.products(), other.products(), self._moments, (self._norm(), other._norm()))
        return self._estimate("distance", found, other)

    def metric(self, name: str, *others: Fingerprint) -> Estimate:
        """Any metric of :data:`ntkscope.metrics.METRICS` by its name.

        Args:
            name: The metric.
            *others: The other kernel's fingerprint, of a metric that takes two.

        Raises:
            TypeError: As :meth:`alignment`.
            ValueError: As :meth:`alignment`, and for an unknown metric or the wrong number of kernels.
        """
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; choose one of " + ", ".join(map(repr, METRICS)))
        if len(others) + 1 != kernels_of(name):
            raise ValueError(f"{name} takes {kernels_of(name)} kernels, found {len(others) + 1}")
        for other in others:
            self.check_comparable(other)
        if not others:
            return self._evaluate(self._own_moments, name)
        kernels = range(1 + len(others))
        pairs = [(m[0], m[1]) for m in powers_of(name, kernels) if len(m) == 2]
        source = self._moments([one.products() for one in (self, *others)], pairs)
        return self._evaluate(source, name, *others)

    @functools.cached_property
    def _own_moments(self) -> MomentSource:
        """Tr K and ‖K‖², which all metrics of one kernel are made of."""
        return self._moments([self.products()], [(0, 0)])

    def _norm(self) -> float:
        return math.sqrt(max(self._own_moments.value((0, 0)), 0.0))

    def _evaluate(
        self, source: MomentSource, name: str, *others: Fingerprint, powers: Powers | None = None
    ) -> Estimate:
        return evaluate(
            source,
            name,
            range(1 + len(others)),
            method=_METHOD,
            cost=self._cost(*others),
            seed=self.seed,
            epsilon=max(one.epsilon for one in (self, *others)),
            powers=powers,
        )

    def _moments(self, kernels: Sequence[KeptProducts], pairs: Sequence[tuple[int, int]]) -> MomentSource:
        """The moments of kernels whose products are kept as this one's are."""
        wanted = list(pairs) or None
        if self.centered:
            return centered_moments(kernels, self.probes, wanted)
        return ring_moments(kernels, self.ring, self.probes, self.n // self.batch, wanted)

    def products(self) -> KeptProducts:
        """T of the whole kernel: the sum over its layers."""
        whole = list(self.tiles.values())
        return KeptProducts(whole[0] if len(whole) == 1 else sum(whole[1:], whole[0]), self.epsilon)

    def _estimate(self, quantity: str, found: Monomial, other: Fingerprint) -> Estimate:
        return Estimate(
            found.summary.value,
            found.summary.stderr,
            _METHOD,
            quantity,
            found.samples,
            found.summary.degrees_of_freedom,
            self._cost(other),
            self.seed,
            found.note,
            epsilon=max(self.epsilon, other.epsilon),
        )

    def _cost(self, *others: Fingerprint) -> Cost:
        """Of taking all of them, each once."""
        return sum((one.cost for one in dict.fromkeys(others) if one is not self), self.cost)

    # What may be compared.

    def check_comparable(self, other: Any) -> None:
        """Makes sure that both are of the same inputs and the same probes.

        Raises:
            TypeError: As :meth:`alignment`.
            ValueError: As :meth:`alignment`.
        """
        if not isinstance(other, Fingerprint):
            raise TypeError(
                f"a fingerprint is compared with another one, found {type(other).__name__}; "
                "take one of it by ntk.fingerprint()"
            )
        for name, ours, theirs in (
            ("samples", self.batch, other.batch),
            ("outputs a sample", self.outputs, other.outputs),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the fingerprints have {ours} and {theirs} {name}; kernels are compared on the same "
                    "state: use the same inputs and outputs for both"
                )
        if self.inputs != other.inputs:
            raise ValueError(
                "the fingerprints were taken of different inputs: the values differ; take both on one batch"
            )
        if (self.probes, self.seed) != (other.probes, other.seed):
            raise ValueError(
                f"the fingerprints were taken with different probes: probes={self.probes}, seed={self.seed} "
                f"and probes={other.probes}, seed={other.seed}; take both with the same"
            )
        if self.centered != other.centered:
            raise ValueError(
                "one of the fingerprints is of a centred kernel, the other is not; take both with the same "
                "centered="
            )
        if not self.ring.is_same(other.ring):
            raise ValueError(
                "the fingerprints keep different pairs of samples, as other versions do; take both with one"
            )

    # Files.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as safetensors, whole or not at all.

        Args:
            path: The file, whose name ends in ``.safetensors``.

        Raises:
            ValueError: If it cannot be written there, with the reason.
        """
        data = {
            "outputs": self.outputs,
            "n_params": self.n_params,
            "probes": self.probes,
            "seed": self.seed,
            "inputs": self.inputs,
            "epsilon": self.epsilon,
            "cost": self.cost.to_dict(),
            "centered": self.centered,
        }
        file.write(Path(path), file.Content(dict(self.tiles), self.ring, data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fingerprint:
        """Reads what :meth:`save` wrote; no model is needed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no fingerprint, or one of a later version.
        """
        content = file.read(Path(path))
        fields = content.fields
        return cls(
            content.tiles,
            content.ring,
            outputs=fields.whole("outputs"),
            n_params=fields.whole("n_params"),
            probes=fields.whole("probes"),
            seed=fields.whole("seed"),
            inputs=fields.text("inputs"),
            epsilon=fields.number("epsilon"),
            cost=Cost.from_dict(fields.get("cost")),
            centered=content.data.get("centered") is True,
        )
