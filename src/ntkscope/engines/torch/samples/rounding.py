"""Rounding, measured: the recorded graph run with every result off by some units of its last digit.

How far a gradient moves then says how far two honest evaluations of it may lie apart: where
numbers cancel, where a part runs in a lower precision, where a kink lies near. (The field calls
this Monte Carlo arithmetic.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.groups import Group
from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.graph.operators import expands, is_move, name_of
from ntkscope.engines.torch.modes import CHECK_SEED
from ntkscope.engines.torch.reverse.autograd import AutogradReverse
from ntkscope.engines.torch.samples.derived import derived_weights
from ntkscope.engines.torch.samples.linearization import Linearization

__all__ = ["is_low", "linearize_with_noise", "lowest_epsilon", "with_noise"]

#: Units of the last digit: several, for kinks are rare; but one where digits are few.
_UNITS = 8


def is_low(epsilon: float) -> bool:
    """Whether a precision is half or less."""
    return epsilon > 1e-5


def lowest_epsilon(graph: Graph, dtype: torch.dtype) -> float:
    """Of the lowest precision in which a graph computes, or of its state's if that is lower."""
    dtypes = {node.meta.get("dtype") for node in graph.graph.nodes}
    floating = [d for d in (*dtypes, dtype) if d is not None and d.is_floating_point]
    return max(torch.finfo(d).eps for d in floating)


def linearize_with_noise(
    graph: Graph,
    groups: Sequence[Group],
    parameters: Mapping[str, Tensor],
    leaves: Sequence[Tensor],
    device: torch.device,
) -> Linearization:
    """The graph of some samples with the results of its operations off by rounding.

    Args:
        graph: As recorded.
        groups: Its parameters.
        parameters: Their values.
        leaves: The inputs of the samples, samples first.
        device: The state's.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(CHECK_SEED)
        noisy = with_noise(graph)
        derived = derived_weights(noisy, parameters)
        weights = dict(parameters) | (derived.values if derived else {})
        reverse = AutogradReverse(noisy, weights, leaves, device, "different")
    return Linearization(noisy, groups, reverse, derived)


def with_noise(graph: Graph) -> Graph:
    """The graph with noise of the size of rounding on every result that depends on the sample."""
    nodes = list(graph.graph.nodes)
    holders = [node for node in nodes if node.op == "placeholder"]
    taps = set(holders[len(holders) - len(graph.uses) :])
    varied = set(holders[len(graph.names) :])
    copy = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        copies[node] = copy.node_copy(node, copies.__getitem__)
        if any(source in varied for source in node.all_input_nodes):
            varied.add(node)
            if _rounds(node) and not taps & set(node.all_input_nodes):
                copies[node] = copy.call_function(_off_by_rounding, (copies[node],))
    return replace(graph, graph=copy)


def _rounds(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    if node.op != "call_function" or dtype is None or not dtype.is_floating_point:
        return False
    return not (is_move(node) or expands(node) or name_of(node) == "detach")


def _off_by_rounding(value: Tensor) -> Tensor:
    """Each entry times 1 + some units of its last digit; whole numbers are taken for exact."""
    epsilon = torch.finfo(value.dtype).eps
    wide = value.float() if is_low(epsilon) else value
    noise = (2 * torch.rand_like(wide.detach()) - 1) * ((1 if is_low(epsilon) else _UNITS) * epsilon)
    whole = wide.detach() == wide.detach().round()
    return (wide * torch.where(whole, 1, 1 + noise)).to(value.dtype)
