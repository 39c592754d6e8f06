"""Values with tensors in them as byte tensors, and back: what goes from one process to another."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]

# Values go between processes of one run that this program has started, and nowhere else.


class _Packer(pickle.Pickler):
    """Leaves tensors out, and notes them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        """Number, dtype and shape in the place of a tensor."""
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value.detach())
        return len(self.tensors) - 1, value.dtype, tuple(value.shape), value.device


class _Unpacker(pickle.Unpickler):
    """Puts them in again."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, name: Any) -> Tensor:
        """The tensor."""
        number, dtype, shape, device = name
        # A GPU of another process is this one's own.
        place = torch.device(device.type) if device.type != "cpu" else device
        return self._tensors[number].view(dtype).reshape(shape).to(place)


def pack(value: Any, device: torch.device) -> list[Tensor]:
    """Bytes of what a value is made of, and of each of its tensors."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    form = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8).to(device)
    return [
        form,
        *(tensor.contiguous().reshape(-1).view(torch.uint8).to(device) for tensor in packer.tensors),
    ]


def unpack(parts: list[Tensor]) -> Any:
    """The value again."""
    form, *tensors = parts
    return _Unpacker(io.BytesIO(form.cpu().numpy().tobytes()), tensors).load()
