"""Models that torch.func cannot take: plain autograd serves, reverse mode alone where it must."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

from ntkscope import NTK
from truth.reference import alignment, dense
from truth.verdict import assert_right, check_model, unless_refused


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 3 * grads[0] * ctx.saved_tensors[0] ** 2


class _OnceCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 3 * grads[0] * ctx.saved_tensors[0] ** 2


class _NumpySine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()))


class _Reversed(torch.autograd.Function):
    """The gradient is turned round, as domain-adversarial networks do: not the true derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -0.5 * grads[0]


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function], hidden: int = 4) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, hidden), nn.Linear(hidden, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function.apply(self.first(x)))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, dtype=torch.double)


@pytest.mark.parametrize("function", [_Cube, _OnceCube, _NumpySine, _Reversed])
def test_functions_with_their_own_backward(function: type[torch.autograd.Function], x: Tensor) -> None:
    model = Custom(function).double()
    check_model(model, x, lambda: model(x))


@pytest.mark.parametrize("function", [_Cube, _OnceCube, _NumpySine])
def test_default_calls(function: type[torch.autograd.Function]) -> None:
    """Every verb without a method, on a batch for which products are the cheapest way."""
    torch.manual_seed(0)
    model, x = Custom(function, hidden=40).double(), torch.randn(60, 3, dtype=torch.double)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.first.weight.mul_(1.3)
    first, second = (dense(m, lambda m=m: m(x)) for m in (model, other))
    ntk = NTK(model, x)
    for estimate in (ntk.trace(), ntk.frobenius_norm(), ntk.effective_rank()):
        assert_right(estimate, dict(first.metrics())[estimate.quantity])
    assert_right(ntk.alignment(NTK(other, x)), alignment(first, second))


@pytest.mark.parametrize("function", [_Cube, _NumpySine, _Reversed])
def test_kernel_products(function: type[torch.autograd.Function], x: Tensor) -> None:
    """Kz where a second derivative of the backward pass exists, and a refusal where it does not."""
    model = Custom(function).double()
    kernel, ntk = dense(model, lambda: model(x)).kernel, NTK(model, x)
    z = torch.randn(ntk.n, 3, dtype=torch.double)
    found = unless_refused(lambda: ntk @ z)
    if found is None:
        return
    torch.testing.assert_close(found, kernel @ z, rtol=1e-9, atol=1e-9)


class Packed(nn.Module):
    """A recurrent tagger that packs its padded sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.run, self.head = nn.Embedding(7, 3), nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(tokens), lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.run(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return self.head(hidden.sum(1))


def test_packed_sequences() -> None:
    torch.manual_seed(0)
    model, tokens = Packed().double(), torch.randint(0, 7, (3, 4))
    lengths = torch.tensor([4, 2, 3])
    check_model(model, (tokens, lengths), lambda: model(tokens, lengths))


class NeedsInputGradients(nn.Module):
    """A hook that makes a frozen embedding's output require gradients, as fine-tuning libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 3), nn.Linear(3, 2)
        self.words.requires_grad_(False)
        self.words.register_forward_hook(lambda module, args, output: output.requires_grad_(True))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens))).sum(1)


def test_requires_grad_in_a_hook() -> None:
    torch.manual_seed(0)
    model, tokens = NeedsInputGradients().double(), torch.randint(0, 7, (3, 4))
    check_model(model, tokens, lambda: model(tokens))


class Checkpointed(nn.Module):
    """A transformer layer whose activations are computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head, self.reentrant = nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.layer, self.embed(x), use_reentrant=self.reentrant)
        return self.head(hidden).mean(1)


def test_checkpointing() -> None:
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant=False).double(), torch.randn(2, 3, 3, dtype=torch.double)
    check_model(model, x, lambda: model(x))


def test_reentrant_checkpointing() -> None:
    """Torch refuses ``autograd.grad`` through these, so that the reference is the same model without."""
    torch.manual_seed(0)
    model, twin = Checkpointed(reentrant=True).double(), Checkpointed(reentrant=False).double()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 3, dtype=torch.double)
    check_model(model, x, lambda: twin(x), trained_as=twin)


class Stages(nn.Module):
    """Reentrant checkpoints one after another, of several inputs, and one inside of another."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.embed, self.reentrant = nn.Linear(3, 4), reentrant
        self.stages = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.mix = nn.Bilinear(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.embed(x)
        last = checkpoint(
            lambda y: checkpoint_sequential(self.stages, 2, y, use_reentrant=self.reentrant),
            first,
            use_reentrant=self.reentrant,
        )
        return checkpoint(self.mix, first, last, use_reentrant=self.reentrant)


def test_reentrant_checkpoints_in_stages(x: Tensor) -> None:
    model, twin = Stages(reentrant=True).double(), Stages(reentrant=False).double()
    twin.load_state_dict(model.state_dict())
    check_model(model, x, lambda: twin(x), trained_as=twin)
    assert torch.utils.checkpoint.CheckpointFunction is CheckpointFunction


def test_a_checkpoint_without_gradients(x: Tensor) -> None:
    """Training leaves the layer inside as it is, with a warning; the plain call would not."""
    layer, head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    model = nn.Sequential(layer, head)
    model.forward = lambda x: head(checkpoint(layer, x, use_reentrant=True))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="use_reentrant=False"):
        NTK(model, x)


class _KeepsGradients(torch.autograd.Function):
    """A block whose backward pass runs it once more, and adds to the parameters' gradients by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.block(x)
        torch.autograd.backward(y, grads[0])
        return x.grad, None


def test_gradients_that_a_backward_pass_keeps(x: Tensor) -> None:
    """As reversible networks do: ``autograd.grad`` sees none of them."""
    block, first = nn.Linear(4, 2).double(), nn.Linear(3, 4).double()
    model = nn.Sequential(first, block)
    model.forward = lambda x: _KeepsGradients.apply(first(x), block)  # type: ignore[method-assign]
    model(x).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="by itself"):
        NTK(model, x)
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("not in this life")


def test_a_backward_pass_that_fails(x: Tensor) -> None:
    with pytest.raises(ValueError, match="not in this life"):
        NTK(Custom(_Fails).double(), x)


class SparseBuffer(nn.Module):
    """A fixed sparse operator in a buffer, applied along the features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        mixing = torch.eye(4, dtype=torch.double) + torch.diag(torch.ones(3, dtype=torch.double), 1)
        self.register_buffer("mixing", mixing.to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sparse.mm(self.mixing, self.first(x).T).T)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_buffer(x: Tensor) -> None:
    model = SparseBuffer().double()
    check_model(model, x, lambda: model(x))
