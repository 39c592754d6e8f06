"""Which part of the parameters each gradient belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.samples.parts import columns_of

__all__ = ["InParts", "Shares", "Whole"]


class Shares(Protocol):
    """The parameters in parts."""

    @property
    def count(self) -> int:
        """L, how many parts there are."""
        ...

    def of(self, group: Group, factor: Factor) -> Iterable[tuple[int, Factor]]:
        """A group's gradients, as those of the parts that it belongs to, by their numbers."""
        ...


@dataclass(frozen=True)
class Whole:
    """All parameters as one part."""

    count: int = 1

    def of(self, group: Group, factor: Factor) -> Iterable[tuple[int, Factor]]:
        """As :meth:`Shares.of`."""
        return [(0, factor)]


@dataclass(frozen=True)
class InParts:
    """Parts by the parameters' names.

    Attributes:
        hooked: The model.
        parts: The number of every parameter's part.
    """

    hooked: Hooked
    parts: Mapping[str, int]

    @property
    def count(self) -> int:
        """As :attr:`Shares.count`."""
        return max(self.parts.values()) + 1

    def of(self, group: Group, factor: Factor) -> Iterator[tuple[int, Factor]]:
        """As :meth:`Shares.of`; a weight and its bias may be of two."""
        numbers = [self.parts[name] for name in group]
        if len(set(numbers)) == 1:
            yield numbers[0], factor
            return
        # For each output, the features of the weight and the one of the bias.
        weight, bias = (self.hooked.passes.parameters[name] for name in group)
        yield from zip(numbers, columns_of(factor, [weight.numel() // bias.numel(), 1]), strict=True)
