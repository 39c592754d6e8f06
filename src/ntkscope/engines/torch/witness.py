"""One backward pass through the user's own module, and what another pass is held to it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkscope.engines.torch.lengths import distance, joint_distance, joint_length, joint_sums, length
from ntkscope.engines.torch.modes import CHECK_SEED

__all__ = ["Witness", "check_finite", "check_probe", "differing"]


@dataclass(frozen=True)
class Witness:
    """One backward pass through the model, which every other way to its gradients must agree with.

    Attributes:
        probe: z, of the state's shape.
        gradients: Jᵀz by parameter; ``None`` where no path leads to it.
    """

    probe: Tensor
    gradients: dict[str, Tensor | None]


def check_probe(state: Tensor) -> Tensor:
    """z, the same for every state of a shape."""
    generator = torch.Generator().manual_seed(CHECK_SEED)
    return torch.randn(state.shape, generator=generator, dtype=torch.float64).to(state.device, state.dtype)


def differing(
    expected: Mapping[str, Tensor | None], found: Mapping[str, Tensor | None], dtype: torch.dtype
) -> str:
    """The first parameter whose gradients differ by more than rounding; empty if there is none.

    Two runs of the same pass differ by their rounding: by much less than the root of the last digit, which
    no parameter's gradient may lie below unseen, in half precision neither.
    """
    epsilon = torch.finfo(dtype).eps
    share = min(1e3 * epsilon, epsilon**0.5)
    if _are_close(expected, found, share):
        return ""
    sizes, others = ({n: _length(g) for n, g in side.items()} for side in (expected, found))
    floor = share * max((*sizes.values(), *others.values()), default=0.0)
    for name, own in expected.items():
        other = found[name]
        # Where one is missing, all of the other is the difference.
        difference = sizes[name] + others[name] if own is None or other is None else distance(own, other)
        if not difference <= epsilon**0.5 * sizes[name] + floor:
            return name
    return ""


def _are_close(
    expected: Mapping[str, Tensor | None], found: Mapping[str, Tensor | None], share: float
) -> bool:
    """Whether all differences together are less than that share of what the longest gradient has at least.

    None is larger then. Looking at each parameter's takes as long as the passes of a small model.
    """
    pairs = [(own, found[name]) for name, own in expected.items()]
    ours = [own for own, other in pairs if own is not None and other is not None]
    theirs = [other for own, other in pairs if own is not None and other is not None]
    if not ours or any((own is None) != (other is None) for own, other in pairs):
        return False
    # The same operations in the same order give the same numbers.
    if all(map(torch.equal, ours, theirs)):
        return True
    return joint_distance(ours, theirs) <= share * joint_length(ours) / len(ours) ** 0.5


def _length(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else length(gradient)


def check_finite(gradients: Mapping[str, Tensor | None]) -> None:
    """Refuses gradients of which no kernel can be made."""
    if all(bool(total.isfinite()) for total in joint_sums([g for g in gradients.values() if g is not None])):
        # Twenty times as quick as a look at every entry, which only a sum that overflows needs.
        return
    for name, gradient in gradients.items():
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise ValueError(
                f"the gradient of the parameter {name!r} has entries that are NaN or infinite, though the "
                "state has none; look for a root, logarithm or norm at 0, or use a model of higher precision"
            )
