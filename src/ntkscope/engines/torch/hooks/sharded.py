"""Parameters in shards: DTensor, and modules that ``fully_shard`` has wrapped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from ntkscope.engines.torch.compat import sharded_groups

__all__ = [
    "BUCKETS",
    "data_parallel_group",
    "is_sharded",
    "local",
    "of_fully_shard",
    "reshard",
    "sketch",
    "sketch_of_shard",
    "whole",
    "without_waiting_gradients",
]

#: Numbers of a sketch.
BUCKETS = 64


def _is_dtensor(value: Any) -> bool:
    """Whether a value is a DTensor; torch's module of them is not loaded for the question."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether one of some parameters is a DTensor."""
    return any(map(_is_dtensor, parameters))


def local(tensor: Any) -> Tensor:
    """This process's shard of a tensor, which shares its memory; a plain tensor itself."""
    found: Tensor = tensor.to_local() if _is_dtensor(tensor) else tensor.data
    return found


def whole(value: Any) -> Any:
    """A DTensor as the plain tensor that it stands for; anything else itself."""
    return value.full_tensor() if _is_dtensor(value) else value


def of_fully_shard(model: nn.Module) -> list[nn.Module]:
    """The submodules that ``fully_shard`` has wrapped."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(module, "FSDPModule", None)
    return [] if kind is None else [part for part in model.modules() if isinstance(part, kind)]


def reshard(model: nn.Module) -> None:
    """Lets what is gathered of a model's parameters go, so that it holds its shards alone."""
    for part in of_fully_shard(model):
        part.reshard()  # type: ignore[operator]


def data_parallel_group(model: nn.Module) -> Any:
    """The processes that hold samples of their own; ``None`` if all hold the same ones.

    With ``fully_shard`` every process brings its own samples. DTensors without it (tensor parallelism)
    are one model over several processes, which are given the same samples.

    Raises:
        ValueError: If both are mixed, or modules are sharded over different processes.
    """
    shards: list[Any] = [p for part in of_fully_shard(model) for p in part.parameters() if _is_dtensor(p)]
    if not shards:
        return None
    meshes = {shard.device_mesh for shard in shards}
    (mesh, *others) = meshes
    if not others and mesh.ndim == 1:
        return mesh.get_group()
    # Whole copies on the first axis, shards on the second.
    is_hybrid = not others and mesh.ndim == 2 and all(p.placements[0].is_replicate() for p in shards)
    if is_hybrid and mesh.size() == torch.distributed.get_world_size():
        return torch.distributed.group.WORLD
    raise ValueError(
        "hooks measure models that fully_shard has spread over one mesh of processes with samples of their "
        f"own, found meshes of shapes {sorted({tuple(m.shape) for m in meshes})}; use one mesh, "
        "of one axis or (copies, shards), without tensor parallelism"
    )


@contextmanager
def without_waiting_gradients(model: nn.Module) -> Iterator[None]:
    """Passes whose gradients are reduced at once, apart from those that wait (accumulation without sync)."""
    groups = [group for part in of_fully_shard(model) for group in sharded_groups(part)]
    flags = [(group, group.reduce_grads, group.all_reduce_grads) for group in groups]
    waiting = [
        (owner, attribute, getattr(owner, attribute))
        for group in groups
        for parameter in group.fsdp_params
        for owner, attribute in (
            (parameter, "unsharded_accumulated_grad"),
            (getattr(parameter, "unsharded_param", None), "grad"),
        )
        if owner is not None
    ]
    try:
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = True
        for owner, attribute, _ in waiting:
            setattr(owner, attribute, None)
        yield
    finally:
        for group, reduce, all_reduce in flags:
            group.reduce_grads, group.all_reduce_grads = reduce, all_reduce
        for owner, attribute, gradient in waiting:
            setattr(owner, attribute, gradient)


def sketch(values: Tensor, like: Any) -> Tensor:
    """A few random sums with signs of a tensor's entries, by their positions: (64,), float64.

    Its squared length is that of the tensor in the mean, and that of a single entry exactly.

    Args:
        values: The tensor, in the shape of ``like``.
        like: The parameter that it is of.
    """
    positions = torch.arange(like.numel(), device=values.device)
    return _sums(values, positions)


def sketch_of_shard(gradient: Any) -> Tensor:
    """This process's part of the sketch of a DTensor: those of all processes add up to it."""
    positions = torch.arange(gradient.numel(), device=gradient.device).reshape(gradient.shape)
    mesh, copies = gradient.device_mesh, 1
    for size, placement, place in zip(mesh.shape, gradient.placements, mesh.get_coordinate(), strict=True):
        if placement.is_shard():
            parts = positions.chunk(size, placement.dim)
            positions = parts[place] if place < len(parts) else positions.narrow(placement.dim, 0, 0)
        else:
            copies *= size
    return _sums(gradient.to_local(), positions.reshape(-1)) / copies


def _sums(values: Tensor, positions: Tensor) -> Tensor:
    mixed = (positions + 1) * 0x5DEECE66D + 0xB
    mixed = (mixed ^ (mixed >> 17)) * 0x2545F491
    mixed = mixed ^ (mixed >> 13)
    signs = 1 - 2 * ((mixed >> 7) & 1)
    sums = torch.zeros(BUCKETS, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, (mixed >> 9) & (BUCKETS - 1), values.reshape(-1).double() * signs)
