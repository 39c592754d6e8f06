"""Bags of embeddings are recorded as what is made of embeddings, for which there is a rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inside import structure
from ntkscope import NTK
from truth.reference import dense


class Bags(nn.Module):
    """Bags of words, with whatever options ``embedding_bag`` takes."""

    def __init__(self, options: dict[str, Any], weighted: bool) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)
        self.options, self.weighted = options, weighted

    def forward(self, tokens: Tensor) -> Tensor:
        options = dict(self.options)
        if self.weighted:
            options["per_sample_weights"] = torch.cos(tokens.to(self.words.weight.dtype))
        return self.head(torch.tanh(F.embedding_bag(tokens, self.words.weight, **options)))


KNOWN: dict[str, tuple[dict[str, Any], bool]] = {
    "mean": ({}, False),
    "max": ({"mode": "max"}, False),
    "sum": ({"mode": "sum"}, False),
    "weighted": ({"mode": "sum"}, True),
    "padded": ({"padding_idx": 2}, False),
    "padded-from-the-end": ({"padding_idx": -1}, False),
    "padded-sum": ({"mode": "sum", "padding_idx": 2}, False),
    "weighted-and-padded": ({"mode": "sum", "padding_idx": 2}, True),
}
OTHERS: dict[str, tuple[dict[str, Any], bool]] = {"padded-max": ({"mode": "max", "padding_idx": 2}, False)}


def _model(options: dict[str, Any], weighted: bool) -> tuple[Bags, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = torch.randint(0, 7, (9, 4))
        # A bag of nothing but padding, and one in which every word is the same.
        tokens[3], tokens[4], tokens[5] = 2, 5, 6
        return Bags(options, weighted).double(), tokens


@pytest.mark.parametrize(("options", "weighted"), (KNOWN | OTHERS).values(), ids=KNOWN | OTHERS)
def test_numbers(options: dict[str, Any], weighted: bool) -> None:
    model, tokens = _model(options, weighted)
    right = dense(model, lambda: model(tokens))
    ntk = NTK(model, tokens)
    torch.testing.assert_close(structure(ntk).frobenius_squared().sum().item(), right.trace)
    torch.testing.assert_close(ntk.engine.dense(), right.kernel)


@pytest.mark.parametrize(("options", "weighted"), KNOWN.values(), ids=KNOWN)
def test_the_table_is_known_by_its_rule(options: dict[str, Any], weighted: bool) -> None:
    model, tokens = _model(options, weighted)
    graph = structure(NTK(model, tokens)).graph
    assert graph.general == ()
    assert {"words.weight"} <= {block for use in graph.uses for block in use.parameters.values()}


def test_other_bags_take_the_general_way() -> None:
    model, tokens = _model(*OTHERS["padded-max"])
    assert structure(NTK(model, tokens)).graph.general == ("words.weight",)
