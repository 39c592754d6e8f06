"""IDX files: what is read, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ntkscope.apps.paper.idx import load_mnist, read_idx


def _idx(array: np.ndarray, magic: int | None = None) -> bytes:
    header = (0x0800 | array.ndim) if magic is None else magic
    return header.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for stem, count, packed in (("train", 20, False), ("t10k", 12, True)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = _idx(array)
            path = tmp_path / f"{stem}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)
    return tmp_path


def test_digits_are_read(folder: Path) -> None:
    digits = load_mnist(folder, held_out=10)
    assert digits.train_images.shape == (20, 784)
    assert digits.test_images.shape == (10, 784)
    assert digits.test_labels.tolist() == list(range(10))
    first = read_idx(folder / "train-images-idx3-ubyte", 3)[0]
    assert digits.train_images[0].numpy() == pytest.approx(first.reshape(-1) / 255)


def test_too_few_test_images(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds 12 test images, expected 512 or more"):
        load_mnist(folder)


def test_a_missing_file(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"holds no train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz"):
        load_mnist(folder)
    with pytest.raises(ValueError, match="there is no folder"):
        load_mnist(folder / "nowhere")


def test_a_wrong_magic_number(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(_idx(np.zeros((20, 28, 28), np.uint8), 0x0D03))
    with pytest.raises(ValueError, match="its magic number is 0x00000d03, expected 0x00000803"):
        load_mnist(folder)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_truncated_gzip(folder: Path, cut: int) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="is damaged or no gzip file"):
        load_mnist(folder)


def test_what_is_no_gzip_or_too_short(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(b"digits")
    with pytest.raises(ValueError, match="no gzip file"):
        load_mnist(folder)
    path.unlink()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"abc")
    with pytest.raises(ValueError, match="is no IDX file: 3 bytes, expected 8 or more"):
        load_mnist(folder)


@pytest.mark.parametrize("bad", [b"x", b""])
def test_sizes_that_do_not_match_the_header(folder: Path, bad: bytes) -> None:
    path = folder / "train-labels-idx1-ubyte"
    data = path.read_bytes()
    path.write_bytes(data + bad if bad else data[:-1])
    with pytest.raises(ValueError, match=r"is damaged: its header says 20 = 20 bytes, but (21|19) follow"):
        load_mnist(folder)


def test_images_and_labels_of_two_sets(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(19, np.uint8)))
    with pytest.raises(ValueError, match="holds 20 train images and 19 labels"):
        load_mnist(folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx(np.full(20, 77, np.uint8)))
    with pytest.raises(ValueError, match="must be digits from 0 to 9"):
        load_mnist(folder)
