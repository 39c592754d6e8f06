"""Graphs in plain torch: one large graph, whose nodes are coupled, and batches of small ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.gallery_models.base import Parts, entry

_COUPLED = "does not run on a single sample"
_FEW = {"nodes": 6, "features": 3, "hidden": 4}


def ring_with_chords(nodes: int) -> Tensor:
    """The edges of a small graph, both ways, with every node's own: (2, edges)."""
    first = torch.arange(nodes)
    pairs = [torch.stack([first, (first + step) % nodes]) for step in (0, 1, nodes // 2)]
    edges = torch.cat(pairs, 1)
    return torch.cat([edges, edges.flip(0)], 1).unique(dim=1)


class GraphConvolution(nn.Module):
    """Means over neighbours, then a linear map (arXiv 1609.02907)."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.linear = nn.Linear(entering, leaving)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        degree = torch.bincount(target, minlength=len(x)).to(x).rsqrt()
        messages = self.linear(x)[source] * (degree[source] * degree[target])[:, None]
        return torch.zeros(len(x), messages.shape[1]).to(x).index_add(0, target, messages)


class GCN(nn.Module):
    """Two graph convolutions."""

    def __init__(self, features: int, hidden: int, edges: Tensor) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(features, hidden), GraphConvolution(hidden, 3)
        self.register_buffer("edges", edges)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x, self.edges)), self.edges)


@entry(
    "GCN",
    "graphs",
    "One graph: a node's output depends on its neighbours. There is no structure of samples to find, and "
    "whole-batch methods measure it.",
    small=_FEW,
    coupled=_COUPLED,
    shown=(ring_with_chords, GraphConvolution, GCN),
)
def gcn(nodes: int = 500, features: int = 32, hidden: int = 64) -> Parts:
    model = GCN(features, hidden, ring_with_chords(nodes))
    return model, torch.randn(nodes, features), {}


class GraphAttention(nn.Module):
    """Neighbours weighted by attention (arXiv 1710.10903)."""

    def __init__(self, entering: int, leaving: int, heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(entering, heads * leaving, bias=False)
        self.source = nn.Parameter(torch.randn(heads, leaving) / leaving**0.5)
        self.target = nn.Parameter(torch.randn(heads, leaving) / leaving**0.5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        heads, leaving = self.source.shape
        h = self.linear(x).view(-1, heads, leaving)
        scores = (h * self.source).sum(-1)[edges[0]] + (h * self.target).sum(-1)[edges[1]]
        weights = nn.functional.leaky_relu(scores, 0.2).exp()
        total = torch.zeros(len(x), heads).to(x).index_add(0, edges[1], weights)
        messages = h[edges[0]] * (weights / total[edges[1]])[..., None]
        return torch.zeros_like(h).index_add(0, edges[1], messages).flatten(1)


class GAT(nn.Module):
    """Two layers of graph attention."""

    def __init__(self, features: int, hidden: int, edges: Tensor) -> None:
        super().__init__()
        self.first, self.second = GraphAttention(features, hidden, 4), GraphAttention(4 * hidden, 3, 1)
        self.register_buffer("edges", edges)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.elu(self.first(x, self.edges)), self.edges)


@entry(
    "GAT",
    "graphs",
    "As the GCN: one graph, coupled nodes.",
    small=_FEW,
    coupled=_COUPLED,
    shown=(ring_with_chords, GraphAttention, GAT),
)
def gat(nodes: int = 500, features: int = 32, hidden: int = 16) -> Parts:
    model = GAT(features, hidden, ring_with_chords(nodes))
    return model, torch.randn(nodes, features), {}


class DenseGraphs(nn.Module):
    """Graph convolutions on padded graphs, each with an adjacency matrix, and a sum over nodes."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = torch.relu(adjacency @ self.first(x))
        x = torch.relu(adjacency @ self.second(x))
        return self.head(x.sum(1))


@entry(
    "Graph convolutions on molecules",
    "graphs",
    "A batch of graphs as one with many components has no axis of samples. Padded graphs with an adjacency "
    "matrix each do.",
    small={"batch": 2, "nodes": 3, "features": 2, "hidden": 4},
    shown=(DenseGraphs,),
)
def molecules(batch: int = 64, nodes: int = 20, features: int = 16, hidden: int = 64) -> Parts:
    adjacency = (torch.rand(batch, nodes, nodes) < 0.2).float() + torch.eye(nodes)
    model = DenseGraphs(features, hidden)
    return model, (torch.randn(batch, nodes, features), adjacency / adjacency.sum(-1, keepdim=True)), {}
