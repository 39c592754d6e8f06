"""Fingerprints as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntkscope.files import check_writable, write_whole
from ntkscope.results.plain import Fields
from ntkscope.runs.kept import Tiles
from ntkscope.runs.ring import Ring

__all__ = ["SCHEMA", "Content", "read", "write"]

#: Of the files. A new field that may be missing is no new version.
SCHEMA = 1

_FORMAT = "ntkscope.fingerprint"
_ORDER = "order"
_TILES = "tiles/"
_REMEDY = "pass a file that Fingerprint.save wrote"


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    Attributes:
        tiles: By layer.
        ring: Which pairs of samples they are of.
        data: All else, plain.
    """

    tiles: Mapping[str, Tiles]
    ring: Ring
    data: Mapping[str, Any]

    @property
    def fields(self) -> Fields:
        """All else, with typed access."""
        return Fields(self.data, "a fingerprint")


def write(path: Path, content: Content) -> None:
    """Writes a file whole or not at all.

    Raises:
        ValueError: If it cannot be written.
    """
    from safetensors.numpy import save_file

    check_writable(path, (".safetensors",))
    tensors = {_TILES + name: np.ascontiguousarray(tiles) for name, tiles in content.tiles.items()}
    tensors[_ORDER] = np.asarray(content.ring.order, dtype=np.int64)
    plain = {
        **content.data,
        "block": content.ring.block,
        "offsets": list(content.ring.offsets),
        # safetensors sorts the names; a model's layers have an order.
        "layers": list(content.tiles),
    }
    metadata = {"format": _FORMAT, "schema": str(SCHEMA), "fingerprint": json.dumps(plain)}
    write_whole(path, lambda target: save_file(tensors, target, metadata))


def read(path: Path) -> Content:
    """Reads a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it holds something else, or is of a later version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            _check_kind(path, metadata)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as a fingerprint: {error}; {_REMEDY}") from error
    return _content(path, metadata, tensors)


def _check_kind(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file, but holds no fingerprint; {_REMEDY}")
    schema = metadata.get("schema", "")
    if schema != str(SCHEMA):
        raise ValueError(
            f"{path} has the schema version {schema!r}, expected {SCHEMA}; update ntkscope, or take the "
            "fingerprint again"
        )


def _content(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tiles]) -> Content:
    try:
        data = json.loads(metadata["fingerprint"])
        fields = Fields(data, "a fingerprint")
        order = tensors[_ORDER].astype(np.int64)
        ring = Ring(order, fields.whole("block"), tuple(map(int, fields.sequence("offsets"))))
        tiles = {str(name): tensors[f"{_TILES}{name}"] for name in fields.sequence("layers")}
        probes = fields.whole("probes")
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is a fingerprint that lacks {error}; {_REMEDY}") from error
    shape = (1 + len(ring.offsets), ring.blocks, ring.block, probes, ring.block, probes)
    for name, one in tiles.items():
        if one.shape != shape:
            raise ValueError(f"{path} holds {name!r} of shape {one.shape}, expected {shape}; {_REMEDY}")
    return Content(tiles, ring, data)
