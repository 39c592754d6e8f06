"""The Jacobian as a linear map on blocks of vectors: Jᵀz, Ju and K z = J(Jᵀz)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.forward import Forward, choose_forward
from ntkscope.engines.torch.memory import DEFAULT_BUDGET, Chunks, is_out_of_memory
from ntkscope.engines.torch.state import Parameters, StateFunction
from ntkscope.operators.ledger import Ledger

__all__ = ["Jacobian"]


class Jacobian:
    """J = ∂state/∂parameters, through products with blocks of row vectors.

    The forward pass is recorded once for all reverse products; forward products go by the first
    way that is right (:mod:`ntkscope.engines.torch.forward`).

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
        self._recorded: tuple[Tensor, Parameters] | None = None
        self._forward: Forward | None = None
        self._vectorized = True

    # Products: blocks of rows in, blocks of rows out.

    def vjp(self, z: Tensor) -> Tensor:
        """Jᵀz for every row of z: (k, n) → (k, p)."""
        out = z.new_empty((z.shape[0], self.shape[1]))

        def work(start: int, stop: int) -> None:
            self._flatten(self._pull_block(z[start:stop]), out[start:stop])

        self._chunks.run(0, z.shape[0], work)
        self.ledger.add(vjps=z.shape[0])
        return out

    def vjp_squared_norms(self, z: Tensor) -> Tensor:
        """‖Jᵀz‖² for every row of z, accumulated in float64: (k, n) → (k,)."""
        out = torch.zeros(z.shape[0], dtype=torch.float64, device=z.device)

        def work(start: int, stop: int) -> None:
            blocks = self._pull_block(z[start:stop]).values()
            out[start:stop] = sum(_squared_norms(block) for block in blocks)

        self._chunks.run(0, z.shape[0], work)
        self.ledger.add(vjps=z.shape[0])
        return out

    def jvp(self, u: Tensor) -> Tensor:
        """Ju for every row of u: (k, p) → (k, n)."""
        out = u.new_empty((u.shape[0], self.shape[0]), dtype=self.function.dtype)

        def work(start: int, stop: int) -> None:
            out[start:stop] = self._push_block(self._unflatten(u[start:stop]))

        self._chunks.run(0, u.shape[0], work)
        self.ledger.add(jvps=u.shape[0])
        return out

    def ntk(self, z: Tensor) -> Tensor:
        """Kz = J(Jᵀz) for every row of z: (k, n) → (k, n)."""
        out = torch.empty_like(z)

        def work(start: int, stop: int) -> None:
            out[start:stop] = self._push_block(self._pull_block(z[start:stop]))

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
        function = self.function
        if self._recorded is None:
            leaves = {name: value.clone().requires_grad_() for name, value in function.parameters.items()}
            with torch.enable_grad():
                self._recorded = (function(leaves), leaves)
        state, leaves = self._recorded
        block = z.reshape(z.shape[0], *function.output_shape)

        def zeros(value: Tensor) -> Tensor:
            return value.new_zeros(len(z), *value.shape)

        if not state.requires_grad:
            return {name: zeros(value) for name, value in leaves.items()}

        def pull(rows: Tensor, batched: bool) -> tuple[Any, ...]:
            return torch.autograd.grad(
                state,
                list(leaves.values()),
                rows,
                retain_graph=True,
                is_grads_batched=batched,
                allow_unused=True,
                # In a batch, torch makes these zeros without the batch's axis.
                materialize_grads=not batched,
            )

        with function.operations():
            gradients = self._vectorize(
                lambda: pull(block, True), lambda: _stacked(pull(row, False) for row in block)
            )
        found = zip(leaves.items(), gradients, strict=True)
        return {name: zeros(value) if grad is None else grad for (name, value), grad in found}

    def _push_block(self, u: Parameters) -> Tensor:
        self.check_forward()
        assert self._forward is not None
        out = self._forward.push(u)
        return out.reshape(out.shape[0], -1)

    def _vectorize(self, together: Callable[[], Any], one_by_one: Callable[[], Any]) -> Any:
        """All rows together, or one after the other if an operation does not allow that."""
        if not self._vectorized:
            return one_by_one()
        try:
            return together()
        except Exception as error:
            if is_out_of_memory(error):
                raise
        # Operations refuse a batch in many words: whether single rows pass is what tells.
        rows = one_by_one()
        self._vectorized = False
        return rows

    # Vectors of p numbers and the parameters they stand for.

    def _flatten(self, blocks: Mapping[str, Tensor], out: Tensor) -> None:
        start = 0
        for name, size in self._sizes.items():
            out[:, start : start + size] = blocks[name].reshape(out.shape[0], size)
            start += size

    def _unflatten(self, u: Tensor) -> Parameters:
        pieces = u.split(list(self._sizes.values()), dim=1)
        return {
            name: piece.reshape(u.shape[0], *tensor.shape).to(tensor.dtype)
            for piece, (name, tensor) in zip(pieces, self.function.parameters.items(), strict=True)
        }


def _stacked(rows: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _squared_norms(block: Tensor) -> Tensor:
    flat = block.reshape(block.shape[0], -1)
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    return (flat * flat).sum(dim=1, dtype=torch.float64)
