"""The backward pass of the user's own module, from which a state's witness comes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor

from ntkscope.engines.torch.compat import hooks_after_gradients
from ntkscope.engines.torch.errors import first_line
from ntkscope.engines.torch.memory import is_out_of_memory

__all__ = ["first_backward", "without_hooks"]


@contextmanager
def without_hooks(parameters: Collection[Tensor]) -> Iterator[None]:
    """The user's hooks on gradients are for training: they neither run nor change what is measured."""
    hooks = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
    # Those that run after a gradient is added to .grad are called from the dict that torch has been given.
    after = [(live, dict(live)) for live in map(hooks_after_gradients, parameters) if live]
    for parameter, _ in hooks:
        parameter._backward_hooks = None
    for live, _ in after:
        live.clear()
    try:
        yield
    finally:
        for parameter, own in hooks:
            parameter._backward_hooks = own
        for live, kept in after:
            live.update(kept)


@contextmanager
def first_backward(parameters: Collection[Tensor]) -> Iterator[None]:
    """A first backward pass: what it cannot do is said in our words; gradients of before are put back.

    Args:
        parameters: All of the model's trainable ones.

    Raises:
        ValueError: If the pass fails, or writes gradients by itself, which ``autograd.grad`` does not see.
    """
    kept = [(parameter, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        with without_hooks(parameters):
            yield
        writes = any(parameter.grad is not None for parameter in parameters)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the model's backward pass fails ({first_line(error)}); look for a function of its own that "
            "torch.autograd.grad cannot pass through, and run its plain operations instead"
        ) from error
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
    if writes:
        raise ValueError(
            "the model's backward pass adds to its parameters' .grad by itself, as reversible blocks do, so "
            "that torch.autograd.grad misses these gradients; run the plain operations inside instead"
        )
