"""How estimators see a linear map: through blocks of columns, and through nothing else.

An estimator never looks inside a block. It asks the map for random signs, for
products, and for small Gram matrices, which come back as float64 NumPy arrays.
So one text of each estimator serves NumPy, torch, JAX, and blocks that are
sharded over devices.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, TypeAlias, runtime_checkable

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.probes import random_signs
from ntkscope.results import Cost

__all__ = ["ArrayMap", "Block", "Map", "as_map"]

#: A block of columns, shape (size, k). It supports ``+``, ``-`` and ``* scalar``.
Block: TypeAlias = Any
Small: TypeAlias = NDArray[np.float64]


@runtime_checkable
class Map(Protocol):
    """A linear map on blocks of columns.

    Attributes:
        shape: (rows, columns): a block of shape (columns, k) goes to one of (rows, k).
        epsilon: The relative rounding error of the products.
        cost: What has been spent so far.
    """

    shape: tuple[int, int]
    epsilon: float

    @property
    def cost(self) -> Cost:
        """What has been spent so far."""
        ...

    def signs(self, start: int, stop: int, *, seed: int, stream: int) -> Block:
        """Columns start..stop-1 of the random signs of (seed, stream), shape (columns, k)."""
        ...

    def identity(self, start: int, stop: int) -> Block:
        """Columns start..stop-1 of the identity, shape (columns, k)."""
        ...

    def apply(self, block: Block) -> Block:
        """The products with every column; k products."""
        ...

    def gram(self, x: Block, y: Block) -> Small:
        """XᵀY in float64, shape (k_x, k_y)."""
        ...

    def inner(self, x: Block, y: Block) -> Small:
        """The diagonal of XᵀY in float64: inner products column by column, shape (k,)."""
        ...

    def combine(self, x: Block, coefficients: Small) -> Block:
        """X @ C, new columns from old ones."""
        ...

    def concat(self, blocks: list[Block]) -> Block:
        """The blocks side by side."""
        ...


class ArrayBlocks:
    """The block algebra for arrays of any array-API library; no operator yet.

    Args:
        namespace: The array API namespace (from array-api-compat).
        dtype: A real floating dtype of that namespace.
        device: Where blocks live.
    """

    def __init__(self, namespace: Any, dtype: Any, device: Any) -> None:
        self._xp = namespace
        self._dtype = dtype
        self._device = device
        self.epsilon = float(namespace.finfo(dtype).eps)

    def from_numpy(self, array: NDArray[Any]) -> Block:
        """A host array as a block of this dtype on this device."""
        contiguous = np.ascontiguousarray(array)
        return self._xp.astype(self._xp.asarray(contiguous, device=self._device), self._dtype)

    def _to_numpy(self, array: Any) -> Small:
        on_host = not array_api_compat.is_torch_namespace(self._xp)
        host = array if on_host else array_api_compat.to_device(array, "cpu")
        return np.asarray(host, dtype=np.float64)

    def gram(self, x: Block, y: Block) -> Small:
        """XᵀY, accumulated in float64 whatever the dtype, in slabs of rows."""
        xp, total = self._xp, np.zeros((x.shape[1], y.shape[1]))
        slab = max(1, (1 << 24) // max(x.shape[1] + y.shape[1], 1))
        for start in range(0, x.shape[0], slab):
            stop = min(start + slab, x.shape[0])
            left = xp.astype(x[start:stop, :], xp.float64)
            right = left if x is y else xp.astype(y[start:stop, :], xp.float64)
            total += self._to_numpy(xp.matmul(xp.matrix_transpose(left), right))
        return total

    def inner(self, x: Block, y: Block) -> Small:
        """Column-wise inner products, accumulated in float64."""
        xp = self._xp
        products = xp.astype(x, xp.float64) * xp.astype(y, xp.float64)
        return self._to_numpy(xp.sum(products, axis=0))

    def combine(self, x: Block, coefficients: Small) -> Block:
        """X @ C in the dtype of X."""
        return self._xp.matmul(x, self.from_numpy(coefficients))

    def concat(self, blocks: list[Block]) -> Block:
        """The blocks side by side."""
        return blocks[0] if len(blocks) == 1 else self._xp.concat(blocks, axis=1)


class ArrayMap(ArrayBlocks):
    """Anything with ``shape`` and ``@`` as a :class:`Map`.

    Args:
        operator: A matrix of NumPy, torch or another array-API library, or an object
            with ``shape`` and ``@`` that takes NumPy blocks (a SciPy LinearOperator).

    Raises:
        TypeError: If it has no ``shape`` or no ``@``.
        ValueError: If it is not two-dimensional, is empty, or is complex.
    """

    def __init__(self, operator: Any) -> None:
        if not hasattr(operator, "shape") or not hasattr(operator, "__matmul__"):
            raise TypeError(
                f"an operator needs `shape` and `@`, found {type(operator).__name__}; pass a matrix, "
                "a SciPy LinearOperator or an NTK"
            )
        if len(operator.shape) != 2 or min(operator.shape) == 0:
            raise ValueError(
                f"an operator has two dimensions, none of them 0; found shape {tuple(operator.shape)}"
            )
        self.shape = (int(operator.shape[0]), int(operator.shape[1]))
        namespace, dtype, device = _array_type(operator)
        super().__init__(namespace, dtype, device)
        is_array = array_api_compat.is_array_api_obj(operator)
        self._operator = namespace.astype(operator, dtype) if is_array else operator
        self._products = 0

    @property
    def cost(self) -> Cost:
        """Products spent so far."""
        return Cost(products=self._products)

    def signs(self, start: int, stop: int, *, seed: int, stream: int) -> Block:
        """Random signs, shape (columns, stop - start)."""
        return self.from_numpy(random_signs(self.shape[1], start, stop, seed=seed, stream=stream))

    def identity(self, start: int, stop: int) -> Block:
        """Columns of the identity, shape (columns, stop - start)."""
        block = np.zeros((self.shape[1], stop - start), dtype=np.int8)
        block[np.arange(start, stop), np.arange(stop - start)] = 1
        return self.from_numpy(block)

    def apply(self, block: Block) -> Block:
        """``operator @ block``."""
        self._products += int(block.shape[1])
        return self._operator @ block


def _array_type(operator: Any) -> tuple[Any, Any, Any]:
    """(namespace, floating dtype, device) of the blocks that the operator takes."""
    xp: Any
    if not array_api_compat.is_array_api_obj(operator):
        xp = importlib.import_module("array_api_compat.numpy")
        dtype = np.dtype(getattr(operator, "dtype", None) or np.float64)
        if dtype.kind == "c":
            raise ValueError("the operator is complex; NTKs are real: pass a real operator")
        return xp, dtype if dtype.kind == "f" else np.dtype(np.float64), None
    xp = array_api_compat.array_namespace(operator)
    dtype = operator.dtype
    if xp.isdtype(dtype, "complex floating"):
        raise ValueError("the operator is complex; NTKs are real: pass a real operator")
    if not xp.isdtype(dtype, "real floating"):
        dtype = xp.float64
    return xp, dtype, array_api_compat.device(operator)


def as_map(operator: Any) -> Map:
    """The operator as a :class:`Map`: itself if it is one, its own view, or an :class:`ArrayMap`."""
    if hasattr(operator, "_as_map"):
        view: Map = operator._as_map()
        return view
    return operator if isinstance(operator, Map) else ArrayMap(operator)
