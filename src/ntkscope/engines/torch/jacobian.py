"""The Jacobian as a linear map on blocks of vectors: Jᵀz, Ju and K z = J(Jᵀz)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ntkscope.engines.torch.errors import first_line
from ntkscope.engines.torch.memory import DEFAULT_BUDGET, Chunks, is_out_of_memory
from ntkscope.engines.torch.modes import CHECK_SEED, load_forward_mode, transpose_tolerance
from ntkscope.engines.torch.state import Parameters, StateFunction
from ntkscope.operators.ledger import Ledger

__all__ = ["Jacobian"]


class Jacobian:
    """J = ∂state/∂parameters, through products with blocks of row vectors.

    The forward pass is recorded once for all reverse products; forward products share one
    forward pass a chunk. Where an operation has no forward mode, Ju is the derivative of
    z ↦ Jᵀz (reverse over reverse), recorded once too.

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
        self._push: Callable[[Parameters], Tensor] = self._push_forward
        self._push_known = False
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
        if not self._push_known:
            self._push = self._choose_push()
            self._push_known = True

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
        out = self._map(self._push, u)
        return out.reshape(out.shape[0], -1)

    def _map(self, product: Callable[[Any], Any], block: Any) -> Any:
        """The product with every row, vectorized where the model's operations allow it."""
        with self.function.operations():
            return self._vectorize(lambda: vmap(product)(block), lambda: _loop(product, block))

    def _vectorize(self, together: Callable[[], Any], one_by_one: Callable[[], Any]) -> Any:
        """All rows together, or one after the other if an operation does not allow that."""
        if not self._vectorized:
            return one_by_one()
        try:
            return together()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
        # Operations refuse a batch in many words: whether single rows pass is what tells.
        rows = one_by_one()
        self._vectorized = False
        return rows

    def _push_forward(self, u: Parameters) -> Tensor:
        return jvp(self.function, (self.function.parameters,), (u,))[1]

    def _choose_push(self) -> Callable[[Parameters], Tensor]:
        """Forward mode if every operation of the model has one that is right, else reverse over reverse."""
        load_forward_mode()
        generator = torch.Generator().manual_seed(CHECK_SEED)
        function = self.function
        z, u = (torch.randn(1, size, generator=generator, dtype=torch.float64) for size in self.shape)
        z, u = z.to(function.device, function.dtype), u.to(function.device, function.dtype)
        row = {name: block[0] for name, block in self._unflatten(u).items()}
        try:
            with function.operations():
                forward = self._push_forward(row).reshape(-1).double()
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return self._reverse_over_reverse(row)
        # Torch's forward mode does not see torch.no_grad(), or an embedding's padding_idx.
        backward = u.new_empty(u.shape)
        self._flatten(self._pull_block(z), backward)
        difference = torch.dot(forward, z[0].double()) - torch.dot(backward[0].double(), u[0].double())
        tolerance = transpose_tolerance(function.dtype) * forward.norm() * z.double().norm()
        return self._push_forward if abs(difference) <= tolerance else self._reverse_over_reverse(row)

    def _reverse_over_reverse(self, row: Parameters) -> Callable[[Parameters], Tensor]:
        """U ↦ Ju as the transpose of the linear map z ↦ Jᵀz; tried on one row."""
        function = self.function
        with function.operations():
            pullback = vjp(function, function.parameters)[1]
            zero = torch.zeros(function.output_shape, dtype=function.dtype, device=function.device)
            transpose = vjp(lambda z: pullback(z, retain_graph=True, create_graph=True)[0], zero)[1]
            try:
                transpose(row, retain_graph=True)
            except (NotImplementedError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                raise NotImplementedError(
                    f"products Ju are not possible, since an operation of the model has neither a forward "
                    f"mode nor a second derivative ({first_line(error)}); use what needs reverse mode alone: "
                    "method='exact', 'per-sample', 'gram' or 'rhutch'"
                ) from error
        return lambda u: transpose(u, retain_graph=True)[0]

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


def _loop(product: Callable[[Any], Any], block: Any) -> Any:
    """``vmap(product)(block)`` one row after the other."""
    if isinstance(block, Tensor):
        rows = [product(row) for row in block]
    else:
        count = len(next(iter(block.values())))
        rows = [product({name: b[index] for name, b in block.items()}) for index in range(count)]
    if isinstance(rows[0], Tensor):
        return torch.stack(rows)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _stacked(rows: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _squared_norms(block: Tensor) -> Tensor:
    flat = block.reshape(block.shape[0], -1)
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    return (flat * flat).sum(dim=1, dtype=torch.float64)
