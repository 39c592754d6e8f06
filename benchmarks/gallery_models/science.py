"""Fields, operators, equations, generative models and spikes, in plain torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gallery_models.base import Parts, entry


class SpectralConvolution(nn.Module):
    """Low frequencies times complex weights (arXiv 2010.08895)."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(width, width, modes, 2) / width)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x)
        kept = torch.einsum("bik,iok->bok", waves[..., : self.modes], torch.view_as_complex(self.weight))
        out = torch.zeros_like(waves)
        out[..., : self.modes] = kept
        return torch.fft.irfft(out, n=x.shape[-1])


class FourierOperator(nn.Module):
    """Layers of a spectral convolution beside a pointwise one."""

    def __init__(self, width: int, modes: int, depth: int) -> None:
        super().__init__()
        self.lift, self.project = nn.Conv1d(2, width, 1), nn.Conv1d(width, 1, 1)
        self.spectral = nn.ModuleList(SpectralConvolution(width, modes) for _ in range(depth))
        self.pointwise = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            x = nn.functional.gelu(spectral(x) + pointwise(x))
        return self.project(x)


@entry(
    "Fourier neural operator",
    "science",
    "Complex weights count as two real parameters each, and `out[..., :modes] = …` writes into a slice.",
    small={"batch": 2, "points": 6, "width": 3, "modes": 2, "depth": 2},
    shown=(SpectralConvolution, FourierOperator),
)
def fno(batch: int = 16, points: int = 128, width: int = 32, modes: int = 16, depth: int = 4) -> Parts:
    return FourierOperator(width, modes, depth), torch.randn(batch, 2, points), {}


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for entering, leaving in pairwise(widths):
        layers += [nn.Linear(entering, leaving), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class DeepONet(nn.Module):
    """A branch of the function's values, a trunk of the places (arXiv 1910.03193)."""

    def __init__(self, sensors: int, width: int) -> None:
        super().__init__()
        self.branch, self.trunk = mlp(sensors, width, width), mlp(1, width, width)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, function: Tensor, places: Tensor) -> Tensor:
        return torch.einsum("bw,pw->bp", self.branch(function), self.trunk(places)) + self.bias


@entry(
    "DeepONet",
    "science",
    "The places are shared by all functions: `batch_dim=(0, None)`. The trunk sees no sample, and still has "
    "a gradient of its own for every sample.",
    small={"batch": 3, "points": 3, "sensors": 4, "width": 3},
    shown=(mlp, DeepONet),
)
def deeponet(batch: int = 64, points: int = 100, sensors: int = 50, width: int = 64) -> Parts:
    inputs = (torch.randn(batch, sensors), torch.linspace(0, 1, points)[:, None])
    return DeepONet(sensors, width), inputs, {"batch_dim": (0, None)}


class HeatResidual(nn.Module):
    """What is left of u_t = u_xx where u is a network."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.field = mlp(2, *[width] * depth, 1)

    def forward(self, points: Tensor) -> Tensor:
        points = points.requires_grad_()
        u = self.field(points)
        first = torch.autograd.grad(u.sum(), points, create_graph=True)[0]
        second = torch.autograd.grad(first[:, 0].sum(), points, create_graph=True)[0]
        return first[:, 1] - second[:, 0]


@entry(
    "PINN",
    "science",
    "The state is a differential equation's residual: the model differentiates inside `forward`, so that "
    "torch.no_grad() around it fails, and J has third derivatives.",
    small={"points": 3, "width": 3, "depth": 2},
    shown=(mlp, HeatResidual),
)
def pinn(points: int = 256, width: int = 64, depth: int = 4) -> Parts:
    return HeatResidual(width, depth), torch.rand(points, 2), {}


class NeuralODE(nn.Module):
    """A vector field followed by Runge and Kutta's method (arXiv 1806.07366)."""

    def __init__(self, width: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.field, self.steps = mlp(width + 1, hidden, hidden, width), steps

    def slope(self, time: float, x: Tensor) -> Tensor:
        return self.field(torch.cat([x, torch.full_like(x[:, :1], time)], 1))

    def forward(self, x: Tensor) -> Tensor:
        h = 1 / self.steps
        for step in range(self.steps):
            t = step * h
            a = self.slope(t, x)
            b = self.slope(t + h / 2, x + h / 2 * a)
            c = self.slope(t + h / 2, x + h / 2 * b)
            d = self.slope(t + h, x + h * c)
            x = x + h / 6 * (a + 2 * b + 2 * c + d)
        return x


@entry(
    "Neural ODE",
    "science",
    "A weight is used four times a step. An adaptive step depends on values, and on the whole batch if it "
    "is shared: fix the steps.",
    small={"batch": 2, "width": 2, "hidden": 3, "steps": 2},
    shown=(mlp, NeuralODE),
)
def neural_ode(batch: int = 64, width: int = 4, hidden: int = 64, steps: int = 20) -> Parts:
    return NeuralODE(width, hidden, steps), torch.randn(batch, width), {}


class VAE(nn.Module):
    """An encoder's mean and spread, a draw, and the decoder of it."""

    def __init__(self, entering: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = mlp(entering, hidden, 2 * latent)
        self.decoder = mlp(latent, hidden, entering)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, dim=1)
        drawn = mean + torch.randn_like(mean) * torch.exp(0.5 * spread)
        return self.decoder(drawn), mean, spread


@entry(
    "VAE",
    "science",
    "The reconstruction is random, and refused. Mean and spread are not: the draw that nothing of them "
    "reads is left out of the graph.",
    small={"batch": 2, "entering": 4, "hidden": 3, "latent": 2},
    shown=(mlp, VAE),
)
def vae(batch: int = 128, entering: int = 784, hidden: int = 256, latent: int = 16) -> Parts:
    options = {"outputs": lambda y: torch.cat(y[1:], 1)}
    return VAE(entering, hidden, latent), torch.randn(batch, entering), options


class Spike(torch.autograd.Function):
    """A step forward, a smooth slope backward."""

    @staticmethod
    def forward(potential: Tensor) -> Tensor:
        return (potential > 0).to(potential.dtype)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (potential,) = ctx.saved_tensors
        return grad / (1 + 10 * potential.abs()) ** 2


class SpikingNet(nn.Module):
    """Leaky units that spike and are reset, read out by their mean potential."""

    def __init__(self, entering: int, hidden: int) -> None:
        super().__init__()
        self.inward, self.readout = nn.Linear(entering, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        potential = torch.zeros(x.shape[0], self.inward.out_features).to(x)
        total = torch.zeros(x.shape[0], 3).to(x)
        for step in range(x.shape[1]):
            potential = 0.9 * potential + self.inward(x[:, step])
            spikes = Spike.apply(potential - 1)
            potential = potential * (1 - spikes)
            total = total + self.readout(spikes)
        return total / x.shape[1]


@entry(
    "Spiking network",
    "science",
    "Its backward is not the derivative of its forward. K is what training sees, the surrogate's kernel; the "
    "structure holds where the function and its slope act entry by entry.",
    small={"batch": 2, "steps": 3, "entering": 3, "hidden": 4},
    shown=(Spike, SpikingNet),
)
def spiking(batch: int = 64, steps: int = 25, entering: int = 100, hidden: int = 128) -> Parts:
    return SpikingNet(entering, hidden), 2 * torch.rand(batch, steps, entering), {}


class ForceField(nn.Module):
    """Forces as the slope of an energy of distances."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.energy = mlp(1, hidden, hidden, 1)

    def forward(self, places: Tensor) -> Tensor:
        def energy(one: Tensor) -> Tensor:
            left, right = torch.triu_indices(len(one), len(one), 1)
            return self.energy((one[left] - one[right]).square().sum(1, keepdim=True)).sum()

        return -torch.vmap(torch.func.grad(energy))(places)


@entry(
    "Force field",
    "science",
    "`torch.func.grad` under `vmap` inside `forward`: the recorder goes through both.",
    small={"batch": 2, "atoms": 3, "hidden": 3},
    shown=(mlp, ForceField),
)
def forces(batch: int = 32, atoms: int = 10, hidden: int = 64) -> Parts:
    return ForceField(hidden), torch.randn(batch, atoms, 3), {}
