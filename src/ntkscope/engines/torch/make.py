"""The torch engine of a model and its inputs: of one batch, or of data that streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ntkscope.data import is_stream
from ntkscope.engines.base import Engine
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.hooks.engine import HooksEngine
from ntkscope.engines.torch.hooks.sharded import is_sharded, of_fully_shard
from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.memory import default_budget
from ntkscope.engines.torch.processes.engine import SpreadEngine
from ntkscope.engines.torch.processes.exchange import Exchange, as_group
from ntkscope.engines.torch.stream.engine import StreamEngine

__all__ = ["accepts", "make"]


def accepts(model: Any) -> bool:
    """Whether a model is one of torch."""
    return isinstance(model, nn.Module)


def make(model: nn.Module, inputs: Any, **options: Any) -> Engine:
    """The engine, as :func:`ntkscope.engines.pick.make_engine` asks for it."""
    if options.get("memory_budget") is None:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        options["memory_budget"] = default_budget(device)
    exchange = Exchange(as_group(options.pop("group", None)))
    # After a forward pass, what fully_shard has wrapped may hold its parameters gathered.
    in_shards = is_sharded(model.parameters()) or bool(of_fully_shard(model))
    if options.pop("engine", "auto") == "hooks" or in_shards:
        for name in ("loss", "scale"):
            if options.pop(name, None) is not None:
                raise ValueError(
                    f"{name}= needs a model that is traced, and this one is measured by hooks on its layers; "
                    f"leave {name}= out"
                )
        return HooksEngine(model, inputs, exchange=exchange, **options)
    # A class that pytrees know is taken apart by them.
    leaves = pytree.tree_leaves(inputs) if is_stream(inputs) else []
    is_whole = len(leaves) == 1 and leaves[0] is inputs
    if exchange.size > 1:
        if is_whole:
            raise ValueError(
                "data that streams is measured on one process, and group= names several; give each one batch"
            )
        return SpreadEngine(model, inputs, exchange, **options)
    return (StreamEngine if is_whole else TorchEngine)(model, inputs, **options)
