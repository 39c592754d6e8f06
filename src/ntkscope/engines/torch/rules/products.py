"""Matrix products, einsum and their kin: contractions of a parameter with activations, on any of its sides.

Each operation is described once, as a sum of products whose axes are labelled; the gradient of
every argument follows from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.rules.base import Arguments, GroupShape, Rule, add_rule
from ntkscope.engines.torch.rules.contractions import Contraction, Labels, broadcast_labels

aten = torch.ops.aten


@dataclass(frozen=True)
class Written:
    """An operation on one sample as a sum of products.

    Attributes:
        output: Labels of the output.
        terms: For each product, its factor and the labels of its arguments by name.
    """

    output: Labels
    terms: tuple[tuple[float, Mapping[str, Labels]], ...]

    def find(self, name: str) -> tuple[float, Mapping[str, Labels]]:
        """The product with this argument."""
        return next(term for term in self.terms if name in term[1])


#: (number of axes of each tensor by name, the arguments) ↦ the operation.
Describe: TypeAlias = Callable[[Mapping[str, int], Arguments], Written]


def _contraction_of(written: Written, name: str, shape: tuple[int, ...]) -> Contraction:
    _, arguments = written.find(name)
    others = tuple(labels for other, labels in arguments.items() if other != name)
    return Contraction(arguments[name], shape, others, written.output)


def contraction_rule(operation: Any, describe: Describe, *names: str) -> None:
    """Registers the rule of an operation for all of its tensor arguments.

    Args:
        operation: The operator overload.
        describe: What it is.
        names: Its tensor arguments.
    """

    def written(arguments: Arguments, leading: int) -> Written:
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        return describe({name: value.dim() - leading for name, value in tensors.items()}, arguments)

    def applies(arguments: Arguments) -> bool:
        tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
        if any(value.is_complex() for value in tensors):
            return False
        of_one = written(arguments, 0)
        labels = [labels for _, term in of_one.terms for labels in term.values()]
        return all(len(set(own)) == len(own) for own in (*labels, of_one.output))

    def factor(arguments: Arguments, delta: Tensor, name: str) -> Factor:
        of_one = written(arguments, 1)
        scale, term = of_one.find(name)
        contraction = _contraction_of(of_one, name, tuple(arguments[name].shape[1:]))
        others = [arguments[other] for other in term if other != name]
        return contraction.gradient(delta if scale == 1 else delta * scale, others)

    def shape(arguments: Arguments, name: str, output: tuple[int, ...]) -> GroupShape:
        of_one = written(arguments, 0)
        return _contraction_of(of_one, name, tuple(arguments[name].shape)).group_shape(output)

    add_rule(operation, Rule(names, names, factor, applies, shape=shape))
    _DESCRIBED[operation] = written


#: ``written(arguments, leading)`` of each operation, with so many axes before those of one sample.
_DESCRIBED: dict[Any, Callable[[Arguments, int], Written]] = {}


def is_product(operation: Any) -> bool:
    """Whether an operation is a matrix product or a sum with one, however it is written."""
    return operation in _DESCRIBED


def product_of(operation: Any, arguments: Arguments) -> Written:
    """A product in labels, from the arguments for one sample."""
    return _DESCRIBED[operation](arguments, 0)


# What the operations are.


def _matmul(first: str, second: str) -> Describe:
    """(..., I, K) with (..., K, J); vectors lack the axis that is not summed over."""

    def describe(dims: Mapping[str, int], arguments: Arguments) -> Written:
        batch = broadcast_labels(max(dims[first], dims[second], 2) - 2)

        def of(name: str, own: Labels) -> Labels:
            return (*batch[len(batch) - max(dims[name] - 2, 0) :], *own)

        left = of(first, ("i", "k")) if dims[first] > 1 else ("k",)
        right = of(second, ("k", "j")) if dims[second] > 1 else ("k",)
        kept = tuple(label for label in ("i", "j") if label in left or label in right)
        return Written((*batch, *kept), ((1.0, {first: left, second: right}),))

    return describe


def _plus_product(first: str, second: str) -> Describe:
    """β · self + α · first @ second."""
    product = _matmul(first, second)

    def describe(dims: Mapping[str, int], arguments: Arguments) -> Written:
        of_product = product(dims, arguments)
        added = of_product.output[len(of_product.output) - dims["self"] :]
        scaled = (float(arguments["alpha"]), of_product.terms[0][1])
        return Written(of_product.output, ((float(arguments["beta"]), {"self": added}), scaled))

    return describe


def _outer_product(first: str, second: str) -> Describe:
    return lambda dims, arguments: Written(("i", "j"), ((1.0, {first: ("i",), second: ("j",)}),))


def _bilinear(dims: Mapping[str, int], arguments: Arguments) -> Written:
    batch = broadcast_labels(dims["input1"] - 1)
    product = {"input1": (*batch, "i"), "input2": (*batch, "j"), "weight": ("o", "i", "j")}
    return Written((*batch, "o"), ((1.0, product), (1.0, {"bias": ("o",)})))


def _tensordot(dims: Mapping[str, int], arguments: Arguments) -> Written:
    left: list[Any] = [f"l{axis}" for axis in range(dims["self"])]
    right: list[Any] = [f"r{axis}" for axis in range(dims["other"])]
    for own, other in zip(arguments["dims_self"], arguments["dims_other"], strict=True):
        right[other] = left[own]
    output = tuple(label for label in (*left, *right) if (label in left) != (label in right))
    return Written(output, ((1.0, {"self": tuple(left), "other": tuple(right)}),))


def _einsum(dims: Mapping[str, int], arguments: Arguments) -> Written:
    inputs, arrow, output = arguments["equation"].replace(" ", "").partition("->")
    named = {f"tensors[{index}]": own for index, own in enumerate(inputs.split(","))}
    omitted = {name: dims[name] - len(own.replace("...", "")) for name, own in named.items()}
    if not arrow:
        # All that appear once, in alphabetical order.
        letters = inputs.replace(".", "").replace(",", "")
        output = "..." * ("." in inputs) + "".join(x for x in sorted(set(letters)) if letters.count(x) == 1)
    term = {name: _labels(own, omitted[name]) for name, own in named.items()}
    return Written(_labels(output, max(omitted.values())), ((1.0, term),))


def _labels(subscripts: str, omitted: int) -> Labels:
    """Letters, with axes counted from the last where they are left out."""
    before, dots, after = subscripts.partition("...")
    return (*before, *(broadcast_labels(omitted) if dots else ()), *after)


for _operation, _first, _second in (
    (aten.matmul.default, "self", "other"),
    (aten.mm.default, "self", "mat2"),
    (aten.bmm.default, "self", "mat2"),
    (aten.mv.default, "self", "vec"),
    (aten.dot.default, "self", "tensor"),
):
    contraction_rule(_operation, _matmul(_first, _second), _first, _second)
for _operation, _first, _second in (
    (aten.addmm.default, "mat1", "mat2"),
    (aten.addmv.default, "mat", "vec"),
    (aten.baddbmm.default, "batch1", "batch2"),
):
    contraction_rule(_operation, _plus_product(_first, _second), "self", _first, _second)
for _operation in (aten.outer.default, aten.ger.default):
    contraction_rule(_operation, _outer_product("self", "vec2"), "self", "vec2")
contraction_rule(aten.bilinear.default, _bilinear, "input1", "input2", "weight", "bias")
contraction_rule(aten.tensordot.default, _tensordot, "self", "other")
contraction_rule(aten.einsum.default, _einsum, "tensors")
