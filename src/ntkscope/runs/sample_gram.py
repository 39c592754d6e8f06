"""Every moment from a few random probes of every sample: the per-sample Gram matrix and its ring.

Draw signs z_{b,i} for every sample b and i = 1..m, and let g_{b,i} = J_bᵀz_{b,i} (m backward passes
in all). Their inner products T[(b,i),(b',j)] = g_{b,i}·g_{b',j} give, without bias,

    ⟨K, K'⟩ ≈ Σ_{b≠b'} mean_{i,j} T T' + Σ_b mean_{i≠j} T T',    tr K ≈ Σ_b mean_i T[(b,i),(b,i)].

Not all pairs of samples are needed. The samples are shuffled and cut into nb blocks; of the pairs of
blocks those on the diagonal are taken, and those at c random offsets o around the ring, (i, i+o).
Every sample stands in equally many pairs, so the samples' own sizes cancel: with N_ij = ‖K_ij‖² of
blocks, Σ_i N_ii + (nb-1)/c Σ_o Σ_i N_{i,i+o} is unbiased over the offsets, and what is left of a pair
beyond its row and its column is all that adds to the error. The cost grows with B, not with B².
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.probes import random_signs
from ntkscope.operators.space import Small
from ntkscope.runs.moments import Moment, Monomial
from ntkscope.runs.ring import Counted, Part, ProbedSamples, Ring, RingProducts, without_mean
from ntkscope.runs.ring_sums import RingSums
from ntkscope.runs.statistics import Summary, summarise_sums

__all__ = ["RingMoments", "SampleGramRun", "ring_moments", "sample_signs"]

_STREAM = 22
# Numbers in a tile, and of the pairs that are looked at together.
_ROOM = 1 << 21
#: Signs that agree by chance, in bits: as rare as six standard errors.
_CHANCE_BITS = 29
#: A value of one pair of probes squared is at most so much of its variance: (zᵀKz')² of rank one is
#: the square of a square, whose second moment is 9/8 of its variance.
_OWN_PAIR = 8 / 9


#: Pairs of a moment around the ring, and what they count.
_Pairs: TypeAlias = tuple[NDArray[np.float32], float]


def sample_signs(size: int, start: int, stop: int, seed: int) -> NDArray[np.int8]:
    """Probes ``start..stop-1`` of every sample, signs over the whole state: shape (size, stop - start)."""
    return random_signs(size, start, stop, seed=seed, stream=_STREAM)


class SampleGramRun:
    """tr K_a and ⟨K_a, K_b⟩ of c kernels from m random probes of every sample, shared by all of them.

    Args:
        kernels: The samples of every kernel, the same ones in the same order.
        seed: Of the probes, and of the ring.
    """

    #: Probes and pairs of samples add 1/√m each.
    stride = 4.0

    def __init__(self, kernels: Sequence[ProbedSamples], *, seed: int) -> None:
        self._kernels = kernels
        self._seed = seed
        self._probes = 0
        self.quantum = len(kernels)
        self.minimum = 2 * len(kernels)
        # Every sample shows its own part of the error, so that two probes tell it already.
        self.first_look = self.minimum
        self._found: RingMoments | None = None

    def grow(self, products: int) -> None:
        """Pull more probes back."""
        wanted = products // len(self._kernels)
        if wanted > self._probes:
            signs = sample_signs(self._kernels[0].size, self._probes, wanted, self._seed)
            for kernel in self._kernels:
                kernel.add(signs)
            self._probes = wanted
            self._found = None

    def result(self) -> RingMoments:
        """The moments so far.

        Raises:
            ValueError: If fewer than two probes have run.
        """
        if self._probes < 2:
            raise ValueError(f"the per-sample Gram needs two probes; spend {self.minimum} products or more")
        if self._found is None:
            ring = Ring.of_batches(self._kernels[0].batches, self._probes, self._seed)
            outputs = self._kernels[0].size // self._kernels[0].batch
            self._found = ring_moments(self._kernels, ring, self._probes, outputs)
        return self._found


@dataclass(frozen=True, eq=False)
class RingMoments:
    """Moments whose probes, samples and pairs of samples all have their part in the error.

    Attributes:
        parts: By moment.
        counted: What is seen twice, by the order of the pairs among ``parts``.
        weight: What a pair at an offset stands for.
        missing: The share of offsets that were not taken.
        telling: Whether samples' products that are all alike prove that they have no variance.
        epsilon: Relative rounding error of the products.
        is_shuffled: Whether the samples stand on the ring in a random order.
    """

    parts: Mapping[Moment, Part]
    counted: Counted
    weight: float
    missing: float
    telling: bool
    epsilon: float
    is_shuffled: bool = True

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return self.parts[moment].value

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ with its error to first order: what cancels between the moments cancels in it."""
        parts = [(self.parts[moment], power) for moment, power in powers.items() if power]
        if any(part.value == 0 for part, _ in parts):
            return Monomial(Summary(0.0, None))
        value = math.prod(part.value**power for part, power in parts)
        scaled = [(part, power / part.value) for part, power in parts]
        influence = np.sum([scale * part.influence for part, scale in scaled], axis=0)
        own = _own_pairs([(part.own, scale) for part, scale in scaled if part.own is not None])
        ring = [(part.ring, scale * part.unit) for part, scale in scaled if part.ring is not None]
        scales = self._scales(powers)
        twice = float(scales @ self.counted.twice @ scales)
        sizes = np.sum([abs(scale) * np.abs(part.influence).mean(axis=0) for part, scale in scaled], axis=0)
        shown = _with_usual_spread(summarise_sums(influence), influence, sizes)
        if len(powers) > 1 or ring or own is not None:
            # Products of two forms have heavier tails than the forms themselves; chosen by coverage.
            count = len(influence)
            shown = Summary(shown.value, shown.stderr, shown.degrees_of_freedom * count / (count + 2))
        least = float(scales @ self.counted.within @ scales)
        # What is left of large numbers that cancel is their rounding.
        least += twice if twice > 1e3 * self.epsilon else 0.0
        variances = [_of_probes(shown, twice, least, own)]
        if ring and self.missing > 0:
            probes = float(scales @ self.counted.in_ring @ scales)
            of_pairs, freedom = _of_ring(ring)
            if not self.is_shuffled:
                of_pairs, freedom = max((of_pairs, freedom), _between_offsets(ring))
            of_choice = self.missing * (self.weight**2 * of_pairs - probes)
            variances.append((max(of_choice, 0.0), freedom))
        relative, freedom = _together(variances)
        stderr = max(relative, 4 * self.epsilon) * abs(value)
        sums = influence.sum(axis=1)
        known = stderr if freedom > 0 and (self.telling or relative > math.sqrt(self.epsilon)) else None
        return Monomial(Summary(value, known, max(freedom, 0.0)), value * (1 + sums - sums.mean()))

    def _scales(self, powers: Mapping[Moment, float]) -> Small:
        """The powers over the values, for the pairs of kernels in order."""
        pairs = [moment for moment in self.parts if len(moment) == 2]
        return np.array([powers.get(pair, 0.0) / (self.parts[pair].value or 1.0) for pair in pairs])


def _own_pairs(parts: Sequence[tuple[Small, float]]) -> Small | None:
    """What a sample's own pair of probes adds to a monomial, (B,), as much as it may.

    One pair alone makes every ratio of its products come out the same, whatever it is in the mean; so
    as far as a few samples' own pairs are all there is, nothing cancels between the moments.
    """
    if not parts:
        return None
    share = min(1.0, max(abs(scale) * float(np.abs(own).sum()) for own, scale in parts))
    together = np.abs(np.sum([scale * own for own, scale in parts], axis=0))
    apart = np.sum([np.abs(scale * own) for own, scale in parts], axis=0)
    found: Small = np.maximum(together, share**3 * apart)
    return found


def _with_usual_spread(shown: Summary, influence: Small, sizes: Small) -> Summary:
    """The summary with each sample's variance drawn to what is usual for its size, by 1/m.

    Signs over few outputs come out the same again and again: a large sample whose probes happen to
    agree shows no variance of its own.
    """
    variances = influence.var(axis=0, ddof=1)
    total, squares = float(variances.sum()), float((sizes**2).sum())
    if total == 0 or squares == 0:
        return shown
    usual = total / squares * sizes**2
    # Typical of most samples, whatever the largest ones do.
    small = sizes <= np.sqrt(squares / len(sizes))
    if float((sizes[small] ** 2).sum()) > 0:
        usual = np.maximum(usual, variances[small].sum() / (sizes[small] ** 2).sum() * sizes**2)
    drawn = float(np.maximum(variances, usual / len(influence)).sum())
    stderr = (shown.stderr or 0.0) * math.sqrt(drawn / total)
    return Summary(shown.value, stderr, shown.degrees_of_freedom)


def _of_probes(probes: Summary, twice: float, least: float, own: Small | None) -> tuple[float, float]:
    """Variance and degrees of freedom of what the probes add."""
    shown = (probes.stderr or 0.0) ** 2
    # What is seen twice is itself an estimate: of a few samples alone it is not taken off.
    variance = max(shown - twice * min(1.0, max(0.0, probes.degrees_of_freedom) / 30), shown / 2, least)
    if own is None:
        return variance, probes.degrees_of_freedom
    # A sample's own two probes make one pair, that goes with what they do in other pairs as it may.
    squares = _OWN_PAIR * own**2
    own_variance = float(squares.sum())
    total = variance + own_variance
    if total == 0:
        return 0.0, probes.degrees_of_freedom
    own_freedom = own_variance**2 / float((squares**2).sum()) if own_variance > 0 else math.inf
    share = own_variance / total
    doubt = (1 - share) ** 2 / max(probes.degrees_of_freedom, 1e-9) + share**2 / own_freedom
    return total, 1 / doubt


def _of_ring(rings: Sequence[_Pairs]) -> tuple[float, float]:
    """Σ of squares of what is left of pairs beyond their rows and columns, and its degrees of freedom.

    Samples are shuffled, so that these remains add up at random.

    Args:
        rings: Pairs of each moment, shape (c, nb, q, q), and what they count.
    """
    size = rings[0][0].shape[2]
    inside = max((size - 1) ** 2, 1) / size**2
    total = fourth = 0.0
    for pairs in _block_by_block(rings):
        squares = without_mean(without_mean(pairs, 3), 2) ** 2 / inside
        total += float(squares.sum())
        fourth += float((squares**2).sum())
    if total == 0:
        return 0.0, math.inf
    return total, max(1.0, total**2 / fourth * inside)


def _between_offsets(rings: Sequence[_Pairs]) -> tuple[float, float]:
    """The same from how the sums at the offsets differ, and nothing else: for samples in any order."""
    sums = np.sum([pairs.sum(axis=(1, 2, 3)) for pairs in _block_by_block(rings)], axis=0)
    count = len(sums)
    return count * float(sums.var(ddof=1)), count - 1.0


def _block_by_block(rings: Sequence[_Pairs]) -> Iterator[Small]:
    """The pairs of all moments together, some blocks at a time."""
    offsets, blocks, size, _ = rings[0][0].shape
    step = max(1, _ROOM // (offsets * size**2))
    for start in range(0, blocks, step):
        here = slice(start, start + step)
        yield np.sum([scale * ring[:, here].astype(np.float64) for ring, scale in rings], axis=0)


def _together(variances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom (Welch and Satterthwaite) of independent parts."""
    total = sum(variance for variance, _ in variances)
    if total <= 0:
        return 0.0, min((freedom for _, freedom in variances), default=math.inf)
    doubt = sum(variance**2 / max(freedom, 1e-9) for variance, freedom in variances)
    return math.sqrt(total), total**2 / doubt if doubt > 0 else math.inf


def ring_moments(
    kernels: Sequence[RingProducts],
    ring: Ring,
    probes: int,
    outputs: int,
    pairs: Sequence[tuple[int, int]] | None = None,
    own: bool = True,
) -> RingMoments:
    """The moments of all kernels over the pairs of samples of a ring.

    Args:
        kernels: The inner products of every kernel's probes.
        ring: The ring.
        probes: m, of every sample.
        outputs: s, of every sample.
        pairs: The inner products ⟨K_a, K_b⟩ that are wanted, a ≤ b; all of them if ``None``.
        own: Whether the pairs of a sample with itself are in the inner products.
    """
    count = len(kernels)
    places = [(a, b) for a in range(count) for b in range(a, count)] if pairs is None else list(pairs)
    offsets = (0, *ring.offsets)
    # A product of tiles is held for every pair of kernels.
    room = max(1, _ROOM // max(1, len(places) // 8))
    rings = [kernel.ring(ring.order, ring.block, offsets, room) for kernel in kernels]
    sums = RingSums(ring, len(places), probes, own)
    squares: Small = np.zeros((count, ring.blocks, ring.block, probes))
    for pieces in zip(*rings, strict=True):
        offset, start, _ = pieces[0]
        tiles = [tile for _, _, tile in pieces]
        if not offset:
            for a, tile in enumerate(tiles):
                squares[a, start : start + len(tile)] = np.einsum("usisi->usi", tile)
        sums.add(offset, start, np.stack([tiles[a] * tiles[b] for a, b in places]))
    parts: dict[Moment, Part] = {}
    for a, square in enumerate(squares.reshape(count, -1, probes)[:, ring.places]):
        parts[(a,)] = Part(float(square.mean(axis=1).sum()), square.T)
    parts |= dict(zip(places, sums.parts(), strict=True))
    epsilon = max(kernel.epsilon for kernel in kernels)
    # Signs of one output are alike whatever they are; those of a few outputs repeat their patterns.
    telling = outputs == 1 or len(ring.places) * (outputs - 1) * (probes - 1) >= _CHANCE_BITS
    return RingMoments(parts, sums.counted(), ring.weight, ring.missing, telling, epsilon, ring.is_shuffled)
