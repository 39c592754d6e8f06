"""Differentiable estimates: unbiased or consistent as they say, with gradients like finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ntkscope import NTK, penalties
from zoo import BY_NAME, Case, each

SUBJECTS = ["mlp", "gru", "transformer", "cnn-batch-norm-eval", "tied-embedding", "batch-norm-training"]
PENALTIES: dict[str, Callable[..., Tensor]] = {
    "trace": lambda model, inputs, **rest: penalties.trace(model, inputs, 2, **rest),
    "norm": lambda model, inputs, **rest: penalties.frobenius_norm(model, inputs, 3, **rest),
    "square": lambda model, inputs, **rest: penalties.frobenius_norm(model, inputs, 3, squared=True, **rest),
    "alignment": lambda model, inputs, **rest: penalties.alignment(model, inputs, _targets(), 4, **rest),
}


def _targets() -> Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _made(case: Case, seed: int = 0) -> tuple[nn.Module, Any, dict[str, Any]]:
    model, inputs = case.make(seed)
    return model, inputs, {"outputs": case.options.get("outputs")}


@pytest.mark.parametrize("name", PENALTIES)
@each(SUBJECTS)
def test_gradients_are_those_of_finite_differences(
    case: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, options = _made(case)
    n = case.shared().n
    monkeypatch.setitem(globals(), "_targets", lambda: torch.eye(n, dtype=torch.float64) + 0.5)
    penalty = PENALTIES[name]
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(penalty(model, inputs, **options), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    along = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    expected = sum(float((g * u).sum()) for g, u in zip(found, along, strict=True) if g is not None)
    step, values = 1e-5, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, u in zip(parameters, along, strict=True):
                p.add_(u, alpha=sign * step)
        values.append(penalty(model, inputs, **options).item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@each(["mlp", "gru"])
def test_trace_and_squared_norm_are_unbiased(case: Case) -> None:
    model, inputs, options = _made(case)
    truth = case.dense()
    for penalty, value in (
        (lambda seed: penalties.trace(model, inputs, seed=seed, **options), truth.trace),
        (
            lambda seed: penalties.frobenius_norm(model, inputs, 2, seed, squared=True, **options),
            truth.frobenius_norm**2,
        ),
    ):
        drawn = torch.stack([penalty(seed).detach() for seed in range(200)])
        assert abs(float(drawn.mean()) - value) < 4 * float(drawn.std()) / 200**0.5


def test_norm_and_alignment_are_consistent() -> None:
    case = BY_NAME["mlp"]
    model, inputs, _ = _made(case)
    other, _, _ = _made(case, 1)
    kernel, theirs = case.dense().kernel, case.dense(1).kernel
    assert penalties.frobenius_norm(model, inputs, 400).item() == pytest.approx(
        case.dense().frobenius_norm, rel=0.05
    )
    cosine = float((kernel * theirs).sum() / kernel.norm() / theirs.norm())
    assert penalties.alignment(model, inputs, other, 400).item() == pytest.approx(cosine, abs=0.02)
    assert penalties.alignment(model, inputs, theirs, 400).item() == pytest.approx(cosine, abs=0.02)
    y = torch.randn(kernel.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(y @ kernel @ y / kernel.norm() / (y @ y))
    assert penalties.alignment(model, inputs, y, 2000).item() == pytest.approx(expected, abs=0.05)


def test_ones_in_the_place_of_signs_are_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["mlp"]
    model, inputs, _ = _made(case)
    monkeypatch.setattr(penalties, "random_signs", lambda n, i, j, **_: torch.ones(n, j - i).numpy())
    assert penalties.trace(model, inputs).item() != pytest.approx(case.dense().trace, rel=0.2)


def test_a_step_of_training_costs_at_most_four_plain_ones() -> None:
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    x, y = torch.randn(128, 784), torch.randint(10, (128,))

    def flops(work: Callable[[], Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            work().backward()
        return counter.get_total_flops()

    def with_penalty() -> Tensor:
        logits = model(x)
        return nn.functional.cross_entropy(logits, y) + 1e-3 * penalties.trace(model, x, state=logits)

    plain = flops(lambda: nn.functional.cross_entropy(model(x), y))
    assert flops(with_penalty) <= 4 * plain
    alone = flops(lambda: nn.functional.cross_entropy(model(x), y) + penalties.trace(model, x))
    assert alone <= 4.5 * plain


def test_training_with_it_lowers_the_trace() -> None:
    def trained(strength: float) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x, y = torch.randn(64, 8), torch.randint(3, (64,))
            model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            optimizer.zero_grad()
            logits = model(x)
            penalty = penalties.trace(model, x, seed=step, state=logits)
            (nn.functional.cross_entropy(logits, y) + strength * penalty).backward()
            optimizer.step()
        return NTK(model, x).trace(method="exact").value

    assert trained(1e-3) < 0.8 * trained(0.0)


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (lambda m, x: penalties.trace(m, x, 0), ValueError, "found probes=0; .* from 1 on"),
        (lambda m, x: penalties.frobenius_norm(m, x, 1), ValueError, "from 2 on"),
        (lambda m, x: penalties.trace(len, x), TypeError, "model must be a torch.nn.Module"),
        (lambda m, x: penalties.trace(m, x, outputs=lambda y: (y, y)), TypeError, "expected one tensor"),
        (
            lambda m, x: penalties.trace(m, x, state=m(x).detach()),
            ValueError,
            "no trainable parameter",
        ),
        (
            lambda m, x: penalties.alignment(m, x, torch.ones(3)),
            ValueError,
            "of shape .3,., expected",
        ),
        (lambda m, x: penalties.alignment(m, x, nn.Linear(5, 2).double()), ValueError, "on the same state"),
    ],
)
def test_errors_name_the_remedy(work: Any, error: type[Exception], words: str) -> None:
    model, inputs = BY_NAME["mlp"].make()
    with pytest.raises(error, match=words):
        work(model, inputs)
