"""Hooks take the place of a graph where a model cannot be traced, and say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.base import Refusal
from ntkscope.engines.torch.hooks.samples import HookedSamples
from reference import alignment, dense
from zoo import COUPLED, Case, Function, each


class NumPySine(torch.autograd.Function):
    """What no recording sees: the values of one sample are constants to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(gradient.numpy() * np.cos(x.numpy()))


def models() -> tuple[nn.Module, nn.Module, Tensor]:
    """One that cannot be traced, the same in torch's operations on the same parameters, and inputs."""
    torch.manual_seed(0)
    parts = {"first": nn.Linear(4, 5).double(), "second": nn.Linear(5, 2).double()}
    opaque = Function(lambda m, x: m.second(NumPySine.apply(m.first(x))), **parts)
    plain = Function(lambda m, x: m.second(torch.sin(m.first(x))), **parts)
    return opaque, plain, torch.randn(6, 4, dtype=torch.float64)


def test_the_structure_is_kept_and_the_reason_told(capsys: pytest.CaptureFixture[str]) -> None:
    opaque, plain, x = models()
    ntk, reference = NTK(opaque, x), dense(plain, x)
    assert isinstance(ntk.engine.samples(), HookedSamples)
    assert ntk.measure(method="exact").frobenius_norm.value == pytest.approx(
        reference.frobenius_norm, rel=1e-9
    )
    assert ntk.trace("per-sample", products=50).value == pytest.approx(reference.trace, rel=0.2)
    torch.testing.assert_close(ntk.to_dense(), reference.kernel, rtol=1e-9, atol=1e-9)
    ntk.explain()
    printed = capsys.readouterr().out
    assert "by hooks on 2 layers and the model's own backward pass: it cannot be traced (what" in printed


def test_products_with_the_whole_jacobian_are_there() -> None:
    opaque, plain, x = models()
    v = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(NTK(opaque, x).vjp(v), NTK(plain, x).vjp(v))


def test_the_kernel_is_that_of_the_moment() -> None:
    opaque, plain, x = models()
    before = dense(plain, x)
    ntk = NTK(opaque, x)
    with torch.no_grad():
        for parameter in opaque.parameters():
            parameter.mul_(2)
    # The samples are looked for only now.
    assert ntk.trace("exact").value == pytest.approx(before.trace, rel=1e-9)
    later = ntk.at(opaque)
    found = ntk.alignment(later, "exact").value
    assert found == pytest.approx(alignment(before, dense(plain, x)), rel=1e-9)


def test_modes_are_those_of_the_moment() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2)).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    ntk = NTK(model, x, engine="hooks")
    model.train()
    assert ntk.trace("exact").value == pytest.approx(dense(model.eval(), x).trace, rel=1e-9)
    model.train()
    ntk.trace("exact")
    assert model[1].training


@each(COUPLED)
def test_coupled_samples_stay_coupled(case: Case) -> None:
    assert isinstance(case.ntk().engine.samples(), Refusal)


def test_a_stream_of_what_cannot_be_traced_is_refused() -> None:
    opaque, _, x = models()
    loader: Any = torch.utils.data.DataLoader(list(x), batch_size=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data that streams needs samples that are treated on their own"):
        NTK(opaque, loader)


# What is asked of it.


class Branching(nn.Module):
    """It takes another way for other values, which no recording of one sample tells."""

    def __init__(self, opaque: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5).double(), nn.Linear(5, 2).double()
        self.opaque = opaque

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.opaque:
            # Rows are looked at one by one, by their values.
            h = torch.stack([row * 2 if row.sum().item() > 0 else row.sin() for row in h])
        else:
            h = torch.where(h.sum(1, keepdim=True) > 0, h * 2, h.sin())
        found: Tensor = self.second(h)
        return found


def kernels() -> tuple[NTK, NTK, NTK, NTK]:
    """Of a model that cannot be traced and one that can, with the same parameters; and of others."""
    found = []
    for seed in (0, 1):
        for opaque in (True, False):
            torch.manual_seed(seed)
            model = Branching(opaque)
            x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            found.append(NTK(model, x))
    opaque, plain, other, other_plain = found
    return opaque, plain, other, other_plain


_Y = torch.arange(14.0).double().reshape(7, 2).sin()


def _values(split: Any) -> list[float]:
    return [part.value for part in split.parts.values()]


VERBS: dict[str, Any] = {
    "trace": lambda k, o: k.trace("exact"),
    "measure": lambda k, o: k.measure(method="exact").effective_rank,
    "alignment": lambda k, o: k.alignment(o, "exact"),
    "whole-batch sketch": lambda k, o: k.frobenius_norm("hutch++", products=14),
    "gram": lambda k, o: k.frobenius_norm("gram", products=8),
    "forward": lambda k, o: k.trace("fhutch", products=8),
    "per-sample": lambda k, o: k.trace("per-sample", products=8),
    "diagonal": lambda k, o: k.diagonal("exact").values,
    "diagonal forward": lambda k, o: k.diagonal("forward", products=8).values,
    "squared gradients": lambda k, o: k.squared_gradients("exact").values,
    "split": lambda k, o: _values(k.split("trace")),
    "split norm": lambda k, o: _values(k.split("frobenius_norm", method="exact")),
    "split gram": lambda k, o: _values(k.split("frobenius_norm", method="gram", products=8)),
    "split alignment": lambda k, o: _values(k.split("alignment", other=o, method="exact")),
    "part alignments": lambda k, o: k.part_alignments(other=o, method="exact").values,
    "partial trace": lambda k, o: k.partial_trace("batch", method="exact").values,
    "partial forward": lambda k, o: k.partial_trace("batch", method="forward", products=8).values,
    "partial reverse": lambda k, o: k.partial_trace([1], method="reverse", products=8).values,
    "eigenvalues": lambda k, o: k.eigenpairs(3).values,
    "operator norm": lambda k, o: k.operator_norm(),
    "stable rank": lambda k, o: k.stable_rank(),
    "log det": lambda k, o: k.log_det(0.5),
    "entropy": lambda k, o: k.entropy(),
    "targets": lambda k, o: k.target_alignment(_Y),
    "energy": lambda k, o: k.target_energy(_Y, 3),
    "inverse form": lambda k, o: k.inverse_form(_Y, 0.5),
    "speed": lambda k, o: k.loss_speed(lambda h: h.square().sum()),
    "cross": lambda k, o: k.cross(torch.ones(3, 4).double()).to_dense(),
    "cross norm": lambda k, o: k.cross(torch.ones(3, 4).double()).frobenius_norm(),
    "dense": lambda k, o: k.to_dense(),
    "matvec": lambda k, o: k @ _Y.reshape(-1),
    "jvp": lambda k, o: k.jvp(torch.ones(k.n_params).double()),
    "jacobian": lambda k, o: k.jacobian() @ torch.ones(k.n_params).double(),
    "fingerprint": lambda k, o: k.fingerprint(probes=4).frobenius_norm(),
    "scipy": lambda k, o: k.to_scipy() @ _Y.reshape(-1).numpy(),
}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_gives_what_it_gives_of_a_model_that_is_traced(name: str) -> None:
    opaque, plain, other, other_plain = kernels()
    assert isinstance(opaque.engine.samples(), HookedSamples)
    assert not isinstance(plain.engine.samples(), (HookedSamples, Refusal))
    found, expected = VERBS[name](opaque, other), VERBS[name](plain, other_plain)
    found, expected = (np.asarray(getattr(one, "value", one)) for one in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_every_row_is_that_of_plain_autograd() -> None:
    opaque = kernels()[0]
    torch.manual_seed(0)
    model = Branching(True)
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows = []
    for value in model(x).reshape(-1):
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(opaque.to_dense(), jacobian @ jacobian.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("option", ["loss", "scale"])
def test_weighted_states_go_by_the_whole_batch(option: str) -> None:
    options: dict[str, Any] = {"loss": {"loss": "mse"}, "scale": {"scale": {"second.weight": 2.0}}}[option]
    made = []
    for opaque in (True, False):
        torch.manual_seed(0)
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        made.append(NTK(Branching(opaque), x, **options))
    assert isinstance(made[0].engine.samples(), Refusal)
    torch.testing.assert_close(made[0].to_dense(), made[1].to_dense(), rtol=1e-10, atol=1e-12)
    assert made[0].trace().value == pytest.approx(made[1].trace("exact").value, rel=1e-9)


def test_what_hooks_do_not_see_either_says_both_reasons() -> None:
    torch.manual_seed(0)
    model = Function(lambda m, x: NumPySine.apply(x @ m.weight), weight=torch.randn(3, 2).double())
    samples = NTK(model, torch.randn(4, 3).double()).engine.samples()
    assert isinstance(samples, Refusal)
    assert "nor do hooks on layers serve" in samples.reason
    assert "do not see all uses of the parameter 'weight'" in samples.reason


def test_a_value_that_all_samples_share_is_refused() -> None:
    """A scale by .item() of the whole batch couples the samples' states."""
    torch.manual_seed(0)
    model = Function(lambda m, x: m.first(x) / m.first(x).abs().mean().item(), first=nn.Linear(3, 2).double())
    samples = NTK(model, torch.randn(4, 3).double()).engine.samples()
    assert isinstance(samples, Refusal)


def test_attributes_are_those_of_the_moment() -> None:
    class Switched(Branching):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    torch.manual_seed(0)
    model, x = Switched(True), torch.randn(9, 4).double()
    model.factor = 2.0
    ntk = NTK(model, x)
    expected = NTK(model, x).trace("exact").value
    model.factor = 1.0
    assert ntk.trace("exact").value == pytest.approx(expected, rel=1e-10)
    assert isinstance(ntk.engine.samples(), HookedSamples)
    model.factor = 3.0
    assert ntk.trace("exact").value == pytest.approx(expected, rel=1e-10)
    assert model.factor == 3.0


def test_a_layer_is_watched_once() -> None:
    torch.manual_seed(0)
    model, x = Branching(True), torch.randn(9, 4).double()
    ntk = NTK(model, x, layer="second")
    assert isinstance(ntk.engine.samples(), HookedSamples)
    assert ntk.trace("exact").value == pytest.approx(NTK(model, x).trace("exact").value, rel=1e-10)
