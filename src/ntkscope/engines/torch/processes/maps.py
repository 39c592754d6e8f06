"""J, Jᵀ and K of the samples of all processes: states in parts, parameters whole on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat.torch as array_api_torch
import numpy as np
import torch
from torch import Tensor

from ntkscope.engines.torch.finite import check_squares
from ntkscope.engines.torch.jacobian import Jacobian
from ntkscope.engines.torch.maps import users_block
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.operators.arrays import ArrayBlocks
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.probes import sphere_probes
from ntkscope.operators.space import Small

__all__ = ["Part", "Places", "SpreadMap"]


@dataclass(frozen=True, eq=False)
class Places:
    """Where the states of the processes stand in the state of all samples.

    Attributes:
        exchange: Between the processes.
        own: Place of every entry of this process's state, shape (n_r,).
        parts: The same of every process, by rank.
        n: Entries in all.
        device: Where the states live.
    """

    exchange: Exchange
    own: Tensor
    parts: tuple[Tensor, ...]
    n: int
    device: torch.device

    def cut(self, block: Tensor) -> Tensor:
        """This process's rows of a block over all of the state, (n, ...)."""
        return block[self.own.to(block.device)]

    def part(self, block: Tensor) -> Part:
        """This process's part of a block over all of the state."""
        return Part(self.cut(block), self)

    def joined(self, rows: Tensor) -> Tensor:
        """All of the block of which each process has its rows."""
        found = self.exchange.pieces(rows, [len(part) for part in self.parts])
        whole = rows.new_empty((self.n, *rows.shape[1:]))
        for places, piece in zip(self.parts, found, strict=True):
            whole[places.to(rows.device)] = piece
        return whole


@dataclass(frozen=True, eq=False)
class Part:
    """This process's rows of a block over the state of all samples."""

    rows: Tensor
    places: Places

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows of this process, columns)."""
        return tuple(self.rows.shape)

    def __add__(self, other: Part) -> Part:
        return Part(self.rows + other.rows, self.places)

    def __sub__(self, other: Part) -> Part:
        return Part(self.rows - other.rows, self.places)

    def __mul__(self, factor: Any) -> Part:
        return Part(self.rows * factor, self.places)

    def through_whole(self, change: Callable[[Tensor], Tensor]) -> Part:
        """The part of a changed block, (n, k) to (n, k), which every process has whole meanwhile."""
        return self.places.part(change(self.places.joined(self.rows)))


class SpreadMap(ArrayBlocks):
    """J, Jᵀ or K = JJᵀ; blocks over the state are parts, blocks over the parameters are whole.

    Args:
        jacobian: That of this process's samples.
        places: Where they stand among all.
        takes_state: Whether it is Jᵀ or K.
        gives_state: Whether it is J or K.
    """

    def __init__(
        self, jacobian: Jacobian, places: Places, *, takes_state: bool = True, gives_state: bool = True
    ) -> None:
        super().__init__(array_api_torch, jacobian.function.dtype, jacobian.function.device)
        self._jacobian, self._places, self._exchange = jacobian, places, places.exchange
        self._takes, self._gives = takes_state, gives_state
        p = jacobian.shape[1]
        self.shape = (places.n if gives_state else p, places.n if takes_state else p)

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """Where its products are entered."""
        return (self._jacobian.ledger,)

    @property
    def T(self) -> SpreadMap:
        """The transpose."""
        return SpreadMap(self._jacobian, self._places, takes_state=self._gives, gives_state=self._takes)

    def probes(self, start: int, stop: int, *, seed: int, stream: int) -> Part | Tensor:
        """Random probes; of those of the state this process keeps its rows, column by column."""
        size = self.shape[1]
        columns = (sphere_probes(size, j, j + 1, seed=seed, stream=stream) for j in range(start, stop))
        own = self._places.own.numpy()
        kept = [column[own, 0] if self._takes else column[:, 0] for column in columns]
        block = torch.from_numpy(np.stack(kept)).to(device=self._device, dtype=self._dtype).T
        return Part(block, self._places) if self._takes else block

    def identity(self, start: int, stop: int) -> Part | Tensor:
        """Columns of the identity; of those of the state this process's rows."""
        rows = self._places.own if self._takes else torch.arange(self.shape[1])
        block = (rows[:, None] == torch.arange(start, stop)).to(self._device, self._dtype)
        return Part(block, self._places) if self._takes else block

    def apply(self, block: Any) -> Any:
        """The products with every column."""
        if self._takes and self._gives:
            self._jacobian.ledger.add(products=block.shape[1])
        dtype = self._jacobian.function.dtype
        rows = self._pulled(block.rows.T.to(dtype)) if self._takes else block.T.to(dtype)
        if not self._gives:
            return rows.to(self._dtype).T
        pushed = self._exchange.run(lambda: self._jacobian.jvp(rows))
        return Part(pushed.to(self._dtype).T, self._places)

    def _pulled(self, z: Tensor) -> Tensor:
        """Jᵀz for every row of z, a sum over processes."""
        return self._exchange.sum(self._exchange.run(lambda: self._jacobian.vjp(z)))

    def squares(self, block: Any) -> Small:
        """Squared lengths of the products with every column."""
        product = self.apply(block)
        return self.inner(product, product)

    def gram(self, x: Any, y: Any) -> Small:
        """XᵀY over the rows of all processes."""
        return self._over_rows(super().gram, x, y)

    def inner(self, x: Any, y: Any) -> Small:
        """The diagonal of XᵀY over the rows of all processes."""
        return self._over_rows(super().inner, x, y)

    def _over_rows(self, work: Callable[[Any, Any], Small], x: Any, y: Any) -> Small:
        if isinstance(x, Part):
            own = work(x.rows, x.rows if x is y else y.rows)
            return check_squares(self._exchange.total(own))
        return check_squares(self._exchange.same(work(x, y)))

    def outer(self, x: Any, y: Any) -> Small:
        """XYᵀ of the rows of all processes."""
        if isinstance(x, Part):
            x, y = self._places.joined(x.rows), self._places.joined(y.rows)
        return self._exchange.same(super().outer(x, y))

    def combine(self, x: Any, coefficients: Small) -> Any:
        """X @ C, of each process its own rows."""
        if isinstance(x, Part):
            return Part(super().combine(x.rows, coefficients), self._places)
        return super().combine(x, coefficients)

    def concat(self, blocks: list[Any]) -> Any:
        """The blocks side by side."""
        if isinstance(blocks[0], Part):
            return Part(super().concat([block.rows for block in blocks]), self._places)
        return super().concat(blocks)

    def __matmul__(self, v: Any) -> Any:
        """The product with a whole vector or block of columns, of torch or NumPy, in its kind.

        Raises:
            ValueError: If the first axis does not fit.
        """
        size = self.shape[1]
        block, from_numpy = users_block(v, size, "n" if self._takes else "p")
        given = block.reshape(size, -1).to(self._device, self._dtype)
        product = self.apply(self._places.part(given) if self._takes else given)
        result = self._places.joined(product.rows) if self._gives else product
        result = (result[:, 0] if block.dim() == 1 else result).detach()
        return result.cpu().numpy() if from_numpy else result.to(self._jacobian.function.dtype)
