"""Rules of convolutions, forward and transposed, against the dense Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agreement import agree, each_alone, random
from zoo import Function

pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning",
    "ignore:Using padding='same' with even kernel lengths:UserWarning",
)

SIZES = {1: (9,), 2: (6, 5), 3: (4, 3, 4)}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "stride": {"stride": 2},
    "dilation": {"dilation": 2},
    "padding": {"padding": 1},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "everything": {"stride": 2, "dilation": 2, "padding": 2, "groups": 2},
}
FORWARD: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "same": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
}
TRANSPOSED: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "output-padding": {"stride": 2, "output_padding": 1},
    "everything-and-output-padding": {
        "stride": 3, "dilation": 2, "padding": 1, "groups": 2, "output_padding": 2,
    },
}  # fmt: skip
each_dimension = pytest.mark.parametrize("dims", [1, 2, 3])


@each_dimension
@pytest.mark.parametrize("options", FORWARD.values(), ids=FORWARD)
def test_convolutions(dims: int, options: dict[str, Any]) -> None:
    kernel = 2 if options.get("dilation") == 2 else (3, 2, 2)[:dims]
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    each_alone(lambda: layer(4, 4, kernel, **options), random(2, 4, *SIZES[dims]))


@each_dimension
@pytest.mark.parametrize("options", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions(dims: int, options: dict[str, Any]) -> None:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    each_alone(lambda: layer(4, 4, 3, **options), random(2, 4, *(2, 1, 1)[:dims]))


def test_a_padded_same_convolution_with_an_even_kernel() -> None:
    each_alone(lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), random(2, 2, 4, 5))


def test_unequal_geometry_on_each_axis() -> None:
    options = {"stride": (1, 2, 1), "padding": (1, 0, 2), "dilation": (1, 1, 2)}
    each_alone(lambda: nn.Conv3d(2, 2, (2, 3, 1), **options), random(2, 2, 3, 4, 3))  # type: ignore[arg-type]


def test_several_images_in_a_sample() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    for layer in (nn.Conv2d(4, 6, 2, groups=2), nn.ConvTranspose2d(4, 2, 2, groups=2)):
        each_alone(lambda layer=layer: Function(run, conv=layer), random(2, 3, 4, 3, 2))


def test_images_without_a_batch_axis() -> None:
    model = Function(lambda m, x: torch.stack([m.conv(image) for image in x]), conv=nn.Conv1d(2, 3, 2))
    agree(model.double(), random(3, 2, 5))
