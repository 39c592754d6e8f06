"""Estimates of a kernel's numbers that are differentiable in the parameters, to be added to a loss.

Each draws a few probes z of random signs over the state and pulls them back, g = Jᵀz, with a graph of its
own, so that the number can be differentiated once more (double backward). Draw other probes in every
step: ``seed=step``.

>>> import torch
>>> model, x = torch.nn.Linear(3, 2), torch.eye(3)
>>> penalty = trace(model, x, probes=200)
>>> bool(abs(penalty - 12) < 2)
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.data import as_inputs
from ntkscope.engines.torch.capture import as_arguments, check_state
from ntkscope.engines.torch.modes import differentiable_operations, has_recurrence
from ntkscope.interrupts import uninterrupted
from ntkscope.operators.probes import random_signs

__all__ = ["alignment", "frobenius_norm", "trace"]

_STREAM = 30


def trace(
    model: nn.Module,
    inputs: Any,
    probes: int = 1,
    seed: int = 0,
    *,
    outputs: Callable[[Any], Tensor] | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """Tr K ≈ mean of ‖Jᵀz‖² over probes: unbiased, and so is its gradient.

    Its relative deviation is √(2/(probes · effective rank)). It costs a forward pass (none with ``state=``),
    and a backward pass a probe; differentiating it a double backward a probe.

    Args:
        model: The module, in the mode in which it is trained. Parameters with ``requires_grad=False`` are
            not in θ.
        inputs: What it is called with: a tensor, a tuple (positional) or a mapping (by name).
        probes: How many.
        seed: Of the probes; give another one in every step.
        outputs: Picks the state from what the model returns.
        state: The state itself, if the caller has run the model already with gradients.

    Returns:
        A number with a graph, in the dtype of the state.

    Raises:
        ValueError: For too few probes, a state that no parameter reaches, or one that is not finite.
        TypeError: If the model is no module, or the state is not one real floating tensor.
    """
    forms = _forms(_pulled(model, inputs, probes, 1, seed, outputs, state))
    return forms.diagonal().mean()


def frobenius_norm(
    model: nn.Module,
    inputs: Any,
    probes: int = 4,
    seed: int = 0,
    *,
    squared: bool = False,
    outputs: Callable[[Any], Tensor] | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """‖K‖_F from inner products of pairs of probes: ‖K‖²_F ≈ mean over i ≠ j of (g_i·g_j)².

    The square is unbiased, and so is its gradient; its root, which comes back unless ``squared`` is set, is
    consistent: its bias falls as 1/probes.

    Args:
        model: As in :func:`trace`, and so are all others.
        inputs: What it is called with.
        probes: Two or more.
        seed: Of the probes.
        squared: Whether the square is wanted.
        outputs: Picks the state from what the model returns.
        state: The state itself.

    Returns:
        A number with a graph.

    Raises:
        ValueError: As :func:`trace`.
        TypeError: As :func:`trace`.
    """
    forms = _forms(_pulled(model, inputs, probes, 2, seed, outputs, state))
    square = _off_diagonal(forms * forms)
    return square if squared else square.sqrt()


def alignment(
    model: nn.Module,
    inputs: Any,
    other: nn.Module | Tensor,
    probes: int = 8,
    seed: int = 0,
    *,
    outputs: Callable[[Any], Tensor] | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """cos(K, K′) with another kernel on the same state: consistent, its bias falls as 1/probes.

    ⟨K, K′⟩ ≈ mean over i ≠ j of M_ij M′_ij with M_ij = g_i·g_j = z_iᵀKz_j, and the squared norms likewise.

    Args:
        model: As in :func:`trace`, and so are all others.
        inputs: What it is called with.
        other: A module with the same state (an earlier moment of training, say), which is not
            differentiated; a symmetric matrix of shape (n, n); or targets y of the state's size, for
            K′ = yyᵀ.
        probes: Three or more.
        seed: Of the probes.
        outputs: Picks the state from what the model (and the other one) returns.
        state: The state itself.

    Returns:
        A number with a graph.

    Raises:
        ValueError: As :func:`trace`, and if the other kernel is on a state of another size.
        TypeError: As :func:`trace`.
    """
    found = _pulled(model, inputs, probes, 3, seed, outputs, state)
    forms = _forms(found)
    if isinstance(other, nn.Module):
        theirs = _pulled(other, inputs, probes, 3, seed, outputs, None)
        if theirs.signs.shape != found.signs.shape:
            raise ValueError(_OTHER_SIZE.format(tuple(theirs.signs.shape[1:]), tuple(found.signs.shape[1:])))
        known = _forms(theirs).detach()
        size = _off_diagonal(known * known).sqrt()
    else:
        known, size = _known_forms(other, found.signs.flatten(1))
    return _off_diagonal(forms * known) / (_off_diagonal(forms * forms).sqrt() * size)


_OTHER_SIZE = (
    "the other kernel is on a state of shape {}, expected {}; kernels are compared on the same state: use "
    "the same inputs and outputs for both"
)


def _known_forms(other: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """z_iᵀK′z_j and ‖K′‖_F of a matrix or of targets."""
    other = torch.as_tensor(other).detach().to(signs)
    n = signs.shape[1]
    if other.shape == (n, n) and n > 1:
        return signs @ other @ signs.T, other.norm()
    if other.numel() != n:
        raise ValueError(_OTHER_SIZE.format(tuple(other.shape), (n, n)))
    along = signs @ other.reshape(-1)
    return torch.outer(along, along), other.square().sum()


class _Pulled:
    """Gradients g_i of some probes.

    Attributes:
        state: The state, with its graph.
        signs: The probes, shape (k, *state).
        gradients: A list of parameters' gradients for every probe; ``None`` where none is reached.
    """

    def __init__(self, state: Tensor, signs: Tensor, gradients: Sequence[tuple[Tensor | None, ...]]) -> None:
        self.state, self.signs, self.gradients = state, signs, gradients


def _pulled(
    model: nn.Module,
    inputs: Any,
    probes: int,
    least: int,
    seed: int,
    outputs: Callable[[Any], Tensor] | None,
    state: Tensor | None,
) -> _Pulled:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < least:
        raise ValueError(f"found probes={probes!r}; this estimate needs a whole number from {least} on")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with uninterrupted(), torch.enable_grad(), differentiable_operations(recurrent=has_recurrence(model)):
        if state is None:
            args, kwargs = as_arguments(as_inputs(inputs))
            state = model(*args, **kwargs)
            state = state if outputs is None else outputs(state)
        check_state(state, outputs is not None)
        if not parameters or not state.requires_grad:
            raise ValueError(
                "no trainable parameter reaches the state, so its kernel is zero; set requires_grad=True, "
                "or pass a state= that was computed with gradients"
            )
        drawn = torch.from_numpy(random_signs(state.numel(), 0, probes, seed=seed, stream=_STREAM).T)
        signs = drawn.to(state.device, state.dtype).reshape(probes, *state.shape)
        gradients: list[tuple[Tensor | None, ...]] = [
            torch.autograd.grad(state, parameters, z, create_graph=True, retain_graph=True, allow_unused=True)
            for z in signs
        ]
    return _Pulled(state, signs, gradients)


def _forms(pulled: _Pulled) -> Tensor:
    """M_ij = g_i·g_j, shape (k, k)."""
    count = len(pulled.signs)
    total = pulled.signs.new_zeros(count, count)
    for gradients in zip(*pulled.gradients, strict=True):
        if gradients[0] is None:
            continue
        rows = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
        flat = torch.stack([row.reshape(-1) for row in rows])
        total = total + (flat @ flat.T).to(total.dtype)
    # The kernel of a linear model has no gradient; its zero can be asked for all the same.
    return total if total.requires_grad else total + 0 * pulled.state.sum()


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The mean of the entries off the diagonal."""
    count = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))
