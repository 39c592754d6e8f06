"""The full MNIST set from IDX files, gzip or not, with every size and magic number checked."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ntkscope.apps.digits import Digits

__all__ = ["load_mnist", "read_idx"]

# Magic number 0x0000TTDD: the type (8: unsigned byte) and the number of dimensions.
_UNSIGNED_BYTE = 8
_PARTS = {
    "train_images": ("train-images", 3),
    "train_labels": ("train-labels", 1),
    "test_images": ("t10k-images", 3),
    "test_labels": ("t10k-labels", 1),
}


def load_mnist(folder: Path, held_out: int = 512) -> Digits:
    """Training images, and the first test images, of the four IDX files in a folder.

    Args:
        folder: Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
            and ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``.
        held_out: Test images to keep.

    Raises:
        ValueError: If a file is missing, damaged, or holds something else.
    """
    arrays = {
        name: read_idx(_find(folder, stem, dimensions), dimensions)
        for name, (stem, dimensions) in _PARTS.items()
    }
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.shape[1:] != (28, 28):
            raise ValueError(f"the {part} images in {folder} are {images.shape[1:]}, expected (28, 28)")
        if len(images) != len(labels):
            raise ValueError(
                f"{folder} holds {len(images):,} {part} images and {len(labels):,} labels; "
                "expected one label for each: take both files from one data set"
            )
        if len(labels) == 0 or labels.max() > 9:
            raise ValueError(f"the {part} labels in {folder} must be digits from 0 to 9; found other values")
    if len(arrays["test_images"]) < held_out:
        raise ValueError(
            f"{folder} holds {len(arrays['test_images']):,} test images, expected {held_out:,} or more"
        )
    return Digits(
        _as_rows(arrays["train_images"]),
        torch.from_numpy(arrays["train_labels"].astype(np.int64)),
        _as_rows(arrays["test_images"][:held_out]),
        torch.from_numpy(arrays["test_labels"][:held_out].astype(np.int64)),
    )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file.

    Args:
        path: The file; decompressed if its name ends in ``.gz``.
        dimensions: How many axes it must have.

    Raises:
        ValueError: If it cannot be read, or is not such a file.
    """
    data = _read(path)
    header = 4 + 4 * dimensions
    expected = (_UNSIGNED_BYTE << 8) | dimensions
    if len(data) < header:
        raise ValueError(f"{path} is no IDX file: {len(data)} bytes, expected {header} or more")
    magic = int.from_bytes(data[:4], "big")
    if magic != expected:
        raise ValueError(
            f"{path} is no IDX file of {dimensions} axes of bytes: its magic number is 0x{magic:08x}, "
            f"expected 0x{expected:08x}"
        )
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4))
    size = int(np.prod(shape, dtype=object))
    if len(data) - header != size:
        raise ValueError(
            f"{path} is damaged: its header says {'×'.join(map(str, shape))} = {size:,} bytes, "
            f"but {len(data) - header:,} follow; get the file again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _read(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return file.read()
        return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or no gzip file ({error}); get the file again") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; --mnist-dir must name the folder of the IDX files")
    kind = f"idx{dimensions}-ubyte"
    for name in (f"{stem}-{kind}", f"{stem}.{kind}"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise ValueError(f"{folder} holds no {stem}-{kind} or {stem}-{kind}.gz; --mnist-dir needs all four files")


def _as_rows(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.reshape(len(images), -1) / 255.0).float()
