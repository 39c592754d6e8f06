"""Run a model's forward pass in operations that can be differentiated twice and in forward mode."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkscope.engines.torch.checkpoints import plain_checkpoints
from ntkscope.engines.torch.compat import (
    TorchFunctionMode,
    load_forward_mode_rules,
    plain_recurrence,
    warn_of_loops_under_vmap,
)
from ntkscope.engines.torch.packed import lengths_of
from ntkscope.engines.torch.recurrences import CELLS, padded_layers
from ntkscope.errors import said
from ntkscope.interrupts import uninterrupted

__all__ = [
    "CHECK_SEED",
    "differentiable_operations",
    "has_recurrence",
    "load_forward_mode",
    "plain_recurrences",
    "transpose_tolerance",
    "undisturbed",
]

_RECURRENT = ("gru", "lstm", "rnn_tanh", "rnn_relu")


#: Of the directions in which forward and reverse mode are compared: not one that a user takes.
CHECK_SEED = 0x6E746B


def transpose_tolerance(dtype: torch.dtype) -> float:
    """How far ⟨z, Ju⟩ and ⟨Jᵀz, u⟩ may lie apart by rounding, relative to ‖z‖ ‖Ju‖."""
    epsilon = torch.finfo(dtype).eps
    return min(epsilon**0.5, 1e6 * epsilon)


def has_recurrence(model: nn.Module) -> bool:
    """Whether a fused recurrent layer (``nn.RNN``, ``nn.GRUCell``, ...) is part of the model."""
    return any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in model.modules())


class _PlainRecurrences(TorchFunctionMode):
    """Sends fused recurrent layers through torch's own decomposition into linear layers and gates.

    cuDNN and mkldnn kernels have no double backward, no forward mode and no vmap.
    """

    def __init__(self) -> None:
        super().__init__()
        self._plain = {getattr(torch, name): _decomposed(name) for name in _RECURRENT} | dict(CELLS)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        plain = self._plain.get(func)
        if plain is None:
            return func(*args, **(kwargs or {}))
        with _without_mkldnn():
            return plain(*args, **(kwargs or {}))


def load_forward_mode() -> None:
    """Load torch's forward-mode rules, which it would load at the first forward product.

    It warns then of its own use of torch.jit, which is none of the user's business.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        load_forward_mode_rules()


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """The decomposition of an LSTM takes mkldnn's fused layer where it is allowed to."""
    mkldnn: Any = torch.backends.mkldnn
    enabled = mkldnn.enabled
    mkldnn.enabled = False
    try:
        yield
    finally:
        mkldnn.enabled = enabled


def _decomposed(name: str) -> Callable[..., Any]:
    """The recurrent function ``torch.<name>`` by plain operations, padded or packed."""
    padded, packed = plain_recurrence(name)

    def call(*args: Any) -> Any:
        # Packed sequences come as (data, batch_sizes, ...), padded ones as (input, hidden, ...).
        is_packed = isinstance(args[1], torch.Tensor) and not args[1].is_floating_point()
        layers, dropout, training = args[5:8] if is_packed else args[4:7]
        if training and dropout > 0 and layers > 1:
            raise ValueError(
                f"a recurrent layer in training mode has dropout {dropout}, so the model is random; "
                + said("call model.eval() first", "leave --train-mode out")
            )
        if not is_packed:
            return padded(*args)
        lengths = lengths_of(args[1])
        if lengths is None:
            return packed(args[0], args[1].tolist(), *args[2:])
        data, _, hidden, weights, biases, count, _, _, both_ways = args
        states = hidden if name == "lstm" else (hidden,)
        outputs, *lasts = padded_layers(
            name, data.unflatten(0, (lengths.steps, -1)), lengths, states, weights,
            biases=biases, layers=count, both_ways=both_ways,
        )  # fmt: skip
        return outputs.flatten(0, 1), *lasts

    return call


def plain_recurrences() -> TorchFunctionMode:
    """A context in which fused recurrent layers run by plain operations: same weights, same result."""
    return _PlainRecurrences()


#: Torch's switches and the user's module are shared by all threads: one kernel works at a time.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread at a time, outside of inference mode, with gradients possible; Ctrl-C waits for a pass."""
    with _ONE_AT_A_TIME, uninterrupted(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def differentiable_operations(*, recurrent: bool = False) -> Iterator[None]:
    """Choose kernels that every product can pass through, and put the old choice back.

    Attention takes the math backend (the fused ones have no forward mode and fall back to a
    slow loop under vmap), transformer layers skip their inference path, recurrent layers
    run by plain operations, and reentrant checkpoints are left out. Torch says nothing of operations
    that it loops over under vmap.

    Args:
        recurrent: Whether the model has fused recurrent layers.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            plain_recurrences() if recurrent else nullcontext(),
            plain_checkpoints(),
            _without_loop_warnings(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _without_loop_warnings() -> Iterator[None]:
    """Torch would ask the user to report every operation that vmap has no rule for."""
    global _quiet_depth
    _quiet_depth += 1
    warn_of_loops_under_vmap(False)
    try:
        yield
    finally:
        _quiet_depth -= 1
        # Torch does not tell what was set before; contexts lie within one another.
        warn_of_loops_under_vmap(_quiet_depth == 0)


_quiet_depth = 0
