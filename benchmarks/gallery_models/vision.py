"""Images: convolutional networks, transformers, and the denoisers of diffusion models."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gallery_models.base import Parts, entry

_FEW = {"batch": 2, "num_classes": 3}


@entry(
    "ResNet-18",
    "vision",
    "Batch norm in training mode couples the samples: call `eval()`.",
    package="timm",
    small=_FEW | {"size": 32, "channels": (4, 8, 8, 8), "stem_width": 4},
)
def resnet18(batch: int = 32, size: int = 64, **config: Any) -> Parts:
    import timm

    model = timm.create_model("resnet18", **config).eval()
    return model, torch.randn(batch, 3, size, size), {}


@entry(
    "ResNet-50",
    "vision",
    "The norm's cheapest way keeps the gradients of all samples at once. They do not fit the default budget "
    "of 1 GiB, and what is taken in its place costs five times as much: give `memory=` what you have.",
    package="timm",
    small=_FEW | {"size": 32, "layers": (1, 1, 1, 1), "channels": (2, 4, 4, 4), "stem_width": 4},
)
def resnet50(batch: int = 32, size: int = 64, **config: Any) -> Parts:
    import timm

    model = timm.create_model("resnet50", **config).eval()
    return model, torch.randn(batch, 3, size, size), {"memory": "8GiB"}


@entry(
    "ViT-S/16",
    "vision",
    "The class token and the position table have no layer: they are sums with activations, entry by entry.",
    package="timm",
    small=_FEW | {"img_size": 32, "embed_dim": 8, "depth": 2, "num_heads": 2},
)
def vit(batch: int = 8, img_size: int = 96, **config: Any) -> Parts:
    import timm

    model = timm.create_model("vit_small_patch16_224", img_size=img_size, **config).eval()
    return model, torch.randn(batch, 3, img_size, img_size), {}


@entry(
    "ConvNeXt-T",
    "vision",
    "LayerScale multiplies activations by a parameter, channel by channel; its layer norm permutes axes.",
    package="timm",
    small=_FEW | {"size": 64, "depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)},
)
def convnext(batch: int = 16, size: int = 64, **config: Any) -> Parts:
    import timm

    model = timm.create_model("convnext_tiny", **config).eval()
    return model, torch.randn(batch, 3, size, size), {}


@entry(
    "Swin-T",
    "vision",
    "The table of relative positions is read by an index that is a buffer, once for each pair of patches.",
    package="timm",
    small=_FEW | {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
)
def swin(batch: int = 2, img_size: int = 224, **config: Any) -> Parts:
    import timm

    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=img_size, **config).eval()
    return model, torch.randn(batch, 3, img_size, img_size), {}


@entry(
    "MLP-Mixer S/16",
    "vision",
    "A linear layer over patches works on a transposed tensor: its positions are the channels.",
    package="timm",
    small=_FEW | {"img_size": 32, "embed_dim": 8, "num_blocks": 2},
)
def mixer(batch: int = 8, img_size: int = 96, **config: Any) -> Parts:
    from timm.models.mlp_mixer import MlpMixer

    model = MlpMixer(img_size=img_size, **config).eval()
    return model, torch.randn(batch, 3, img_size, img_size), {}


@entry(
    "EfficientNet-B0",
    "vision",
    "Drop path and batch norm are random or coupled while training: call `eval()`.",
    package="timm",
    small=_FEW | {"name": "test_efficientnet", "size": 32},
)
def efficientnet(name: str = "efficientnet_b0", batch: int = 16, size: int = 64, **config: Any) -> Parts:
    import timm

    model = timm.create_model(name, **config).eval()
    return model, torch.randn(batch, 3, size, size), {}


@entry(
    "UNet",
    "vision",
    "The state is an image: 3,072 outputs a sample, of which a few make most of the trace.",
    package="diffusers",
    small={"batch": 1, "size": 4, "channels": 1, "widths": (4, 8), "norm_num_groups": 2},
)
def unet(
    batch: int = 8,
    size: int = 32,
    channels: int = 3,
    widths: tuple[int, ...] = (32, 64, 128),
    norm_num_groups: int = 8,
) -> Parts:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
        norm_num_groups=norm_num_groups,
        attention_head_dim=min(widths),
    ).eval()
    inputs = {"sample": torch.randn(batch, channels, size, size), "timestep": torch.randint(1000, (batch,))}
    return model, inputs, {"outputs": lambda y: y.sample}


@entry(
    "DiT-S/2",
    "vision",
    "Shift, scale and gate of every block come from the time and the class: layers of the condition, not "
    "parameters of a norm. Its last layer starts at zero: an untrained one has almost no gradient.",
    package="diffusers",
    small={
        "batch": 1,
        "size": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 2,
        "in_channels": 2,
        "num_embeds_ada_norm": 3,
    },
)
def dit(
    batch: int = 4,
    size: int = 16,
    num_attention_heads: int = 6,
    attention_head_dim: int = 64,
    num_layers: int = 12,
    **config: Any,
) -> Parts:
    from diffusers import DiTTransformer2DModel

    config = {"in_channels": 4, "num_embeds_ada_norm": 1000, "norm_num_groups": 2} | config
    model = DiTTransformer2DModel(
        sample_size=size,
        num_attention_heads=num_attention_heads,
        attention_head_dim=attention_head_dim,
        num_layers=num_layers,
        **config,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(batch, config["in_channels"], size, size),
        "timestep": torch.randint(1000, (batch,)),
        "class_labels": torch.randint(config["num_embeds_ada_norm"], (batch,)),
    }
    return model, inputs, {"outputs": lambda y: y.sample}
