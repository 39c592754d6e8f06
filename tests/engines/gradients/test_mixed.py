"""Sums of outer products of one matrix from both sides, against the gradients formed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Mixed, Outer, add_uses
from ntkscope.engines.torch.gradients.sides import Features, Lookup, SampleSide

PROBES, BATCH, WORDS, WIDTH = 2, 3, 7, 4


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _words(positions: int) -> Tensor:
    return torch.randint(0, WORDS, (BATCH, positions), generator=torch.Generator().manual_seed(3))


def _sides(dtype: torch.dtype = torch.float64) -> tuple[Outer, dict[str, Outer]]:
    head = Outer(
        _random(PROBES, BATCH, 1, 5, WORDS, dtype=dtype), Features(_random(BATCH, 1, 5, WIDTH, dtype=dtype))
    )
    sides: dict[str, SampleSide] = {
        "words": Lookup(_words(6), WORDS),
        "features": Features(_random(BATCH, 1, 6, WORDS, seed=1, dtype=dtype)),
    }
    delta = _random(PROBES, BATCH, 1, 6, WIDTH, seed=2, dtype=dtype)
    return head, {name: Outer(delta, side, transposed=True) for name, side in sides.items()}


@pytest.mark.parametrize("name", ["words", "features"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_against_the_gradients(name: str, dtype: torch.dtype) -> None:
    head, others = _sides(dtype)
    for order in ([head, others[name]], [others[name], head], [head, others[name], head]):
        mixed = add_uses(order)
        assert isinstance(mixed, Mixed)
        rows = torch.stack([factor.rows() for factor in order]).sum(0)
        torch.testing.assert_close(mixed.rows(), rows)
        torch.testing.assert_close(mixed.squared_norms(), rows.square().sum(2))
        torch.testing.assert_close(mixed.summed(), rows.sum(1))
        total = torch.zeros(PROBES, BATCH, PROBES, BATCH, dtype=dtype)
        mixed.settled(10).add_tile(mixed, total)
        torch.testing.assert_close(total, torch.einsum("kbp,lcp->kblc", rows, rows))
        assert (mixed.probes, mixed.row_size(), mixed.dtype) == (PROBES, WORDS * WIDTH, dtype)


def test_what_cancels_is_found_anew() -> None:
    features, delta = _random(BATCH, 1, 5, WIDTH), _random(PROBES, BATCH, 1, 5, WORDS)
    small = 1e-7 * _random(PROBES, BATCH, 1, 5, WORDS, seed=1)
    # The same matrices from the other side, with the opposite sign, for one probe.
    head = Outer((delta + small)[:1], Features(features))
    back = Outer(features.unsqueeze(0), Features(-delta[0]), transposed=True)
    mixed = add_uses([head, back])
    assert isinstance(mixed, Mixed)
    expected = Outer(small[:1], Features(features)).squared_norms()
    torch.testing.assert_close(mixed.squared_norms(), expected, rtol=1e-6, atol=0)


def test_other_sums_are_formed() -> None:
    head, others = _sides()
    wrong = Outer(_random(PROBES, BATCH, 1, 6, WORDS), Features(_random(BATCH, 1, 6, WIDTH)), transposed=True)
    assert not isinstance(add_uses([others["words"], others["words"]]), Mixed)
    assert Mixed.of(head, wrong) is None
    assert Mixed.of(head, head) is None
