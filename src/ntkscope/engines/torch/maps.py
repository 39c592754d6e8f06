"""A model's J, Jᵀ and K = JJᵀ as the linear maps that estimators and users take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import array_api_compat.torch as array_api_torch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.finite import check_squares
from ntkscope.engines.torch.state import StateFunction
from ntkscope.journal import active, recorded
from ntkscope.operators.arrays import ArrayBlocks
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.probes import sphere_probes
from ntkscope.operators.space import Small

__all__ = ["ForwardMap", "KernelMap", "Products", "ReverseMap", "portions", "users_block"]


class Products(Protocol):
    """Products of J with rows, such as :class:`ntkscope.engines.torch.jacobian.Jacobian`."""

    shape: tuple[int, int]
    ledger: Ledger

    @property
    def function(self) -> StateFunction:
        """A state of its dtype and device."""
        ...

    def vjp(self, z: Tensor) -> Tensor:
        """Jᵀz for every row of z: (k, n) → (k, p)."""
        ...

    def vjp_squared_norms(self, z: Tensor) -> Tensor:
        """‖Jᵀz‖² for every row of z, in float64: (k, n) → (k,)."""
        ...

    def jvp(self, u: Tensor) -> Tensor:
        """Ju for every row of u: (k, p) → (k, n)."""
        ...

    def ntk(self, z: Tensor) -> Tensor:
        """Kz for every row of z: (k, n) → (k, n)."""
        ...


# Columns of a block that are kept together.
_TOGETHER = 8


def portions(block: Tensor) -> Sequence[Tensor]:
    """A block, in a few columns at a time where products are kept in a file."""
    return block.split(_TOGETHER, dim=1) if active() else [block]


def users_block(v: Any, size: int, columns: str) -> tuple[Tensor, bool]:
    """A vector or a block of columns as torch has it, and whether it came from NumPy.

    Args:
        v: What a user has given.
        size: Of its first axis.
        columns: What that is called, for errors.

    Raises:
        ValueError: If the first axis does not fit.
    """
    from_numpy = not isinstance(v, Tensor)
    block = torch.as_tensor(np.asarray(v)) if from_numpy else v
    if block.dim() not in (1, 2) or block.shape[0] != size:
        raise ValueError(
            f"expected a vector of shape ({size},) or a block of columns ({size}, k), "
            f"since {columns}={size}; found shape {tuple(block.shape)}"
        )
    return block, from_numpy


class _JacobianMap(ArrayBlocks):
    """What the three maps share: torch blocks of columns, and products that are counted."""

    #: What its columns are, for errors.
    columns = "n"

    def __init__(self, jacobian: Products, shape: tuple[int, int]) -> None:
        super().__init__(array_api_torch, jacobian.function.dtype, jacobian.function.device)
        self.jacobian = jacobian
        self.shape = shape

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """Where its products are entered."""
        return (self.jacobian.ledger,)

    def probes(self, start: int, stop: int, *, seed: int, stream: int) -> Tensor:
        """Random probes on the sphere of radius √columns, shape (columns, stop - start)."""
        # Drawn and kept as rows: the transpose is free, and products take rows.
        probes = sphere_probes(self.shape[1], start, stop, seed=seed, stream=stream)
        return torch.from_numpy(probes.T).to(device=self._device, dtype=self._dtype).T

    def identity(self, start: int, stop: int) -> Tensor:
        """Columns of the identity, shape (columns, stop - start)."""
        block = torch.zeros(stop - start, self.shape[1], dtype=self._dtype, device=self._device)
        block[torch.arange(stop - start), torch.arange(start, stop)] = 1
        return block.T

    def apply(self, block: Tensor) -> Tensor:
        """The products with every column."""
        raise NotImplementedError

    def squares(self, block: Tensor) -> Small:
        """Squared lengths of the products with every column, shape (k,)."""
        product = self.apply(block)
        return self.inner(product, product)

    def inner(self, x: Tensor, y: Tensor) -> Small:
        """Inner products of columns, as :meth:`ArrayBlocks.inner`; an error where they are not finite."""
        return check_squares(super().inner(x, y))

    def gram(self, x: Tensor, y: Tensor) -> Small:
        """XᵀY, as :meth:`ArrayBlocks.gram`; an error where it is not finite."""
        return check_squares(super().gram(x, y))

    def __matmul__(self, v: Any) -> Any:
        """The product with a vector (columns,) or a block (columns, k), of torch or NumPy, in its kind.

        Raises:
            ValueError: If the first axis does not fit.
        """
        block, from_numpy = users_block(v, self.shape[1], self.columns)
        rows = block.reshape(len(block), -1).T.to(self._device, self._dtype)
        result = self.apply(rows.contiguous().T).detach()
        result = result[:, 0] if block.dim() == 1 else result
        return result.cpu().numpy() if from_numpy else result.to(self.jacobian.function.dtype)

    def _kept(self, name: str, work: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        """Products with every column; a few at a time where they are kept in a file."""
        if not active():
            return self._from_rows(work(self._to_rows(block)))

        def product(part: Tensor) -> NDArray[Any]:
            return np.asarray(work(self._to_rows(part)).to("cpu", self._dtype).numpy())

        parts = [
            recorded(
                name,
                functools.partial(product, part),
                self.jacobian.ledger,
            )
            for part in portions(block)
        ]
        rows = torch.from_numpy(np.concatenate(parts))
        return self._from_rows(rows.to(self._device))

    def _to_rows(self, block: Tensor) -> Tensor:
        """Rows in the model's dtype; blocks are in single precision at least."""
        return block.T.to(self.jacobian.function.dtype)

    def _from_rows(self, rows: Tensor) -> Tensor:
        return rows.to(self._dtype).T


class KernelMap(_JacobianMap):
    """K = JJᵀ: (n, k) → (n, k)."""

    def __init__(self, jacobian: Products) -> None:
        super().__init__(jacobian, (jacobian.shape[0], jacobian.shape[0]))

    def apply(self, block: Tensor) -> Tensor:
        """K @ block."""
        self.jacobian.ledger.add(products=block.shape[1])
        return self._kept("K", self.jacobian.ntk, block)

    @property
    def T(self) -> KernelMap:
        """Itself."""
        return self


class ReverseMap(_JacobianMap):
    """Jᵀ: (n, k) → (p, k)."""

    def __init__(self, jacobian: Products) -> None:
        super().__init__(jacobian, (jacobian.shape[1], jacobian.shape[0]))

    def apply(self, block: Tensor) -> Tensor:
        """Jᵀ @ block."""
        return self._kept("J^T", self.jacobian.vjp, block)

    def squares(self, block: Tensor) -> Small:
        """Squared lengths of Jᵀ @ block, chunk by chunk."""

        def squares(part: Tensor) -> Small:
            return self._to_numpy(self.jacobian.vjp_squared_norms(self._to_rows(part)))

        ledger, parts = self.jacobian.ledger, portions(block)
        return np.concatenate([recorded("|J^T|", functools.partial(squares, x), ledger) for x in parts])

    @property
    def T(self) -> ForwardMap:
        """J."""
        return ForwardMap(self.jacobian)


class ForwardMap(_JacobianMap):
    """J: (p, k) → (n, k)."""

    columns = "p"

    def __init__(self, jacobian: Products) -> None:
        super().__init__(jacobian, (jacobian.shape[0], jacobian.shape[1]))

    def apply(self, block: Tensor) -> Tensor:
        """J @ block."""
        return self._kept("J", self.jacobian.jvp, block)

    @property
    def T(self) -> ReverseMap:
        """Jᵀ."""
        return ReverseMap(self.jacobian)
