"""The same numbers on a CUDA device as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from inside import refusal
from ntkscope import NTK
from zoo import BY_NAME, Case, each, paper_gru, paper_mlp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

SUBSET = [
    "mlp", "frozen", "tied-embedding", "embedding-padding", "layer-norm", "rms-norm", "scale-and-bias",
    "cnn-batch-norm-eval", "conv2d-groups-stride-dilation", "transposed2d", "group-norm", "max-pool",
    "self-attention", "transformer", "transformer-causal-mask", "scaled-dot-product", "class-token",
    "gru", "gru-last-step", "lstm-batch-first", "lstm-projected", "rnn-tanh-two-layers-both-ways", "gru-cell",
    "layer-used-twice", "dict-inputs", "samples-last", "batch-norm-training", "contrastive-head",
]  # fmt: skip
COUPLED = ("batch-norm-training", "contrastive-head")


def _on_gpu(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> NTK:
    model, inputs = case.make(seed, dtype)
    inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), inputs)
    return NTK(model.cuda(), inputs, **(case.options | options))


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@each(SUBSET)
def test_exact_numbers_are_those_of_the_cpu(case: Case) -> None:
    ntk, expected = _on_gpu(case), case.dense()
    assert ntk.device.type == "cuda"
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-8)
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-8)
    other = ntk.alignment(_on_gpu(case, 1), "exact").value
    assert other == pytest.approx(case.shared().alignment(case.shared(1), "exact").value, rel=1e-8)
    _close(ntk.to_dense(), expected.kernel)


@each(SUBSET)
def test_the_structure_is_that_of_the_cpu(case: Case) -> None:
    found, expected = refusal(_on_gpu(case)), refusal(case.shared())
    if case.name in COUPLED:
        assert found is None
        return
    assert found is not None
    assert expected is not None
    assert found.graph.general == expected.graph.general
    assert [use.parameters for use in found.graph.uses] == [use.parameters for use in expected.graph.uses]
    _close(found.frobenius_squared(), expected.frobenius_squared())


@each(SUBSET)
def test_products_are_those_of_the_cpu(case: Case) -> None:
    ntk, jacobian, kernel = _on_gpu(case), case.dense().jacobian, case.dense().kernel
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(ntk.n, 3, generator=generator, dtype=torch.float64)
    u = torch.randn(ntk.n_params, 3, generator=generator, dtype=torch.float64)
    _close(ntk @ z.cuda(), kernel @ z)
    _close(ntk.vjp(z.cuda()), jacobian.T @ z)
    _close(ntk.jvp(u.cuda()), jacobian @ u)
    # What comes from the CPU or NumPy is taken along.
    _close(ntk @ z, kernel @ z)
    assert ntk.matvec(z.numpy()) == pytest.approx((kernel @ z).numpy(), rel=1e-7, abs=1e-8)


@each(["mlp", "gru", "cnn-batch-norm-eval"])
@pytest.mark.parametrize("method", ["per-sample", "rhutch", "fhutch", "hutch++", "xnystrace", "gram"])
def test_a_seed_gives_the_estimate_of_the_cpu(case: Case, method: str) -> None:
    found, expected = (ntk.trace(method, 24, seed=3) for ntk in (_on_gpu(case), case.shared()))
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert found.stderr == pytest.approx(expected.stderr, rel=1e-4, abs=1e-9 * expected.value)


@each(["mlp", "gru", "transformer"])
def test_budgets_do_not_change_a_result(case: Case) -> None:
    for options in ({"chunk_size": 1}, {"memory": 1}, {"memory": 50_000}):
        ntk = _on_gpu(case, **options)
        assert ntk.trace("exact").value == pytest.approx(case.dense().trace, rel=1e-8)
        assert ntk.frobenius_norm("exact").value == pytest.approx(case.dense().frobenius_norm, rel=1e-8)


RECURRENT: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], torch.Tensor]]] = {
    "gru": (lambda: nn.GRU(5, 6, 2), lambda y: y[0]),
    "gru-both-ways": (lambda: nn.GRU(5, 6, bidirectional=True), lambda y: y[0]),
    "lstm": (lambda: nn.LSTM(5, 6, 2), lambda y: y[0]),
    "lstm-memory": (lambda: nn.LSTM(5, 6), lambda y: y[1][1]),
    "rnn": (lambda: nn.RNN(5, 6), lambda y: y[0]),
}


@pytest.mark.parametrize(("build", "outputs"), RECURRENT.values(), ids=RECURRENT)
def test_recurrences_run_by_plain_operations(
    build: Callable[[], nn.Module], outputs: Callable[[Any], torch.Tensor]
) -> None:
    """cuDNN's layers have no double backward, no forward mode and no vmap: same weights, same result."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build().double(), torch.randn(7, 3, 5, dtype=torch.float64)
    cpu = NTK(model, x, outputs=outputs, batch_dim=1)
    gpu = NTK(model.cuda(), x.cuda(), outputs=outputs, batch_dim=1)
    assert torch.backends.cudnn.enabled
    torch.testing.assert_close(
        gpu.engine.function.state, outputs(model(x.cuda())).detach(), rtol=1e-8, atol=1e-10
    )
    assert not refusal(gpu)
    assert gpu.trace("exact").value == pytest.approx(cpu.trace("exact").value, rel=1e-8)
    _close(gpu.to_dense(), cpu.to_dense())
    _close(gpu @ torch.eye(gpu.n).cuda(), cpu.to_dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each(["mlp", "cnn-batch-norm-eval", "transformer"])
def test_lower_precision(case: Case, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 5e-3, torch.float16: 3e-2, torch.bfloat16: 0.2}[dtype]
    ntk = _on_gpu(case, dtype=dtype)
    assert ntk.trace("exact").value == pytest.approx(case.dense().trace, rel=tolerance)
    norm = ntk.frobenius_norm("exact").value
    assert norm == pytest.approx(case.dense().frobenius_norm, rel=2 * tolerance)


def test_the_papers_models() -> None:
    model, x = paper_mlp()
    assert NTK(model.cuda(), x.cuda()).trace("exact").value == pytest.approx(2314.2322, rel=1e-3)
    model, x = paper_gru()
    ntk = NTK(model.cuda(), x.cuda(), outputs=lambda y: y[0], batch_dim=1)
    assert ntk.trace("exact").value == pytest.approx(223_056.46, rel=1e-3)


def test_kernels_on_two_devices_are_not_compared() -> None:
    case = BY_NAME["mlp"]
    with pytest.raises(ValueError, match=r"cpu and .* on cuda.*bring both models to one dtype and device"):
        case.shared().alignment(_on_gpu(case))


def test_the_random_state_of_the_device_stays() -> None:
    before = torch.cuda.get_rng_state()
    ntk = _on_gpu(BY_NAME["gru"])
    ntk.trace("per-sample", 3)
    ntk.measure(method="exact")
    assert torch.equal(torch.cuda.get_rng_state(), before)
