"""Arrays of any array-API library, and anything with ``shape`` and ``@``, as linear maps."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.ledger import Ledger
from ntkscope.operators.probes import sphere_probes
from ntkscope.operators.space import Block, Small

__all__ = ["ArrayBlocks", "ArrayMap"]


class ArrayBlocks:
    """The block algebra for arrays of any array-API library; no operator yet.

    Args:
        namespace: The array API namespace (from array-api-compat).
        dtype: A real floating dtype of that namespace, that of the products. Blocks are in it, but in
            single precision at least: bases and residuals of half precision are lost to rounding.
        device: Where blocks live.
    """

    def __init__(self, namespace: Any, dtype: Any, device: Any) -> None:
        self._xp = namespace
        self.epsilon = float(namespace.finfo(dtype).eps)
        self._dtype = dtype if namespace.finfo(dtype).bits >= 32 else namespace.float32
        self._device = device

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

    def outer(self, x: Block, y: Block) -> Small:
        """XYᵀ, accumulated in float64."""
        xp = self._xp
        left, right = xp.astype(x, xp.float64), xp.astype(y, xp.float64)
        return self._to_numpy(xp.matmul(left, xp.matrix_transpose(right)))

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
        counts: What a product is entered as: forward products for J, reverse ones for Jᵀ.
        ledger: Where products are entered; one of its own if ``None``.

    Raises:
        TypeError: If it has no ``shape`` or no ``@``.
        ValueError: If it is not two-dimensional, is empty, or is complex.
    """

    def __init__(
        self,
        operator: Any,
        *,
        counts: Literal["products", "vjps", "jvps"] = "products",
        ledger: Ledger | None = None,
    ) -> None:
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
        self._operator = namespace.astype(operator, self._dtype) if is_array else operator
        if is_array:
            self.epsilon = float(namespace.finfo(self._dtype).eps)
        self._counts = counts
        self._ledger = Ledger() if ledger is None else ledger

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """Where its products are entered."""
        return (self._ledger,)

    @property
    def T(self) -> ArrayMap:
        """The transpose; forward products become reverse ones."""
        turned: dict[str, Any] = {"jvps": "vjps", "vjps": "jvps"}
        counts = turned.get(self._counts, self._counts)
        return ArrayMap(self._operator.T, counts=counts, ledger=self._ledger)

    def probes(self, start: int, stop: int, *, seed: int, stream: int) -> Block:
        """Random probes on the sphere of radius √columns, shape (columns, stop - start)."""
        return self.from_numpy(sphere_probes(self.shape[1], start, stop, seed=seed, stream=stream))

    def identity(self, start: int, stop: int) -> Block:
        """Columns of the identity, shape (columns, stop - start)."""
        block = np.zeros((self.shape[1], stop - start), dtype=np.int8)
        block[np.arange(start, stop), np.arange(stop - start)] = 1
        return self.from_numpy(block)

    def apply(self, block: Block) -> Block:
        """``operator @ block``."""
        self._ledger.add(**{self._counts: int(block.shape[1])})
        return self._operator @ block

    def squares(self, block: Block) -> Small:
        """Squared lengths of ``operator @ block``, shape (k,)."""
        product = self.apply(block)
        return self.inner(product, product)


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
