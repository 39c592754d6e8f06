"""Whether products Ju are the transpose of reverse mode: ⟨z, Ju⟩ = ⟨Jᵀz, u⟩, to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import DispatchMode, pytree
from ntkscope.engines.torch.memory import DEFAULT_BUDGET
from ntkscope.engines.torch.modes import CHECK_SEED, transpose_tolerance
from ntkscope.engines.torch.state import Parameters, StateFunction

__all__ = ["Forward", "is_transpose"]

#: Directions in which a way is tried. The last one meets what reverse mode says is zero.
_TRIALS = 3
#: By which they are multiplied to see their rounding; no power of two, which would round alike.
_MULTIPLE = 0.7
#: How far both sides may lie apart in float64, of ‖z‖ ‖Ju‖: far below what coarser dtypes resolve.
_IN_DOUBLE = 1e-9
#: Of the usual tolerance, where epsilon is so coarse that the usual one would let anything pass.
_COARSE = 0.03
#: Dtypes with a coarser epsilon (the half ones) cannot tell a wrong row from rounding.
_FINE = 1e-5


class Forward(Protocol):
    """One way to products Ju."""

    def push(self, block: Parameters) -> Tensor:
        """Ju for every row of a block of directions: (k, *parameter) each, to (k, *state)."""
        ...

    def of(self, function: StateFunction) -> Forward:
        """The same way for another state."""
        ...


def is_transpose(forward: Forward, function: StateFunction) -> bool:
    """Whether a way gives the transpose of the state's witness.

    Where rounding hides the answer (half precision, ill-conditioned products), the same way is tried
    with everything in float64; where the model does not run so, the rounding must itself be small.

    Costs three products Ju; in the second case six more, and one or two passes forward and back.
    """
    witness = function.witness()
    is_fine = torch.finfo(function.dtype).eps < _FINE
    test = _DotProductTest(function, witness.probe, witness.gradients)
    found = test.run(forward)
    if found is None:
        return False
    if is_fine and found.passes:
        return True
    in_double = _is_transpose_in_double(forward, function)
    if in_double is False:
        return False
    if in_double:
        # An entry of a gradient may round to zero: what that hides was seen in float64.
        found = found.without_zeros()
        if found.passes:
            return True
    allowed = found.tolerance
    if in_double is None and not is_fine:
        # Few entries round to zero twice; what is left has no rounding that could excuse it.
        test = _DotProductTest(function, witness.probe, witness.gradients, _other_gradients(function))
        found = test.run(forward)
        if found is None or not found.only_zeros().passes:
            return False
        allowed = found.tolerance * _COARSE
    limit = allowed + 10 * test.noise(forward, function)
    if in_double is None:
        # Rounding that large would look like a way that is not linear.
        limit = limit.minimum(transpose_tolerance(_coarsest_dtype(function)) * found.length)
    return bool((found.difference <= limit).all())


def _is_transpose_in_double(forward: Forward, function: StateFunction) -> bool | None:
    """The same test in float64; ``None`` where the model does not run in it, or is too large."""
    numbers = (_TRIALS + 3) * sum(value.numel() for value in function.parameters.values())
    if function.dtype == torch.float64 or 8 * numbers > DEFAULT_BUDGET:
        return None
    try:
        wide = function.in_double()
        z = function.witness().probe.double()
        with _Dtypes(torch.float64) as seen:
            gradients = wide.gradients_of(z)
        if seen.found != {torch.float64}:
            return None
        test = _DotProductTest(wide, z, gradients)
        found = test.run(forward.of(wide))
    except Exception:
        # It runs the user's code in a dtype that it was not written for, and memory may not suffice.
        return None
    return found is not None and bool((found.difference <= _IN_DOUBLE * found.length).all())


def _coarsest_dtype(function: StateFunction) -> torch.dtype:
    """That of a forward pass: a part of it may run in less than the state's precision."""
    with _Dtypes(function.dtype) as seen:
        function(function.parameters)
    return max(seen.found, key=lambda dtype: torch.finfo(dtype).eps)


class _Dtypes(DispatchMode):
    """The floating dtypes of all that is computed."""

    def __init__(self, first: torch.dtype) -> None:
        super().__init__()
        self.found = {first}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves(result)
        self.found |= {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}
        return result


def _other_gradients(function: StateFunction) -> dict[str, Tensor | None]:
    """Jᵀz for another z than the witness's."""
    generator = torch.Generator().manual_seed(CHECK_SEED + 1)
    z = torch.randn(function.output_shape, generator=generator, dtype=torch.float64)
    return function.gradients_of(z.to(function.device, function.dtype))


@dataclass(frozen=True)
class _Comparison:
    """⟨z, Ju⟩ and ⟨Jᵀz, u⟩ of some directions.

    Attributes:
        difference: How far they lie apart, shape (trials,).
        tolerance: What rounding allows them, shape (trials,).
        length: ‖z‖ ‖Ju‖.
    """

    difference: Tensor
    tolerance: Tensor
    length: Tensor

    @property
    def passes(self) -> bool:
        """Whether they agree."""
        return bool((self.difference <= self.tolerance).all())

    def without_zeros(self) -> _Comparison:
        """All but the last direction."""
        return _Comparison(self.difference[:-1], self.tolerance[:-1], self.length)

    def only_zeros(self) -> _Comparison:
        """The last direction."""
        return _Comparison(self.difference[-1:], self.tolerance[-1:], self.length)


class _DotProductTest:
    """Random directions, and their products with Jᵀz.

    Each parameter's part of a direction is as long as the inverse of its gradient, so that all count
    alike, but for the smallest. Entries whose gradient is zero belong to columns of J that are zero, as z
    is random: the
    last direction has these alone (the padding of an embedding is found by it, in any dtype).

    Args:
        function: Whose products are tried.
        z: Random, of the state's shape.
        gradients: Jᵀz by parameter.
        others: The same for another z: only what is zero in both counts as zero.
    """

    def __init__(
        self,
        function: StateFunction,
        z: Tensor,
        gradients: Mapping[str, Tensor | None],
        others: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        # Squares of what follows would leave the range of float64 where the model is near its end.
        largest = max((float(g.abs().max()) for g in gradients.values() if g is not None), default=0.0)
        self._scale = largest or 1.0
        self._z = z.reshape(1, -1).double()
        self._epsilon = torch.finfo(z.dtype).eps
        self._gradients = self._scaled(gradients)
        self.block = self._directions(function.parameters, gradients if others is None else others)
        self._expected, self._squares = self._inner(self._gradients)

    def run(self, forward: Forward) -> _Comparison | None:
        """:meth:`compare` for a way."""
        return self.compare(forward.push(self.block))

    def compare(self, pushed: Tensor) -> _Comparison | None:
        """Both sides for these products Ju; ``None`` if they are not finite.

        The rounding of a sum of terms is that of their root sum of squares.
        """
        pushed = pushed.reshape(_TRIALS, -1).double() / self._scale
        if not bool(pushed.isfinite().all()):
            return None
        products = pushed * self._z
        length = pushed[:-1].norm(dim=1).max() * self._z.norm()
        tolerance = 300 * (products.norm(dim=1) + self._squares.sqrt()) + 8 * length
        difference = (products.sum(1) - self._expected).abs()
        # Nothing is left to cancel where all terms are zero: the product itself is the difference.
        if not bool(self._squares[-1]):
            difference[-1] = pushed[-1].norm() * self._z.norm()
            tolerance[-1] = length
        return _Comparison(difference, self._epsilon * tolerance, length)

    def noise(self, forward: Forward, function: StateFunction) -> Tensor:
        """The rounding of both sides, by the same products of multiples of z and u."""
        again = {name: b * _MULTIPLE for name, b in self.block.items()}
        first, second = (
            forward.push(block).reshape(_TRIALS, -1).double() / self._scale for block in (self.block, again)
        )
        z = (self._z * _MULTIPLE).reshape(function.output_shape).to(function.dtype)
        reverse = self._scaled(function.gradients_of(z))
        other, _ = self._inner({n: None if g is None else g / _MULTIPLE for n, g in reverse.items()})
        spread = (second / _MULTIPLE - first).abs().max()
        return (other - self._expected).abs().max() + spread * self._z.norm()

    def _scaled(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        return {name: None if g is None else g.double() / self._scale for name, g in gradients.items()}

    def _inner(self, gradients: Mapping[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """⟨g, u⟩ of every direction, and the sum of the squares of its terms."""
        total, squares = (torch.zeros(_TRIALS, dtype=torch.float64, device=self._z.device) for _ in range(2))
        for name, gradient in gradients.items():
            if gradient is not None:
                terms = (gradient.unsqueeze(0) * self.block[name].double()).reshape(_TRIALS, -1)
                total += terms.sum(1).to(total.device)
                squares += (terms**2).sum(1).to(total.device)
        return total, squares

    def _directions(self, parameters: Parameters, others: Mapping[str, Tensor | None]) -> Parameters:
        generator = torch.Generator().manual_seed(CHECK_SEED)
        sizes = {name: 0.0 if g is None else float(g.norm()) for name, g in self._gradients.items()}
        largest = max(sizes.values(), default=0.0) or 1.0
        # A gradient may be small since much cancels: its rounding must not grow to what is looked for.
        floor = 0.01 * largest
        zeros = {
            name: _zeros(gradient, value) & _zeros(others[name], value)
            for (name, value), gradient in zip(parameters.items(), self._gradients.values(), strict=True)
        }
        has_zeros = any(bool(mask.any()) for mask in zeros.values())
        block = {}
        for name, value in parameters.items():
            u = torch.randn(_TRIALS, *value.shape, generator=generator, dtype=torch.float64)
            if has_zeros:
                u[-1] *= zeros[name].cpu()
            scale = largest / max(sizes[name], floor)
            block[name] = (scale * u).to(value.device, value.dtype)
        return block


def _zeros(gradient: Tensor | None, value: Tensor) -> Tensor:
    """Where a parameter's gradient is zero."""
    return torch.ones_like(value, dtype=torch.bool) if gradient is None else gradient == 0
