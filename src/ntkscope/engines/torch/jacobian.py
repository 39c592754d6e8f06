"""The Jacobian as a linear map on blocks of vectors: Jᵀz, Ju and K z = J(Jᵀz)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ntkscope.engines.torch.adjoint import Forward
from ntkscope.engines.torch.finite import check_not_vanished, checked
from ntkscope.engines.torch.forward import choose_forward
from ntkscope.engines.torch.memory import DEFAULT_BUDGET, Chunks
from ntkscope.engines.torch.pullback import Pullback
from ntkscope.engines.torch.state import Parameters, StateFunction
from ntkscope.operators.ledger import Ledger

__all__ = ["Jacobian"]


class Jacobian:
    """J = ∂state/∂parameters, through products with blocks of row vectors.

    Reverse and forward products go by the first way that is right
    (:mod:`ntkscope.engines.torch.pullback`, :mod:`ntkscope.engines.torch.forward`). All of them raise
    a ``ValueError`` where a product is not finite.

    Args:
        function: The state as a function of the parameters.
        budget: Bytes that one chunk of products may take.
        chunk_size: Vectors in a chunk; chosen from the budget if ``None``.
        ledger: Where products are entered.

    Attributes:
        shape: (n, p): states and parameters.
        ledger: Where products are entered.
    """

    def __init__(
        self,
        function: StateFunction,
        budget: int = DEFAULT_BUDGET,
        chunk_size: int | None = None,
        *,
        ledger: Ledger | None = None,
    ) -> None:
        self.function = function
        self._sizes = {name: tensor.numel() for name, tensor in function.parameters.items()}
        self.shape = (function.state.numel(), sum(self._sizes.values()))
        self.ledger = Ledger() if ledger is None else ledger
        floats = function.forward_size.elements + 2 * self.shape[1] + self.shape[0]
        self._chunks = Chunks(floats * function.state.element_size(), budget, chunk_size)
        self._pullback = Pullback(function)
        self._forward: Forward | None = None

    # Products: blocks of rows in, blocks of rows out.

    def vjp(self, z: Tensor) -> Tensor:
        """Jᵀz for every row of z: (k, n) → (k, p)."""
        out = z.new_empty((z.shape[0], self.shape[1]))

        def work(start: int, stop: int) -> None:
            self._flatten(self._pull_block(z[start:stop]), out[start:stop])
            checked(out[start:stop], z[start:stop])

        self._chunks.run(0, z.shape[0], work)
        self.ledger.add(vjps=z.shape[0])
        return out

    def vjp_squared_norms(self, z: Tensor) -> Tensor:
        """‖Jᵀz‖² for every row of z, accumulated in float64: (k, n) → (k,)."""
        out = torch.zeros(z.shape[0], dtype=torch.float64, device=z.device)

        def work(start: int, stop: int) -> None:
            blocks = self._pull_block(z[start:stop]).values()
            squares = torch.stack([_squared_norms(block) for block in blocks]).sum(0)
            out[start:stop] = checked(squares, z[start:stop])

        self._chunks.run(0, z.shape[0], work)
        self.ledger.add(vjps=z.shape[0])
        return out

    def jvp(self, u: Tensor) -> Tensor:
        """Ju for every row of u: (k, p) → (k, n)."""
        out = u.new_empty((u.shape[0], self.shape[0]), dtype=self.function.dtype)

        def work(start: int, stop: int) -> None:
            out[start:stop] = checked(self._push_block(self._unflatten(u[start:stop])), u[start:stop])

        self._chunks.run(0, u.shape[0], work)
        self.ledger.add(jvps=u.shape[0])
        return out

    def ntk(self, z: Tensor) -> Tensor:
        """Kz = J(Jᵀz) for every row of z: (k, n) → (k, n)."""
        out = torch.empty_like(z)

        def work(start: int, stop: int) -> None:
            pulled = self._pull_block(z[start:stop])
            out[start:stop] = checked(self._push_block(pulled), z[start:stop])
            check_not_vanished(out[start:stop], pulled.values())

        self._chunks.run(0, z.shape[0], work)
        self.ledger.add(vjps=z.shape[0], jvps=z.shape[0])
        return out

    def check_forward(self) -> None:
        """Finds the way of the forward products, once.

        Raises:
            NotImplementedError: If the model has neither a forward mode nor a second derivative.
        """
        if self._forward is None:
            self._forward = choose_forward(self.function)

    def dense(self) -> Tensor:
        """J itself, shape (n, p), by n reverse products."""
        return self.vjp(torch.eye(self.shape[0], dtype=self.function.dtype, device=self.function.device))

    # One chunk of products.

    def _pull_block(self, z: Tensor) -> Parameters:
        return self._pullback.pull(z.reshape(z.shape[0], *self.function.output_shape))

    def _push_block(self, u: Parameters) -> Tensor:
        self.check_forward()
        assert self._forward is not None
        out = self._forward.push(u)
        return out.reshape(out.shape[0], -1)

    # Vectors of p numbers and the parameters they stand for.

    def _flatten(self, blocks: Mapping[str, Tensor], out: Tensor) -> None:
        start = 0
        for name, size in self._sizes.items():
            out[:, start : start + size] = blocks[name].reshape(out.shape[0], size)
            start += size

    def _unflatten(self, u: Tensor) -> Parameters:
        pieces = u.split(list(self._sizes.values()), dim=1)
        blocks = {}
        for piece, (name, tensor) in zip(pieces, self.function.parameters.items(), strict=True):
            block = piece.reshape(u.shape[0], *tensor.shape).to(tensor.dtype)
            # Pairs of numbers are seen as complex ones only where they begin at an even place.
            pairs = self.function.is_complex(name)
            blocks[name] = block.clone(memory_format=torch.contiguous_format) if pairs else block
        return blocks


def _squared_norms(block: Tensor) -> Tensor:
    # In float64, since squares of float32 leave its range at 1e19 and 1e-19.
    flat = block.reshape(block.shape[0], 1, -1).double()
    return torch.bmm(flat, flat.mT).reshape(-1)
