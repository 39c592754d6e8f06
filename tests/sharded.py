"""What two processes do with a model in shards; rank 0 hands back what was found, by scenario."""

from __future__ import annotations

import dataclasses
import json
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gpt import GPT, make, tokens
from ntkscope import NTK

__all__ = ["COUNTS", "PROBES", "SCENARIOS", "alone", "measured", "process", "text"]

#: Samples of the processes.
COUNTS = (5, 3)
#: Probes of every sample in the runs whose bytes are counted.
PROBES = 4


def alone(rank: int, x: Tensor) -> Tensor:
    """The samples of one process."""
    start = sum(COUNTS[:rank])
    return x[start : start + COUNTS[rank]]


def sharded(
    seed: int, dtype: torch.dtype = torch.float32, low: torch.dtype | None = None, layers: int = 4
) -> GPT:
    """The language model in shards, block by block; in low precision inside, if that is given."""
    model = make(seed, checkpoints="plain", layers=layers).to(dtype)
    inside = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=dtype)
    for block in model.blocks:
        fully_shard(block, mp_policy=inside)
    return fully_shard(model, mp_policy=dataclasses.replace(inside, output_dtype=dtype))


def measured(first: NTK, second: NTK) -> dict[str, float]:
    """All four metrics, exact and estimated."""
    found = {}
    for name, how in {
        "exact": {"method": "exact"},
        "estimate": {"method": "per-sample", "products": 8},
    }.items():
        values = first.measure([second], **how)  # type: ignore[arg-type]
        found |= {
            f"{name} {metric}": values[metric].value
            for metric in ("trace", "frobenius_norm", "effective_rank")
        }
        found[f"{name} alignment"] = values.alignment[0].value
    found["squares"] = first.trace("per-sample", products=6).value
    return found


def metrics(rank: int) -> dict[str, float]:
    """The acceptance of sharded models: checkpoints, and more samples here than there."""
    x = alone(rank, tokens(8))
    return measured(*(NTK(sharded(seed), x) for seed in (0, 1)))


def splits(rank: int) -> dict[str, float]:
    """Layers apart."""
    return layers(NTK(sharded(0, layers=1), alone(rank, tokens(8))))


def layers(ntk: NTK) -> dict[str, float]:
    """Numbers of every parameter's kernel, by exact ways and by random probes."""
    exact = ntk.split("frobenius_norm", by="parameter", method="exact")
    drawn = ntk.split("trace", by="parameter", method="per-sample", products=3)
    return {
        f"{name} {part}": value.value
        for name, split in (("norm", exact), ("trace", drawn))
        for part, value in split.parts.items()
    }


class Traffic(TorchDispatchMode):
    """Bytes that collectives bring to this process, by what torch is really asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.received = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name.startswith("c10d::"):
            sizes = [leaf.nbytes for leaf in pytree.tree_leaves(args[0]) if isinstance(leaf, Tensor)]
            world = dist.get_world_size()
            others = (world - 1) / world
            # The first argument is the output: of all processes, or this one's share.
            share = {"allreduce_": 2 * others, "_reduce_scatter_base_": world - 1}.get(name[6:], others)
            self.received += share * sum(sizes)
        return func(*args, **(kwargs or {}))


def traffic(rank: int) -> dict[str, float]:
    """Bytes of a measurement from gradients of every sample for a few probes, and what it says of them."""
    ntk = NTK(sharded(0), alone(rank, tokens(8)))
    exchange = ntk.engine.hooked.exchange  # type: ignore[attr-defined]
    before = exchange.received
    with Traffic() as seen:
        ntk.frobenius_norm("per-sample", products=PROBES)
    return {"seen": seen.received, "said": exchange.received - before}


def not_finite(rank: int) -> dict[str, str]:
    """A state that is not finite on one process alone."""
    torch.manual_seed(0)
    model = fully_shard(nn.Linear(3, 2))
    try:
        NTK(model, torch.full((2, 3), float("inf") if rank else 1.0))
    except ValueError as error:
        return {"error": str(error)}
    return {}


def text(rank: int) -> dict[str, str]:
    """What is said of it."""
    ntk = NTK(sharded(0, layers=1), alone(rank, tokens(8)))
    plan = ntk.plan("measure")
    return {"plan": str(plan), "repr": repr(ntk), "samples": ntk.engine.samples().describe()}  # type: ignore[union-attr]


def low_precision(rank: int) -> dict[str, float]:
    """Layers in bfloat16, gradients summed in float32."""
    ntk = NTK(sharded(0, low=torch.bfloat16, layers=1), alone(rank, tokens(8)))
    return measured(ntk, ntk)


def copies(rank: int) -> dict[str, float]:
    """Whole copies on each process, an axis of the mesh; after a forward pass that leaves all gathered."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("copies", "shards"))
    model = make(0, layers=1)
    fully_shard(model.blocks[0], mesh=mesh, reshard_after_forward=False)
    model = fully_shard(model, mesh=mesh)
    x = alone(rank, tokens(8))
    with torch.no_grad():
        model(x)
    ntk = NTK(model, x)
    return measured(ntk, ntk)


def accumulation(rank: int) -> dict[str, bool]:
    """Gradients of training, those that wait to be reduced among them, are left as they are."""
    x = alone(rank, tokens(8))

    def train(between: Callable[[GPT], object]) -> list[Tensor]:
        model = sharded(0, torch.float64, layers=1)
        model(x).square().sum().backward()
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        model(x).sum().backward()
        between(model)
        model.set_requires_gradient_sync(True)
        model(x).cos().sum().backward()
        return [p.grad.to_local().clone() for p in model.parameters()]

    plain, watched = (
        train(lambda model: None),
        train(lambda model: NTK(model, x).trace("per-sample", products=2)),
    )
    return {"same": all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))}


def snapshot(rank: int) -> dict[str, float]:
    """A kernel is that of the moment at which it was made, also after a step and a forward pass."""
    model, x = sharded(0, torch.float64, layers=1), alone(rank, tokens(8))
    ntk = NTK(model, x)
    before = ntk.trace("exact").value
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        state = model(x)
    after = ntk.trace("exact").value
    with torch.no_grad():
        moved = float((model(x) - state).abs().max())
    return {"before": before, "after": after, "moved": moved, "trained": ntk.at(model).trace("exact").value}


class Outside(nn.Module):
    """A weight that is used by its layer, and once more by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.head(torch.tanh(F.linear(y, self.layer.weight)))


def refusal(rank: int) -> dict[str, str]:
    """Every process gets the error."""
    torch.manual_seed(0)
    model = fully_shard(Outside().double())
    try:
        NTK(model, torch.ones(COUNTS[rank], 6, dtype=torch.float64))
    except ValueError as error:
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, str(error))
        return {f"rank {number}": words for number, words in enumerate(said)}
    return {}


def shapes(rank: int) -> dict[str, str]:
    """Texts of other lengths on each process."""
    try:
        NTK(sharded(0, layers=1), tokens(4, length=6)[:, : 6 - rank])
    except ValueError as error:
        return {"error": str(error)}
    return {}


def tensor_parallel(rank: int) -> dict[str, float]:
    """Layers that are spread over the processes, which are given the same samples."""
    model = make(0, layers=1)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    ntk = NTK(model, tokens(8))
    return measured(ntk, ntk)


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        metrics, splits, traffic, text, not_finite, low_precision, accumulation, snapshot, refusal, shapes,
        tensor_parallel, copies,
    )
}  # fmt: skip


def process(rank: int, world: int, folder: str, names: tuple[str, ...]) -> None:
    """One process: all scenarios one after the other; what they give goes into a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(folder, "store").as_uri(), rank=rank, world_size=world)
    for name in names:
        try:
            found = SCENARIOS[name](rank)
        except Exception:
            found = {"failed": traceback.format_exc()}
        Path(folder, f"{name}.{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
