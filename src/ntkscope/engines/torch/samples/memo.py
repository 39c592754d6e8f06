"""What was traced of a module, kept as long as the module lives: the next kernel of it is only checked."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from ntkscope.engines.torch.constants import Constants
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.state import StateFunction

__all__ = ["keep", "recall"]

# Signatures of one module, the last ones that were used.
_MOST = 4
# Frozen parameters and buffers are kept to be compared; where they are large, tracing anew is cheap beside.
_MOST_BYTES = 64 << 20

_Entry = tuple[Constants, Any, SampleJacobian]
_TRACED: weakref.WeakKeyDictionary[nn.Module, list[_Entry]] = weakref.WeakKeyDictionary()


def recall(function: StateFunction, signature: Any) -> SampleJacobian | None:
    """What was traced of the same module with the same form of inputs, without values; it is to be checked.

    Args:
        function: The state.
        signature: What else the structure depends on.
    """
    entries = _TRACED.get(function.module, [])
    if not entries:
        return None
    constants = function.constants()
    return next((bare for kept, own, bare in entries if own == signature and kept == constants), None)


def keep(function: StateFunction, signature: Any, jacobian: SampleJacobian) -> None:
    """Keeps what was traced, in place of what was used least lately."""
    constants = function.constants()
    if constants.nbytes > _MOST_BYTES or not constants.comparable:
        return
    others = [
        entry for entry in _TRACED.get(function.module, []) if entry[1] != signature or entry[0] != constants
    ]
    _TRACED[function.module] = [(constants, signature, jacobian.stripped()), *others][:_MOST]
