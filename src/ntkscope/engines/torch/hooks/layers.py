"""The layers whose parameters' gradients follow from what goes in and the gradient of what comes out.

A layer is one operation on its input, so that the rules of :mod:`ntkscope.engines.torch.rules` say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntkscope.engines.torch.gradients.factors import Direct, Factor
from ntkscope.engines.torch.rules import find_rule
from ntkscope.engines.torch.rules.base import Arguments, Rule

__all__ = ["KNOWN", "Layer", "layer_of_module"]

aten = torch.ops.aten

#: For errors: the layers that are known.
KNOWN = (
    "Linear, Conv, ConvTranspose, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm in eval mode, PReLU, "
    "Conv1D of transformers"
)

#: Static arguments of the operation, and how its captured ones follow from the layer's input, (B, f, ...).
_Arguments = Callable[[Tensor], Mapping[str, Any]]


@dataclass(frozen=True)
class Layer:
    """One known module.

    Attributes:
        parameters: The module's own trainable parameters: by their attribute, their name in the model.
        rule: How their gradients follow.
        arguments: Of the operation, from the input (B, f, ...), whose f rows of a sample are its batch.
        images: Whether the samples are in the first axis alone, before the channels; else in any axis but
            the last ``features``.
        features: Trailing axes of an output that belong to one position.
        takes_indices: Whether the input are indices, without the output's last axis.
    """

    parameters: Mapping[str, str]
    rule: Rule
    arguments: _Arguments
    images: bool = False
    features: int = 1
    takes_indices: bool = False

    @property
    def is_joint(self) -> bool:
        """Whether weight and bias are outer products of the same δ."""
        return self.rule.joint and len(self.parameters) > 1

    def factors(self, x: Tensor, delta: Tensor) -> dict[str, Factor]:
        """The gradient of every parameter, by its attribute: x is (B, f, ...), δ (k, B, f, ...)."""
        arguments: Arguments = self.arguments(x)
        return {own: self.rule.factor(arguments, delta, own) for own in self.parameters}


def layer_of_module(module: nn.Module, names: Mapping[int, str]) -> Layer | None:
    """The layer that a module is; ``None`` if it is unknown, or has no trainable parameter of its own.

    Args:
        module: Any module.
        names: The names of the model's trainable parameters, by their identity.
    """
    own = {
        attribute: names[id(parameter)]
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(parameter) in names
    }
    if not own:
        return None
    for kind, make in _MAKERS:
        if kind(module):
            layer = make(module, own)
            if layer is None:
                continue
            # What else the module holds is missed by the check of gradients, which names it.
            known = {name: own[name] for name in layer.rule.parameters if name in own}
            return replace(layer, parameters=known) if known else None
    return None


def _is(*kinds: type[nn.Module]) -> Callable[[nn.Module], bool]:
    """Whether a module is of a kind, and computes what its kind does."""

    def check(module: nn.Module) -> bool:
        return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)

    return check


def _shape(value: Any) -> Tensor:
    """A tensor that stands for its shape."""
    return torch.empty(tuple(value.shape), device="meta")


def _rule(operation: Any) -> Rule:
    rule = find_rule(operation)
    assert rule is not None
    return rule


def _linear(module: Any, own: Mapping[str, str]) -> Layer:
    weight = _shape(module.weight)
    return Layer(own, _rule(aten.linear.default), lambda x: {"input": x, "weight": weight})


def _conv1d_of_transformers(module: Any, own: Mapping[str, str]) -> Layer:
    """A linear map whose weight lies the other way round."""
    linear = _rule(aten.linear.default)
    weight = torch.empty(tuple(reversed(module.weight.shape)), device="meta")

    def factor(arguments: Arguments, delta: Tensor, name: str) -> Factor:
        found: Any = linear.factor(arguments, delta, name)
        return type(found)(found.probe_side, found.sample_side, transposed=name == "weight")

    rule = Rule(("weight", "bias"), ("input",), factor)
    return Layer(own, rule, lambda x: {"input": x, "weight": weight})


def _convolution(module: Any, own: Mapping[str, str]) -> Layer:
    dims = module.weight.dim() - 2
    operation = getattr(aten, f"conv{dims}d").default
    static = {"weight": _shape(module.weight)} | {
        name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")
    }
    if module.padding_mode == "zeros":
        return Layer(own, _rule(operation), lambda x: {"input": x} | static, images=True)
    sides, mode = _sides(module.padding, module.dilation, module.kernel_size), module.padding_mode
    static["padding"] = (0,) * dims

    def padded(x: Tensor) -> Mapping[str, Any]:
        full = F.pad(x.flatten(0, 1), sides, mode=mode)
        return {"input": full.unflatten(0, tuple(x.shape[:2]))} | static

    return Layer(own, _rule(operation), padded, images=True)


def _sides(padding: Any, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    """What is padded before and after, from the last axis on."""
    sides: list[int] = []
    for axis in reversed(range(len(kernel))):
        if isinstance(padding, str):
            total = 0 if padding == "valid" else dilation[axis] * (kernel[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [padding[axis], padding[axis]]
    return sides


def _transposed(module: Any, own: Mapping[str, str]) -> Layer:
    dims = module.weight.dim() - 2
    packet = getattr(aten, f"conv_transpose{dims}d")
    operation = packet.default if dims == 1 else packet.input
    static = {"weight": _shape(module.weight)} | {
        name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups", "output_padding")
    }
    return Layer(own, _rule(operation), lambda x: {"input": x} | static, images=True)


def _embedding(module: Any, own: Mapping[str, str]) -> Layer | None:
    # A limit on norms writes into the table; gradients that are scaled are no gradients.
    if module.max_norm is not None or module.scale_grad_by_freq:
        return None
    padding = -1 if module.padding_idx is None else module.padding_idx
    static = {"weight": _shape(module.weight), "padding_idx": padding}
    return Layer(own, _rule(aten.embedding.default), lambda x: {"indices": x} | static, takes_indices=True)


def _layer_norm(module: Any, own: Mapping[str, str]) -> Layer:
    static = {"normalized_shape": module.normalized_shape, "eps": module.eps}
    features = len(module.normalized_shape)
    return Layer(own, _rule(aten.layer_norm.default), lambda x: {"input": x} | static, features=features)


def _rms_norm(module: Any, own: Mapping[str, str]) -> Layer:
    static = {"normalized_shape": module.normalized_shape, "eps": module.eps}
    features = len(module.normalized_shape)
    return Layer(own, _rule(aten.rms_norm.default), lambda x: {"input": x} | static, features=features)


def _other_rms_norm(module: Any, own: Mapping[str, str]) -> Layer | None:
    """RMSNorm as language models write it: in float32, its scale applied afterwards."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float) or set(own) != {"weight"} or module.weight.dim() != 1:
        return None

    def factor(arguments: Arguments, delta: Tensor, name: str) -> Direct:
        x = arguments["input"].float() if arguments["input"].dtype != torch.float64 else arguments["input"]
        normal = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        products = delta * normal.to(delta.dtype)
        return Direct(products.flatten(2, -2).sum(2) if products.dim() > 3 else products)

    return Layer(own, Rule(("weight",), ("input",), factor), lambda x: {"input": x})


def _group_norm(module: Any, own: Mapping[str, str]) -> Layer:
    static = {"num_groups": module.num_groups, "eps": module.eps}
    return Layer(own, _rule(aten.group_norm.default), lambda x: {"input": x} | static, images=True)


def _batch_norm(module: Any, own: Mapping[str, str]) -> Layer | None:
    if module.training or module.running_mean is None:
        return None

    def arguments(x: Tensor) -> Mapping[str, Any]:
        averages = {
            name: getattr(module, name).detach().expand(len(x), -1)
            for name in ("running_mean", "running_var")
        }
        return {"input": x, "eps": module.eps} | averages

    return Layer(own, _rule(aten.batch_norm.default), arguments, images=True)


def _prelu(module: Any, own: Mapping[str, str]) -> Layer:
    weight = _shape(module.weight)
    return Layer(own, _rule(aten.prelu.default), lambda x: {"self": x, "weight": weight}, images=True)


def _is_batch_norm(module: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return isinstance(module, kinds)


def _is_named(name: str) -> Callable[[nn.Module], bool]:
    """Whether a class of another library has such a name: what it computes is checked anyway."""
    return lambda module: type(module).__name__.endswith(name)


_MAKERS: list[tuple[Callable[[nn.Module], bool], Callable[[Any, Mapping[str, str]], Layer | None]]] = [
    (_is(nn.Linear), _linear),
    (_is_named("Conv1D"), _conv1d_of_transformers),
    (_is(nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    (_is(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    (_is(nn.Embedding), _embedding),
    (_is(nn.LayerNorm), _layer_norm),
    (_is(nn.RMSNorm), _rms_norm),
    (_is(nn.GroupNorm), _group_norm),
    (_is_batch_norm, _batch_norm),
    (_is(nn.PReLU), _prelu),
    (_is_named("RMSNorm"), _other_rms_norm),
]
