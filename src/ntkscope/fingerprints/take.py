"""Taking a fingerprint: a few backward passes and their inner products."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from ntkscope.engines.base import Engine, Samples
from ntkscope.fingerprints.fingerprint import Fingerprint
from ntkscope.operators.ledger import Meter
from ntkscope.runs.centered import MINIMUM, shared_probes
from ntkscope.runs.centered import centered as centered_tiles
from ntkscope.runs.kept import Tiles, kept_products
from ntkscope.runs.ring import Ring, RingProducts
from ntkscope.runs.sample_gram import sample_signs
from ntkscope.settings import Options
from ntkscope.ways.base import own_samples
from ntkscope.ways.per_sample import gram_bytes

__all__ = ["take_fingerprint"]

#: What a fingerprint may keep apart.
_BY = (None, "layer")


def take_fingerprint(engine: Engine, probes: int, seed: int, by: str | None, centered: bool) -> Fingerprint:
    """The fingerprint of a model's kernel, as :meth:`ntkscope.NTK.fingerprint`."""
    _check(probes, seed, by, centered)
    with engine.session():
        meter = Meter([engine.ledger])
        samples = _samples(engine, probes)
        probed = samples.probed()
        if centered:
            ring = Ring.complete(probed.batch, probes)
            _check_pairs(engine, ring, probes)
            probed.add(shared_probes(samples.state_index(), 0, probes, seed))
        else:
            ring = Ring.of(probed.batch, probes, seed)
            probed.add(sample_signs(probed.size, 0, probes, seed))
        # Inner products need no more digits than the gradients have; where means are taken off, they do.
        is_double = probed.epsilon < np.finfo(np.float32).eps
        dtype = np.float64 if is_double else np.float32

        def kept(part: RingProducts) -> Tiles:
            if centered:
                return centered_tiles(kept_products(part, ring, probes, np.float64), ring).astype(dtype)
            return kept_products(part, ring, probes, dtype)

        parts = {"": probed} if by is None else probed.by_layer()
        return Fingerprint(
            {name: kept(part) for name, part in parts.items()} or {"": kept(probed)},
            ring,
            outputs=samples.outputs,
            n_params=engine.shape[1],
            probes=probes,
            seed=seed,
            inputs=engine.inputs_digest(),
            epsilon=probed.epsilon,
            cost=meter(),
            centered=centered,
        )


def _check_pairs(engine: Engine, ring: Ring, probes: int) -> None:
    """A centred kernel's means are over all pairs of samples."""
    needed = 8 * 2 * (ring.blocks * ring.block * probes) ** 2
    if needed > engine.budget:
        raise ValueError(
            f"a centred fingerprint of {len(ring.order):,} samples keeps all their pairs, which takes "
            f"{needed:,} bytes on the way, and the memory budget is {engine.budget:,}; raise "
            "memory=, or use fewer samples or probes"
        )


def _samples(engine: Engine, probes: int) -> Samples:
    samples = own_samples(engine, "a fingerprint", ", or use measure()")
    needed = gram_bytes(engine.sizes(), probes)
    if needed > engine.budget:
        raise ValueError(
            f"the gradients of all samples take {needed:,.0f} bytes, and the memory budget is "
            f"{engine.budget:,}; raise memory=, or use fewer samples or probes"
        )
    return samples


def _check(probes: Any, seed: Any, by: Any, centered: Any) -> None:
    if isinstance(probes, bool) or not isinstance(probes, numbers.Integral):
        raise TypeError(f"probes must be an int, found {probes!r}; pass a number such as probes=2")
    if probes < 2:
        raise ValueError(f"a fingerprint needs at least 2 probes, found {probes}; use probes=2 or more")
    if centered and probes < MINIMUM:
        raise ValueError(
            f"a centred fingerprint needs at least {MINIMUM} probes, which samples share, found {probes}; "
            f"use probes={MINIMUM} or more"
        )
    Options(seed=seed)
    if by not in _BY:
        raise ValueError(f"unknown by={by!r}; choose one of " + ", ".join(map(repr, _BY)))
