"""Files of inputs and checkpoints. Nothing is unpickled."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "LoadingError",
    "cast_inputs",
    "first_line",
    "kind_of",
    "load_checkpoint",
    "load_inputs",
    "map_tensors",
    "one_line",
    "plain_text",
]

#: What a model is called with: a tensor, a tuple (positional) or a dict (by name).
Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class LoadingError(ValueError):
    """A factory or a file that is not what it should be; the message is one line."""


# Inputs.


def load_inputs(path: Path) -> Inputs:
    """Reads the inputs of a model.

    One array is the positional argument; several are keyword arguments by their names, or
    positional if they are named ``arr_0``, ``arr_1`` and so on, as ``numpy.savez`` does.

    Args:
        path: A ``.npz``, ``.npy``, ``.safetensors``, ``.pt`` or ``.pth`` file.

    Raises:
        LoadingError: If the file is missing, empty, of another kind, or holds no numbers.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".safetensors": _read_safetensors,
        ".pt": _read_torch,
        ".pth": _read_torch,
    }
    _check_file(path, "inputs", list(readers))
    with _reading(path, "inputs"):
        found = readers[path.suffix](path)
    if isinstance(found, Tensor):
        return found
    if isinstance(found, (tuple, list)) and found and all(isinstance(item, Tensor) for item in found):
        return tuple(found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        what = "no array" if isinstance(found, Mapping) and not found else kind_of(found)
        raise LoadingError(f"inputs {path} hold {what}, expected a tensor, or a tuple or dict of tensors")
    return _arguments({str(name): value for name, value in found.items()})


def _arguments(named: dict[str, Tensor]) -> Inputs:
    if len(named) == 1:
        return next(iter(named.values()))
    if all(re.fullmatch(r"arr_\d+", name) for name in named):
        return tuple(named[name] for name in sorted(named, key=lambda name: int(name[4:])))
    return named


def cast_inputs(inputs: Any, model: nn.Module, device: torch.device) -> Any:
    """Brings inputs to the device, and floating ones to the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return map_tensors(cast, inputs)


def map_tensors(change: Callable[[Tensor], Any], inputs: Any) -> Any:
    """Inputs with every tensor changed, in tuples, lists and dicts of them too."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(change, value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        items = [map_tensors(change, value) for value in inputs]
        # A namedtuple takes its fields one by one.
        return type(inputs)(*items) if hasattr(inputs, "_fields") else type(inputs)(items)
    return inputs


def _read_npz(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not an npz archive")
    with np.load(path, allow_pickle=False) as archive:
        return {name: _to_tensor(name, archive[name]) for name in archive.files}


def _read_npy(path: Path) -> Tensor:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it is not an npy array")
    return _to_tensor(path.stem, np.load(path, allow_pickle=False))


def _to_tensor(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"array {name!r} has dtype {array.dtype}, expected numbers")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.dtype != np.longdouble else native.astype(np.float64))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


# Checkpoints.


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Puts a checkpoint's values into the model.

    Args:
        model: Changed in place.
        path: A ``.safetensors`` file, or what ``torch.save(model.state_dict(), path)`` wrote; a
            dict that holds the state dict under ``state_dict``, ``model_state_dict`` or ``model`` too,
            such as the ``.ckpt`` files of Lightning.

    Raises:
        LoadingError: If the file cannot be read, or its keys or shapes are not the model's.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": _read_safetensors,
        ".pt": _read_torch,
        ".pth": _read_torch,
        ".ckpt": _read_torch,
        ".bin": _read_torch,
    }
    _check_file(path, "checkpoint", list(readers))
    with _reading(path, "checkpoint"):
        found = readers[path.suffix](path)
    state = _state_dict(found)
    if state is None:
        raise LoadingError(f"checkpoint {path} holds {kind_of(found)}, expected a dict of tensors by name")
    _check_keys(model, state, path)
    model.load_state_dict(state, strict=False)


def _state_dict(found: Any) -> dict[str, Any] | None:
    """The state dict in what was read, if there is one."""
    if not isinstance(found, Mapping):
        return None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found.get(key), Mapping):
            return dict(found[key])
    tensors = any(isinstance(value, Tensor) for value in found.values())
    return dict(found) if tensors else None


def _check_keys(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    own = model.state_dict(keep_vars=True)
    covered = {id(own[key]) for key in state if key in own}
    # A tied tensor is stored once, under one of its names.
    missing = [key for key in own if key not in state and id(own[key]) not in covered]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        parts = [
            f"{what} {_listed(keys)}"
            for what, keys in (("it lacks", missing), ("the model does not have", unknown))
            if keys
        ]
        hint = _prefix_hint(list(own), list(state))
        raise LoadingError(f"checkpoint {path} does not fit the model: {'; '.join(parts)}{hint}")
    for key, value in state.items():
        found, expected = (tuple(getattr(tensor, "shape", ())) for tensor in (value, own[key]))
        if found != expected:
            raise LoadingError(
                f"checkpoint {path} does not fit the model: {key} has shape {found}, the model's {expected}"
            )


#: Who puts what before the names of a model's parameters.
_WRAPPERS = {
    "module.": "DataParallel and DistributedDataParallel",
    "model.": "a LightningModule, and a trainer that holds the model as .model,",
    "_orig_mod.": "torch.compile",
}


def _prefix_hint(own: list[str], found: list[str]) -> str:
    """What to do about keys that differ from the model's by a prefix alone; empty if they do not."""
    for prefix, wrapper in _WRAPPERS.items():
        if {key.removeprefix(prefix) for key in found if key.startswith(prefix)} >= set(own):
            return (
                f"; its keys begin with {prefix!r}, as {wrapper} saves them: save the state_dict of the "
                f"model inside, or take {prefix!r} off the keys (key.removeprefix({prefix!r}))"
            )
        if {f"{prefix}{key}" for key in found} >= set(own):
            return (
                f"; the model's keys begin with {prefix!r}, as {wrapper} names them: let the factory return "
                "the model inside"
            )
    return ""


def _listed(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


# Files and errors.


def _check_file(path: Path, what: str, suffixes: list[str]) -> None:
    if not path.exists():
        raise LoadingError(f"{what} {path} does not exist")
    if not path.is_file():
        raise LoadingError(f"{what} {path} is not a file")
    if path.suffix not in suffixes:
        raise LoadingError(
            f"{what} {path} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(suffixes)}"
        )
    if path.stat().st_size == 0:
        raise LoadingError(f"{what} {path} is empty")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a reader raises into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise LoadingError(
            f"{what} {path} cannot be read as plain tensors, and nothing else is unpickled; "
            "save tensors alone (a state_dict), or use safetensors"
        ) from error
    except Exception as error:
        raise LoadingError(f"{what} {path} cannot be read as {path.suffix}: {one_line(error)}") from error


def kind_of(value: Any) -> str:
    """``a list``, for messages."""
    return f"a {type(value).__name__}" if value is not None else "None"


def plain_text(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return " ".join(str(error).partition("\n")[0].split())


def one_line(error: BaseException) -> str:
    """``ValueError: what it says``, on one line."""
    text = plain_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
