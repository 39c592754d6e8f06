"""A language model like GPT-2 in plain torch: positions, tied head, checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["GPT", "Block", "make", "tokens"]

WORDS, WIDTH, LENGTH = 11, 8, 6


class Block(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = [
            part.view(batch, length, 2, -1).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1)
        ]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class GPT(nn.Module):
    """Logits of the next word after a text.

    Args:
        layers: Number of blocks.
        checkpoints: Whether blocks are computed again in the backward pass: ``"reentrant"``, ``"plain"``.
        width: Of the residual stream.
        words: Size of the vocabulary.
        length: Most words of a text.
    """

    def __init__(
        self,
        layers: int = 4,
        checkpoints: str = "",
        width: int = WIDTH,
        words: int = WORDS,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        self.checkpoints = checkpoints

    def forward(self, index: Tensor) -> Tensor:
        x = self.words(index) + self.places(torch.arange(index.shape[1], device=index.device))
        for block in self.blocks:
            if self.checkpoints:
                x = checkpoint(block, x, use_reentrant=self.checkpoints == "reentrant")
            else:
                x = block(x)
        return self.head(self.norm(x))[:, -1]


def make(seed: int = 0, **options: object) -> GPT:
    """The model of a seed, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT(**options).double()  # type: ignore[arg-type]


def tokens(samples: int, words: int = WORDS, length: int = LENGTH) -> Tensor:
    """Texts, the same whatever their number."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, words, (64, length), generator=generator)[:samples]
