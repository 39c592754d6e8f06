"""What is known of ATen operators, in one table: which ones only move numbers, and how.

An operator's name stands for all its overloads. What is asked of a node of a recorded graph
is answered here, so that nothing else lists operators by what they do to a tensor's entries.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from enum import Flag, auto
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.compat import OpOverload, name_of_operator, schema_arguments

__all__ = [
    "OPERATORS",
    "Trait",
    "View",
    "arguments_of",
    "bound_arguments",
    "casts",
    "casts_by_name",
    "drop_dead",
    "expands",
    "flat_arguments_of",
    "is_entrywise",
    "is_move",
    "is_pointwise",
    "is_random",
    "is_transpose",
    "joins",
    "matrix_product",
    "name_of",
    "on_meta",
    "rearranges",
    "reduced_axes",
    "splits",
    "unbound_axis",
    "view_of",
]


class Trait(Flag):
    """What an operator does with the entries of its argument.

    Attributes:
        MOVES: It computes nothing: each entry of the result is an entry of an argument.
        REARRANGES: The result shows every entry of the one argument exactly once.
        RESHAPES: The entries keep their order; the shape alone is another.
        PERMUTES: The axes change places.
        SPLITS: The results are parts of the argument, side by side along an axis.
        TAKES: The result is one part of the argument along an axis.
        JOINS: The arguments stand side by side along an axis, old or new.
        EXPANDS: The argument is repeated by broadcasting.
    """

    MOVES = auto()
    REARRANGES = auto()
    RESHAPES = auto()
    PERMUTES = auto()
    SPLITS = auto()
    TAKES = auto()
    JOINS = auto()
    EXPANDS = auto()


def _table() -> dict[str, Trait]:
    rearranges = Trait.REARRANGES | Trait.MOVES
    families = {
        "view reshape _unsafe_view flatten unflatten squeeze unsqueeze contiguous alias": (
            Trait.RESHAPES | rearranges
        ),
        "clone": Trait.RESHAPES | Trait.MOVES,
        "t mT numpy_T transpose permute movedim swapaxes": Trait.PERMUTES | rearranges,
        "moveaxis": Trait.PERMUTES,
        "chunk split split_with_sizes unbind": Trait.SPLITS | Trait.MOVES,
        "tensor_split unsafe_chunk unsafe_split": Trait.SPLITS,
        "select slice narrow": Trait.TAKES | Trait.MOVES,
        "cat concat stack": Trait.JOINS | Trait.MOVES,
        "hstack vstack flip": Trait.MOVES,
        "expand expand_as broadcast_to": Trait.EXPANDS,
    }
    return {name: traits for names, traits in families.items() for name in names.split()}


#: Traits by the operator's bare name; an operator that is not here has none of them.
OPERATORS: Mapping[str, Trait] = _table()

#: (k, B, *shape of the source) → (k, B, *shape of the view), the same memory.
View: TypeAlias = Callable[[Any], Any]


# Nodes: their names and arguments.


def name_of(node: fx.Node) -> str:
    """The operation's bare name, or an empty string."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    target = node.target
    return name_of_operator(target) if isinstance(target, OpOverload) else ""


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The operation's arguments by the names of its schema, defaults filled in."""
    return bound_arguments(node.target, node.args, node.kwargs)


def flat_arguments_of(node: fx.Node) -> dict[str, Any]:
    """The same with lists of tensors taken apart: "tensors[0]", "tensors[1]", and so on."""
    found: dict[str, Any] = {}
    for name, value in arguments_of(node).items():
        if isinstance(value, (list, tuple)) and any(isinstance(part, fx.Node) for part in value):
            found |= {f"{name}[{index}]": part for index, part in enumerate(value)}
        else:
            found[name] = value
    return found


def bound_arguments(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operator overload by the names of its schema, defaults filled in."""
    assert isinstance(operation, OpOverload)
    bound = {}
    for index, argument in enumerate(schema_arguments(operation)):
        if index < len(args):
            bound[argument.name] = args[index]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def on_meta(value: Any) -> Any:
    """A node as an empty tensor of its shape; anything else as it is."""
    if not isinstance(value, fx.Node):
        return value
    fake = value.meta.get("val")
    return torch.empty(fake.shape, dtype=fake.dtype, device="meta") if isinstance(fake, Tensor) else None


# Traits.


def _has(node: fx.Node, trait: Trait) -> bool:
    return trait in OPERATORS.get(name_of(node), Trait(0))


def is_move(node: fx.Node) -> bool:
    """Whether it only moves numbers; picking a part of what an operator split is such a move."""
    if name_of(node) != "getitem":
        return _has(node, Trait.MOVES)
    origin = node.args[0]
    return isinstance(origin, fx.Node) and splits(origin) and _has(origin, Trait.MOVES)


def rearranges(node: fx.Node) -> bool:
    """Whether it shows all of a tensor exactly once: a parameter may pass through it.

    Asked of a recorded graph whose nodes still have their values.
    """
    return _has(node, Trait.REARRANGES) or (expands(node) and _is_as_long(node))


def _is_as_long(node: fx.Node) -> bool:
    """Whether it has as many entries as its argument."""
    source, result = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    return isinstance(source, Tensor) and isinstance(result, Tensor) and source.numel() == result.numel()


def casts(node: fx.Node) -> bool:
    """Whether it gives a floating tensor in another floating dtype, and does nothing else.

    Asked of a recorded graph whose nodes still have their values.
    """
    if not casts_by_name(node) or not isinstance(node.args[0], fx.Node):
        return False
    source, result = node.args[0].meta.get("val"), node.meta.get("val")
    return (
        isinstance(source, Tensor)
        and isinstance(result, Tensor)
        and source.is_floating_point()
        and result.is_floating_point()
        and (source.device, source.layout) == (result.device, result.layout)
    )


def casts_by_name(node: fx.Node) -> bool:
    """Whether it may do nothing but give a tensor in another dtype."""
    return name_of(node) in ("to", "_to_copy", "type_as")


def splits(node: fx.Node) -> bool:
    """Whether it takes a tensor apart."""
    return _has(node, Trait.SPLITS)


def joins(node: fx.Node) -> bool:
    """Whether it puts tensors side by side along its argument ``dim``."""
    return _has(node, Trait.JOINS)


def expands(node: fx.Node) -> bool:
    """Whether it repeats a tensor by broadcasting."""
    return _has(node, Trait.EXPANDS)


def is_pointwise(node: fx.Node) -> bool:
    """Whether every entry of the result depends on one entry of each argument."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return False
    return torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags


def is_entrywise(node: fx.Node) -> bool:
    """As :func:`is_pointwise`, or so in its first argument: triangles and quantisation."""
    name = name_of(node)
    return is_pointwise(node) or name in ("tril", "triu", "where") or name.startswith("fake_quantize")


def is_transpose(node: fx.Node) -> bool:
    """Whether it swaps the axes of a matrix, where its argument is one."""
    target: Any = node.target
    turned = target(torch.empty(2, 3, device="meta"), *node.args[1:], **node.kwargs)
    return tuple(turned.shape) == (3, 2)


def matrix_product(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """Both factors of a product, and what is added to it; of ``linear`` the second one is transposed."""
    names = {"mm": ("self", "mat2"), "matmul": ("self", "other"), "mv": ("self", "vec")}
    names |= {"linear": ("input", "weight"), "addmm": ("mat1", "mat2")}
    if name_of(node) not in names:
        return None
    arguments = arguments_of(node)
    if any(arguments.get(scale, 1) != 1 for scale in ("alpha", "beta")):
        return None
    left, right = (arguments[name] for name in names[name_of(node)])
    return left, right, arguments["self"] if name_of(node) == "addmm" else arguments.get("bias")


def reduced_axes(node: fx.Node, dims: int) -> set[int] | None:
    """The axes of its argument, of so many, that a sum, a mean or a norm makes one number of."""
    name = name_of(node)
    if name == "norm_except_dim":
        return set(range(dims)) - {arguments_of(node)["dim"] % dims}
    if name not in ("sum", "mean", "norm", "linalg_vector_norm", "amax", "amin", "var", "std"):
        return None
    axes = arguments_of(node).get("dim")
    axes = [axes] if isinstance(axes, int) else axes
    return {axis % dims for axis in axes} if axes else set(range(dims))


def is_random(node: fx.Node) -> bool:
    """Whether it draws random numbers: not what is dropped out with probability 0, or in evaluation."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = arguments_of(node)
    unused = any(arguments.get(name) is False for name in ("train", "training"))
    return not unused and not any(arguments.get(name) == 0 for name in ("p", "dropout_p", "dropout"))


def drop_dead(graph: fx.Graph) -> None:
    """Takes out what nothing reads, random draws included: FX would keep these."""
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


# Views, with two axes more in front: probes and samples.


def view_of(node: fx.Node) -> View | None:
    """What the operation does to a value of shape (k, B, *shape of its first argument), if that is a view."""
    if name_of(node) == "getitem" and splits(node.args[0]):  # type: ignore[arg-type]
        index = node.args[1]
        return lambda parts: parts[index]
    if _has(node, Trait.RESHAPES):
        shape = node.meta["shape"]
        return lambda block: block.view(*block.shape[:2], *shape)
    if _has(node, Trait.PERMUTES):
        order = _permutation(node)
        return lambda block: block.permute(order)
    if name_of(node) == "dropout" and not arguments_of(node)["train"]:
        return lambda block: block
    if splits(node) or _has(node, Trait.TAKES):
        return _shifted(node)
    return None


def unbound_axis(node: fx.Node) -> int | None:
    """The axis along which an ``unbind`` takes its argument apart."""
    if name_of(node) != "unbind":
        return None
    axis: int = arguments_of(node)["dim"]
    return axis % len(node.all_input_nodes[0].meta["shape"])


def _shifted(node: fx.Node) -> View:
    """The operation itself, with two axes more before the one that it speaks of."""
    target: Any = node.target
    _, *given = arguments_of(node).items()
    options = dict(given)
    options["dim"] += 2 if options["dim"] >= 0 else 0
    return lambda block: target(block, **options)


def _permutation(node: fx.Node) -> list[int]:
    """The axes of (k, B, *result) among those of (k, B, *argument), read off distinct sizes."""
    (source,) = node.all_input_nodes
    sizes = list(range(2, 2 + len(source.meta["shape"])))
    target: Any = node.target
    turned = target(torch.empty(sizes, device="meta"), *node.args[1:], **node.kwargs)
    return [0, 1, *turned.shape]
