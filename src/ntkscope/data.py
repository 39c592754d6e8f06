"""What a model is called with: from whatever the user hands over to arguments made of tensors.

Each kind of input is a class with ``accepts`` and ``convert``, and a line in :data:`SOURCES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

__all__ = ["SOURCES", "Source", "as_inputs", "inputs_of", "is_stream"]


class Source(Protocol):
    """One kind of thing that inputs come in."""

    def accepts(self, value: Any) -> bool:
        """Whether this is such a thing."""
        ...

    def convert(self, value: Any, floating: Any = None) -> Any:
        """It as tensors in dicts, lists and tuples; its parts are converted in their turn.

        Raises:
            TypeError: If it cannot be, with the remedy.
        """
        ...


class Mappings:
    """Anything with keys: a dict, a tokenizer's BatchEncoding, a UserDict."""

    def accepts(self, value: Any) -> bool:
        """Whether it is a mapping."""
        return isinstance(value, Mapping)

    def convert(self, value: Any, floating: Any = None) -> dict[Any, Any]:
        """A plain dict of its items."""
        return {key: as_inputs(item, floating) for key, item in value.items()}


class Sequences:
    """Tuples, named ones too, and lists."""

    def accepts(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, (tuple, list))

    def convert(self, value: Any, floating: Any = None) -> Any:
        """One of the same kind."""
        parts = [as_inputs(item, floating) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


class Arrays:
    """NumPy arrays, and numbers of NumPy's."""

    def accepts(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, (np.ndarray, np.generic))

    def convert(self, value: Any, floating: Any = None) -> Any:
        """A tensor of its own memory.

        Raises:
            TypeError: If it holds no numbers.
        """
        import torch

        try:
            tensor = torch.tensor(value)
            return tensor.to(floating or tensor.dtype) if tensor.is_floating_point() else tensor
        except TypeError as error:
            raise TypeError(
                f"inputs hold a NumPy array of {value.dtype}, expected numbers; encode what it holds first"
            ) from error


class Loaders:
    """Data loaders and datasets, which hold many batches or single samples."""

    def accepts(self, value: Any) -> bool:
        """Whether it is one."""
        module = type(value).__module__.split(".")[0]
        base = [cls.__name__ for cls in type(value).__mro__ if cls.__module__.startswith("torch.utils.data")]
        return bool(base) and module != "numpy"

    def convert(self, value: Any, floating: Any = None) -> Any:
        """Nothing: one batch must be chosen."""
        raise TypeError(
            f"inputs are a {type(value).__name__}, expected a batch or a loader of batches; pass "
            "DataLoader(dataset, batch_size=...) by itself, or a batch of it without the targets"
        )


class Records:
    """Objects that hold tensors as attributes: graphs of PyTorch Geometric, dataclasses of one's own."""

    def accepts(self, value: Any) -> bool:
        """Whether it is no tensor and has some inside."""
        return not hasattr(value, "untyped_storage") and bool(self._tensors(value))

    def convert(self, value: Any, floating: Any = None) -> Any:
        """Nothing: how the model takes them apart is not known."""
        names = self._tensors(value)
        raise TypeError(
            f"inputs are a {type(value).__name__} with the tensors {', '.join(names[:8])}; pass these as a "
            "dict or a tuple, to a module whose forward takes them one by one (and builds the object itself)"
        )

    def _tensors(self, value: Any) -> list[str]:
        items: Iterable[tuple[Any, Any]] = getattr(value, "__dict__", {}).items()
        if callable(getattr(value, "to_dict", None)):
            items = value.to_dict().items()
        return [str(name) for name, item in items if hasattr(item, "untyped_storage")]


#: Every kind, in the order in which they are tried; what none accepts is passed on as it is.
SOURCES: list[Source] = [
    Mappings(),
    Sequences(),
    Arrays(),
    Loaders(),
    Records(),
]


def as_inputs(value: Any, floating: Any = None) -> Any:
    """What a model is called with, as tensors in dicts, lists and tuples.

    Args:
        value: A tensor, a NumPy array, a mapping, a tuple or list, and these within one another.
        floating: The dtype that NumPy's floating numbers are brought to; left as they are if ``None``.

    Raises:
        TypeError: For a DataLoader and the like, with the remedy.

    >>> import collections
    >>> as_inputs(collections.UserDict(tokens=np.array([1, 2])))
    {'tokens': tensor([1, 2])}
    """
    for source in SOURCES:
        if source.accepts(value):
            return source.convert(value, floating)
    return value


def is_stream(value: Any) -> bool:
    """Whether inputs come batch by batch: a torch ``DataLoader``, or any other iterable of batches.

    A list or tuple is none, since it holds positional arguments; nor is a dataset, which holds
    single samples, nor anything that holds tensors or numbers itself.

    >>> is_stream([1, 2]), is_stream(iter([1, 2]))
    (False, True)
    """
    kind = type(value)
    if kind.__module__.startswith("torch.") or Loaders().accepts(value):
        return any(cls.__name__ == "DataLoader" for cls in kind.__mro__)
    plain = (str, bytes, bytearray, set, frozenset, range)
    # What a source turns into tensors is data of one batch.
    is_data = isinstance(value, plain) or any(source.accepts(value) for source in SOURCES)
    is_data = is_data or any(hasattr(kind, name) for name in ("__array__", "untyped_storage"))
    # Modules and records are iterable too, by their children or their fields.
    is_data = is_data or any(hasattr(kind, name) for name in ("named_parameters", "keys", "to_dict"))
    return not is_data and hasattr(kind, "__iter__")


def inputs_of(batch: Any, forward: Callable[..., Any]) -> Any:
    """What the model is called with for one batch of a stream: its inputs without the targets.

    A pair (x, y) stands for inputs x and targets y, and y is dropped. One value in a tuple or list stands
    for itself. A tensor, an array or a mapping is taken as it is.

    Args:
        batch: What the loader yields.
        forward: What it is called with, to tell targets from a second input.

    Raises:
        TypeError: If it is a tuple or list of another length, or the second of two could be an input.

    >>> inputs_of(("x", "y"), lambda x: x)
    'x'
    """
    if not isinstance(batch, (tuple, list)):
        return batch
    if len(batch) == 1:
        return batch[0]
    if len(batch) != 2:
        raise TypeError(
            f"the loader yields a {type(batch).__name__} of {len(batch)}, expected inputs, a pair (inputs, "
            "targets) or a mapping; yield ((a, b), y) for a model that is called with a and b, or a "
            "mapping of arguments by name"
        )
    first = batch[0]
    if not isinstance(first, (tuple, list, Mapping)) and _takes_two(forward):
        raise TypeError(
            "the loader yields pairs, and the model's forward takes two arguments, so that the second may be "
            "targets or an input; yield ((x,), y) for the first alone, ((a, b), y) for both, or a mapping "
            "of arguments by name"
        )
    return first


def _takes_two(forward: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True
