"""Commands under torchrun: each process measures its share of the samples, and the first one speaks."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from os import _exit as end_at_once
from types import FrameType
from typing import Any

__all__ = [
    "EndedError",
    "is_early",
    "is_first",
    "is_said_elsewhere",
    "join",
    "leave",
    "local_device",
    "own_share",
    "several",
    "speaking_once",
]

# Seconds in which a launcher ends all processes when one has failed.
_PATIENCE = 10.0


def several() -> bool:
    """Whether torchrun has started several processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return not several() or os.environ.get("RANK") == "0"


class EndedError(BaseException):
    """The launcher ends this process."""


@contextlib.contextmanager
def speaking_once() -> Iterator[None]:
    """Only the first process prints, and what the launcher ends goes in order."""
    if not several():
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    with contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
    distributed = _joined()
    if distributed is not None:
        distributed.destroy_process_group()


def _joined() -> Any:
    """torch.distributed, once the processes have met."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_initialized() else None


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    raise EndedError(f"process {rank} of {world} was ended, since another one has ended or failed")


def is_early() -> bool:
    """Whether the processes have not met yet: one that fails by then says why itself."""
    return _joined() is None


def is_said_elsewhere() -> bool:
    """Whether the first process has failed as well: it says why, and the launcher ends this one."""
    if is_first():
        return False
    with contextlib.suppress(EndedError):
        time.sleep(_PATIENCE)
        return False
    return True


def leave(code: int) -> None:
    """Ends a process that has lost the others: there is nobody to say goodbye to."""
    if several() and code:
        sys.stdout.flush()
        sys.stderr.flush()
        end_at_once(code)


def join(device: Any) -> str | None:
    """The group of all processes; ``None`` for one process alone.

    Args:
        device: Where they work, which says how they talk.
    """
    if not several():
        return None
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return "world"


def local_device(device: Any) -> Any:
    """A GPU for each process of a machine, where no other was named."""
    import torch

    if not several() or device.type != "cuda" or device.index is not None:
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def own_share(inputs: Any, batch_dim: int | None) -> Any:
    """This process's samples: those of all in order, in parts of nearly the same size.

    Raises:
        ValueError: If samples are coupled, or fewer than processes.
    """
    from ntkscope.apps.loading import map_tensors

    if not several():
        return inputs
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if batch_dim is None:
        raise ValueError("--batch-dim none says that samples are coupled; measure them on one process")
    tensors: list[Any] = []
    map_tensors(tensors.append, inputs)
    batch = max((x.shape[batch_dim] for x in tensors if x.dim() > batch_dim), default=0)
    if batch < world:
        raise ValueError(
            f"{world} processes have {batch} samples to share; start fewer of them, or bring more"
        )
    return map_tensors(
        lambda x: x.tensor_split(world, dim=batch_dim)[rank] if x.dim() > batch_dim else x, inputs
    )
