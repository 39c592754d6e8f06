"""Kernels weighted by a loss, and by an optimizer, against dense Gauss-Newton matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from ntkscope import NTK
from reference import dense


def _mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, torch.randn(6, 5, dtype=torch.float64)


def _cnn() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double(), torch.randn(5, 2, 4, 4, dtype=torch.float64)


def _pixels() -> tuple[nn.Module, Tensor]:
    """Classes along axis 1, and two positions of each."""
    torch.manual_seed(0)
    return nn.Conv1d(2, 3, 2).double(), torch.randn(4, 2, 3, dtype=torch.float64)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda h, reduction: F.cross_entropy(
        h, torch.zeros(h.shape[0], *h.shape[2:], dtype=torch.long), reduction=reduction
    ),
    "mse": lambda h, reduction: F.mse_loss(h, torch.ones_like(h), reduction=reduction),
    "binary_cross_entropy": lambda h, reduction: F.binary_cross_entropy_with_logits(
        h, torch.ones_like(h), reduction=reduction
    ),
}


def gauss_newton(model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """JᵀHJ by plain torch, shape (p, p)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def state(values: dict[str, Tensor]) -> Tensor:
        return functional_call(model, values, (inputs,))

    h = state(parameters).detach()
    blocks = jacrev(state)(parameters)
    jacobian = torch.cat([b.reshape(h.numel(), -1) for b in blocks.values()], dim=1)
    curvature = jacrev(jacrev(loss))(h).reshape(h.numel(), h.numel())
    return jacobian.T @ curvature @ jacobian


@pytest.mark.parametrize("make", [_mlp, _cnn, _pixels])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("as_function", [False, True])
def test_metrics_are_those_of_the_gauss_newton_matrix(
    make: Callable[[], tuple[nn.Module, Tensor]], reduction: str, loss: str, as_function: bool
) -> None:
    model, inputs = make()
    function = lambda h: LOSSES[loss](h, reduction)  # noqa: E731
    expected = gauss_newton(model, inputs, function)
    given: dict[str, Any] = {"loss": function} if as_function else {"loss": loss, "reduction": reduction}
    if loss == "cross_entropy" and make is _pixels and not as_function:
        given["class_dim"] = 1
    ntk = NTK(model, inputs, **given)
    assert ntk.trace("exact").value == pytest.approx(float(expected.trace()), rel=1e-9)
    assert ntk.trace("rhutch", products=10**6).value == pytest.approx(float(expected.trace()), rel=1e-9)
    largest = float(torch.linalg.eigvalsh(expected)[-1])
    assert ntk.operator_norm("exact").value == pytest.approx(largest, rel=1e-9)
    assert ntk.operator_norm("krylov", rtol=1e-11).value == pytest.approx(largest, rel=1e-9)
    assert ntk.frobenius_norm("exact").value == pytest.approx(float(expected.norm()), rel=1e-9)
    # Samples stay on their own, by the layers' rules.
    if not as_function:
        assert ntk.trace("per-sample", products=3).stderr is not None
        assert not ntk.engine.samples().jacobian.graph.general


def test_a_function_that_couples_samples() -> None:
    model, inputs = _mlp()
    loss = lambda h: (h.sum(0) ** 2).sum() + h.square().sum()  # noqa: E731
    expected = gauss_newton(model, inputs, loss)
    assert NTK(model, inputs, loss=loss).trace("exact").value == pytest.approx(
        float(expected.trace()), rel=1e-9
    )


def test_later_in_training_the_weights_are_new() -> None:
    model, inputs = _mlp()
    first = NTK(model, inputs, loss="cross_entropy")
    before = first.trace("exact").value
    with torch.no_grad():
        model[2].weight.mul_(3)
    later = first.at(model)
    expected = gauss_newton(model, inputs, lambda h: LOSSES["cross_entropy"](h, "mean"))
    assert later.trace("exact").value == pytest.approx(float(expected.trace()), rel=1e-9)
    assert first.trace("exact").value == before


def test_bad_losses_name_the_remedy() -> None:
    model, inputs = _mlp()
    with pytest.raises(ValueError, match="unknown loss 'hinge'; choose one of 'cross_entropy'"):
        NTK(model, inputs, loss="hinge")
    with pytest.raises(ValueError, match="unknown reduction 'none'; choose 'mean' or 'sum'"):
        NTK(model, inputs, loss="mse", reduction="none")
    with pytest.raises(TypeError, match="found int"):
        NTK(model, inputs, loss=3)
    with pytest.raises(ValueError, match="use a loss that is convex"):
        NTK(model, inputs, loss=lambda h: h.cos().sum())
    with pytest.raises(ValueError, match="no curvature"):
        NTK(model, inputs, loss=lambda h: h.sum())


# An optimizer's scale.


def _trained(make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> tuple[nn.Module, Tensor, Any]:
    model, inputs = _mlp()
    optimizer = make_optimizer(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
    return model, inputs, optimizer


def _moved(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """D by what a step of the optimizer does to the parameters, without its momentum."""
    parameters = dict(model.named_parameters())
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    parts = []
    for p in parameters.values():
        group, state = groups[id(p)], optimizer.state[p]
        root = (state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))).sqrt()
        parts.append((group["lr"] / (root + group["eps"])).reshape(-1))
    return torch.cat(parts)


def _check(ntk: NTK, model: nn.Module, inputs: Tensor, scale: Tensor) -> None:
    jacobian = dense(model, inputs).jacobian
    expected = (jacobian * scale) @ jacobian.T
    torch.testing.assert_close(ntk.to_dense(), expected, rtol=1e-9, atol=1e-12)
    assert ntk.trace("exact").value == pytest.approx(float(expected.trace()), rel=1e-9)
    assert ntk.trace("rhutch", products=10**6).value == pytest.approx(float(expected.trace()), rel=1e-9)
    largest = float(torch.linalg.eigvalsh(expected)[-1])
    assert ntk.operator_norm("krylov", rtol=1e-11).value == pytest.approx(largest, rel=1e-9)
    z = torch.ones(ntk.n, dtype=torch.float64)
    torch.testing.assert_close(ntk.matvec(z), expected @ z, rtol=1e-9, atol=1e-12)


def test_adam_is_measured_by_its_own_steps() -> None:
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        model, inputs, optimizer = _trained(lambda m, kind=kind: kind(m.parameters(), lr=1e-2))
        _check(NTK(model, inputs, scale=optimizer), model, inputs, _moved(model, optimizer))


def test_first_step_of_adam_without_its_average() -> None:
    # With β₁ = 0 the change of the parameters is D times the gradient.
    model, inputs, optimizer = _trained(lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, betas=(0.0, 0.9)))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()
    after = [p.detach() for p in model.parameters()]
    pairs = zip(before, after, model.parameters(), strict=True)
    scale = torch.cat([((a - b) / p.grad).reshape(-1) for a, b, p in pairs])
    _check(NTK(model, inputs, scale=optimizer), model, inputs, scale)


@pytest.mark.parametrize("kind", ["rmsprop", "centered", "adagrad", "amsgrad"])
def test_other_optimizers_by_their_steps(kind: str) -> None:
    made = {
        "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-2),
        "centered": lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-2, centered=True),
        "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=1e-2, lr_decay=0.1),
        "amsgrad": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, betas=(0.0, 0.9), amsgrad=True),
    }
    model, inputs, optimizer = _trained(made[kind])
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    pairs = zip(before, model.parameters(), gradients, strict=True)
    scale = torch.cat([((p.detach() - b) / -g).reshape(-1) for b, p, g in pairs])
    _check(NTK(model, inputs, scale=optimizer), model, inputs, scale)


def test_learning_rates_by_group_and_what_does_not_move() -> None:
    model, inputs = _mlp()
    groups = [{"params": [model[0].weight], "lr": 0.5}, {"params": [model[2].weight, model[2].bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    sizes = {"0.weight": (35, 0.5), "0.bias": (7, 0.0), "2.weight": (21, 0.1), "2.bias": (3, 0.1)}
    scale = torch.cat([torch.full((size,), rate, dtype=torch.float64) for size, rate in sizes.values()])
    _check(NTK(model, inputs, scale=optimizer), model, inputs, scale)
    named = {
        "0.weight": 0.5,
        "0.bias": 0,
        "2.weight": torch.full((3, 7), 0.1, dtype=torch.float64),
        "2.bias": 0.1,
    }
    _check(NTK(model, inputs, scale=named), model, inputs, scale)


def test_a_scale_stays_with_the_kernel_and_meets_a_loss() -> None:
    model, inputs = _mlp()
    first = NTK(model, inputs, scale={"0.weight": 2.0}, loss="mse", reduction="sum")
    assert first.trace("exact").value > 0
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    jacobian = dense(model, inputs).jacobian
    scale = torch.ones(jacobian.shape[1], dtype=torch.float64)
    scale[:35] = 2.0
    expected = 2 * float((jacobian**2 * scale).sum())
    assert first.at(model).trace("exact").value == pytest.approx(expected, rel=1e-9)


def test_bad_scales_name_the_remedy() -> None:
    model, inputs = _mlp()
    with pytest.raises(TypeError, match="found float; pass scale=optimizer"):
        NTK(model, inputs, scale=0.5)
    with pytest.raises(ValueError, match="names the parameter 'x', which is none"):
        NTK(model, inputs, scale={"x": 1.0})
    with pytest.raises(ValueError, match=r"shape \(2,\) for 0.weight, expected \(7, 5\)"):
        NTK(model, inputs, scale={"0.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="negative or not finite"):
        NTK(model, inputs, scale={"0.weight": -1.0})
    with pytest.raises(ValueError, match=r"has no averages for 0\.weight yet"):
        NTK(model, inputs, scale=torch.optim.Adam(model.parameters()))
    with pytest.raises(TypeError, match="steps of LBFGS are not known"):
        NTK(model, inputs, scale=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="none of the model's parameters"):
        NTK(model, inputs, scale=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0))


def test_classes_of_language_models_are_along_the_last_axis() -> None:
    torch.manual_seed(0)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(tokens)))

    model, tokens = Words().double(), torch.randint(7, (3, 4))
    with pytest.raises(ValueError, match="class_dim=1 or class_dim=-1"):
        NTK(model, tokens, loss="cross_entropy")
    with pytest.raises(ValueError, match="has no axis 3"):
        NTK(model, tokens, loss="cross_entropy", class_dim=3)
    with pytest.raises(ValueError, match="class_dim= is for loss='cross_entropy'"):
        NTK(model, tokens, loss="mse", class_dim=1)
    for axis in (1, -1):
        found = NTK(model, tokens, loss="cross_entropy", class_dim=axis).trace("exact").value

        def loss(h: Tensor, axis: int = axis) -> Tensor:
            h = h.movedim(axis, -1).flatten(0, 1)
            # Whatever the targets are, the Hessian is the same.
            return nn.functional.cross_entropy(h, torch.zeros(len(h), dtype=torch.long))

        assert found == pytest.approx(NTK(model, tokens, loss=loss).trace("exact").value, rel=1e-9)
    images = NTK(nn.Conv2d(2, 3, 1).double(), torch.randn(2, 2, 4, 4).double(), loss="cross_entropy")
    assert images.trace("exact").stderr == 0
