"""Every private name of torch that we stand on, and what happens on a torch that has it no more.

Torch renames these without notice, so no other file may use one. ``tests/engines/test_compat.py``
looks for each of them: there a new torch says which are gone, and what they were for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

try:
    from torch.overrides import TorchFunctionMode
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    # Inputs in tuples and dicts, sizes and recurrent layers: nothing can be measured without.
    raise ImportError(
        f"ntkscope does not know torch {torch.__version__} ({error}); "
        "install a version that its constraints.txt names"
    ) from error

__all__ = [
    "BATCH_NORMS",
    "FLOP_FORMULAS",
    "NO_RECORDING",
    "PACK",
    "PAD",
    "TO_COPY",
    "DispatchMode",
    "OpOverload",
    "PreDispatchMode",
    "TorchFunctionMode",
    "before_dispatch",
    "has_memory",
    "hooks_after_gradients",
    "is_wrapped",
    "load_forward_mode_rules",
    "name_of_operator",
    "name_of_overload",
    "plain_recurrence",
    "pytree",
    "schema_arguments",
    "schema_of",
    "sharded_groups",
    "storage_id",
    "transforms_are_active",
    "warn_of_loops_under_vmap",
    "writes_in_place",
]


# Operators of a graph.

try:
    from torch._ops import OpOverload
except ImportError:
    OpOverload = type(torch.ops.aten.add.Tensor)  # type: ignore[misc,assignment]


#: What torch.nn.utils.rnn packs sequences with, and pads them again.
PACK: Any = getattr(torch, "_pack_padded_sequence", None)
PAD: Any = getattr(torch, "_pad_packed_sequence", None)


def schema_of(operation: Any) -> Any:
    """An operator's schema: ``name``, ``arguments``, ``returns``, ``is_mutable``."""
    return operation._schema


def is_wrapped(value: Tensor) -> bool:
    """Whether a tensor is one of a transformation's own (vmap, grad), which has no memory to look at."""
    check = getattr(getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return bool(check(value)) if check is not None else False


def has_memory(value: Tensor) -> bool:
    """Whether a tensor has numbers in memory: the zeros of forward mode have none."""
    return not bool(getattr(value, "_is_zerotensor", bool)())


def transforms_are_active() -> bool:
    """Whether a transformation of torch.func (vmap, grad) is at work; what it wraps else has no memory."""
    functorch = getattr(torch._C, "_functorch", None)
    peek = getattr(functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


def name_of_operator(operation: Any) -> str:
    """An operator's bare name: ``add`` of ``aten::add.Tensor``."""
    name: str = operation.name()
    return name.split("::")[-1].partition(".")[0]


def name_of_overload(operation: Any) -> str:
    """The name of an operator's overload: ``Tensor`` of ``aten::add.Tensor``."""
    name: str = operation.name()
    return name.partition(".")[2] or "default"


def schema_arguments(operation: Any) -> Sequence[Any]:
    """The arguments in an operator's schema, each with a ``name`` and a ``default_value``."""
    arguments: Sequence[Any] = operation._schema.arguments
    return arguments


def writes_in_place(operation: Any) -> bool:
    """Whether an operator writes into one of its arguments."""
    return bool(operation._schema.is_mutable)


# Modes that see every operation.

try:
    from torch.utils.flop_counter import flop_registry as _flop_registry
except ImportError:
    _flop_registry = {}

#: Floating-point operations by operator. Where torch has none, costs are predicted from sizes alone.
FLOP_FORMULAS: Mapping[Any, Callable[..., int]] = _flop_registry


class DispatchMode(TorchDispatchMode):
    """A mode that sees every operation after autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch loads its whole compiler, for seconds, to say that this is not compiled.
        return False


#: Why this torch cannot record a model, so that samples and layers have no structure; else empty.
NO_RECORDING = ""

try:
    from torch._dispatch.python import enable_pre_dispatch, enable_python_dispatcher
    from torch._subclasses.schema_check_mode import SchemaCheckMode

    _PRE_DISPATCH = torch._C.DispatchKey.PreDispatch
    schema_arguments(torch.ops.aten.add.Tensor)
except (ImportError, AttributeError) as error:
    NO_RECORDING = f"torch {torch.__version__} cannot record a model ({error})"
    SchemaCheckMode = TorchDispatchMode  # type: ignore[misc,assignment]


class PreDispatchMode(SchemaCheckMode):
    """A mode that sees operations as modules call them; torch admits only relatives of its own there."""

    def __init__(self) -> None:
        super().__init__()
        self._dispatch_key = _PRE_DISPATCH

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return DispatchMode._should_skip_dynamo()


@contextmanager
def before_dispatch() -> Iterator[None]:
    """A context in which a :class:`PreDispatchMode` can be entered."""
    with enable_python_dispatcher(), enable_pre_dispatch():
        yield


def storage_id(value: Tensor) -> int:
    """A number that two tensors share if they share memory."""
    storage = value.untyped_storage()
    # Empty tensors all have the address 0: to be taken for relatives costs their structure only.
    return int(getattr(storage, "_cdata", storage.data_ptr()))


# Kinds of layers.

try:
    from torch.nn.modules.batchnorm import _NormBase

    #: Layers with running averages.
    BATCH_NORMS: tuple[type[_NormBase], ...] = (_NormBase,)
except ImportError:
    # Without those that users derive from torch's private base.
    BATCH_NORMS = (
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
        nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    )  # fmt: skip

try:
    from torch._decomp import decomposition_table as _decompositions
except ImportError:
    _decompositions = {}


def plain_recurrence(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Torch's own decomposition of ``torch.<name>`` into linear layers and gates.

    Args:
        name: ``gru``, ``lstm``, ``rnn_tanh`` or ``rnn_relu``.

    Returns:
        The function of padded sequences and that of packed ones.

    Raises:
        NotImplementedError: If this torch has none.
    """
    packet = getattr(torch.ops.aten, name)
    try:
        padded, packed = _decompositions[packet.input], _decompositions[packet.data]
    except (KeyError, AttributeError) as error:
        raise NotImplementedError(
            f"torch {torch.__version__} has no decomposition of torch.{name}, so layers that call it cannot "
            "be measured; write the recurrence with a cell, such as nn.LSTMCell, or take another torch"
        ) from error
    return (_with_states_like_the_first(padded), packed) if name == "lstm" else (padded, packed)


def _with_states_like_the_first(lstm: Callable[..., Any]) -> Callable[..., Any]:
    """Torch 2.6 gives the last states of an LSTM an axis too many."""

    def call(data: Tensor, states: Sequence[Tensor], *args: Any) -> tuple[Tensor, ...]:
        output, *last = lstm(data, states, *args)
        pairs = zip(last, states, strict=True)
        return output, *(b if b.shape == a.shape else b.reshape(a.shape) for b, a in pairs)

    return call


# Forward mode and vmap.


def load_forward_mode_rules() -> None:
    """Load torch's forward-mode rules; where they lie elsewhere, torch does so at the first product."""
    with contextlib.suppress(ImportError):
        import torch._decomp.decompositions_for_jvp  # noqa: F401


def warn_of_loops_under_vmap(enabled: bool) -> None:
    """Whether torch warns of each operation that it loops over under vmap; without the switch it does."""
    functorch = getattr(torch._C, "_functorch", None)
    switch = getattr(functorch, "_set_vmap_fallback_warning_enabled", None)
    if switch is not None:
        switch(enabled)


#: What a cast becomes where a graph is recorded below autograd.
TO_COPY = torch.ops.aten._to_copy.default


# Parameters.


def hooks_after_gradients(parameter: Tensor) -> dict[Any, Any]:
    """The hooks that run after a gradient is added to a parameter's .grad, in the dict that torch calls."""
    return getattr(parameter, "_post_accumulate_grad_hooks", None) or {}


def sharded_groups(module: Any) -> list[Any]:
    """What ``fully_shard`` keeps of a module's parameters; none where this torch keeps it elsewhere.

    Gradients that wait to be reduced are then not told from those of a measurement.
    """
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]
    return [group for group in groups if group is not None]
