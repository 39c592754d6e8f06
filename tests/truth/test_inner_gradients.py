"""Models that differentiate inside their forward pass, and states that no parameter reaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from ntkscope import NTK
from truth.verdict import assert_right, check_model, unless_refused


class Forces(nn.Module):
    """Minus the gradient of an energy by the atoms' positions."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(1, 4), nn.SiLU(), nn.Linear(4, 1))

    def forward(self, positions: Tensor) -> Tensor:
        positions = positions.detach().requires_grad_(True)
        distances = (positions[:, :, None] - positions[:, None]).pow(2).sum(-1, keepdim=True)
        energy = self.energy(distances).sum()
        return -torch.autograd.grad(energy, positions, create_graph=True)[0]


class InnerStep(nn.Module):
    """One step of gradient descent on a support set inside the forward pass (MAML)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2) / 2)
        self.register_buffer("support", torch.linspace(-1, 1, 12).reshape(4, 3))
        self.register_buffer("targets", torch.linspace(0, 1, 8).reshape(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        loss = (torch.tanh(self.support @ self.weight) - self.targets).pow(2).mean()
        (step,) = torch.autograd.grad(loss, self.weight, create_graph=True)
        return torch.tanh(x @ (self.weight - 0.5 * step))


class Equilibrium(nn.Module):
    """A fixed point found without gradients, with its own backward solve in a hook (DEQ)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(3, 3), nn.Linear(4, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.inner.weight.mul_(0.4)

    def forward(self, x: Tensor) -> Tensor:
        def step(z: Tensor) -> Tensor:
            return torch.tanh(self.inner(z) + self.outer(x))

        with torch.no_grad():
            z = torch.zeros(len(x), 3, dtype=x.dtype)
            for _ in range(30):
                z = step(z)
        z = step(z)
        if torch.is_grad_enabled():
            fixed = z.detach().requires_grad_()
            image = step(fixed)

            def solve(gradient: Tensor) -> Tensor:
                total = gradient
                for _ in range(30):
                    total = torch.autograd.grad(image, fixed, total, retain_graph=True)[0] + gradient
                return total

            z.register_hook(solve)
        return self.head(z)


class Divergence(nn.Module):
    """The divergence of a field, by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return vmap(lambda row: jacrev(self.field)(row).diagonal().sum().reshape(1))(x)


class FunctionalInnerGradient(nn.Module):
    """A gradient with respect to the parameters themselves, by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        parameters = dict(self.net.named_parameters())

        def loss(values: dict[str, Tensor]) -> Tensor:
            return torch.sin(functional_call(self.net, values, (x,))).sum()

        fast = grad(loss)(parameters)
        moved = {name: parameters[name] - 0.1 * fast[name] for name in parameters}
        return functional_call(self.net, moved, (x,))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (Forces, (3, 3, 2)),
        (InnerStep, (4, 3)),
        (Divergence, (4, 3)),
        (FunctionalInnerGradient, (4, 3)),
    ],
)
def test_differentiates_inside(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(shape, dtype=torch.double)
    check_model(model, x, lambda: model(x))


def test_equilibrium_with_a_hook() -> None:
    torch.manual_seed(0)
    model, x = Equilibrium().double(), torch.randn(3, 4, dtype=torch.double)
    check_model(model, x, lambda: model(x), refusable=True)


class Unreached(nn.Module):
    """Parameters that the state does not depend on."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(3, 2), way

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        if self.way == "detached":
            return hidden.detach() + 1
        if self.way == "times zero":
            return x + 0 * hidden.sum()
        return torch.sin(x)


@pytest.mark.parametrize("way", ["detached", "times zero", "unused"])
@pytest.mark.parametrize("method", ["exact", "auto", "sketch", "gram"])
def test_a_state_that_no_parameter_reaches(way: str, method: str) -> None:
    torch.manual_seed(0)
    model, x = Unreached(way).double(), torch.randn(4, 3, dtype=torch.double)
    products = 8 if method in ("sketch", "gram") else None
    ntk = unless_refused(lambda: NTK(model, x))
    measurement = ntk and unless_refused(lambda: ntk.measure(method=method, products=products))
    if not measurement:
        return
    assert_right(measurement.trace, 0.0)
    assert_right(measurement.frobenius_norm, 0.0)
    assert measurement.effective_rank.value != measurement.effective_rank.value
