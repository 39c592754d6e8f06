"""Measuring changes nothing for the caller."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from ntkscope import NTK
from zoo import BY_NAME, Case, each

WATCHED = [
    "mlp", "frozen", "batch-norm-training", "cnn-batch-norm-eval", "lstm-batch-first", "transformer",
    "weight-norm-old", "weight-norm-new", "tied-embedding", "in-place-on-the-input", "dict-inputs",
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def _work(ntk: NTK) -> None:
    """Every kind of computation once."""
    ntk.measure(method="exact")
    ntk.trace(method="exact")
    ntk.trace(method="fhutch", products=3)
    ntk.effective_rank(products=20)
    ntk @ torch.ones(ntk.n)
    ntk.to_dense()
    ntk.plan()


def _flags() -> dict[str, Any]:
    backends = torch.backends
    return {
        "mkldnn": backends.mkldnn.enabled,
        "cudnn": backends.cudnn.enabled,
        "fastpath": backends.mha.get_fastpath_enabled(),
        "flash": backends.cuda.flash_sdp_enabled(),
        "efficient": backends.cuda.mem_efficient_sdp_enabled(),
        "math": backends.cuda.math_sdp_enabled(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


@each(WATCHED)
def test_the_model_and_its_inputs_stay_as_they_were(case: Case) -> None:
    model, inputs = case.make()
    calls: list[str] = []
    model.register_forward_hook(lambda module, args, output: calls.append("hook"))
    for parameter in model.parameters():
        if parameter.is_leaf:
            parameter.grad = torch.ones_like(parameter)
    names = [name for name, _ in model.named_parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    kept = copy.deepcopy(inputs)
    hooks = len(model._forward_hooks)

    _work(NTK(model, inputs, **case.options))

    after = model.state_dict()
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == gradients
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.is_leaf)
    assert [module.training for module in model.modules()] == modes
    assert len(model._forward_hooks) == hooks
    leaves, unchanged = torch.utils._pytree.tree_leaves(inputs), torch.utils._pytree.tree_leaves(kept)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, unchanged, strict=True))


@each(["mlp", "gru", "transformer", "batch-norm-training"])
def test_global_state_stays_as_it_was(case: Case) -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    flags, torch_state, numpy_state = _flags(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _work(NTK(*case.make(), **case.options))
    assert _flags() == flags
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_flags_come_back_after_an_error() -> None:
    flags = _flags()
    with pytest.raises(ValueError, match="random"):
        NTK(torch.nn.LSTM(3, 4, 2, dropout=0.5), torch.ones(5, 2, 3), outputs=lambda y: y[0])
    assert _flags() == flags


def test_the_random_state_does_not_choose_the_probes() -> None:
    ntk = BY_NAME["mlp"].shared()
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        values.append(
            [ntk.trace(method, 6).value for method in ("rhutch", "fhutch", "per-sample", "hutch++")]
        )
    assert values[0] == values[1]


def test_training_the_model_does_not_change_its_kernel() -> None:
    model, x = BY_NAME["mlp"].make()
    made, lazy = NTK(model, x), NTK(model, x)
    before = made.to_dense().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(x).square().sum().backward()
    optimizer.step()
    x.mul_(3)
    assert torch.equal(made.to_dense(), before)
    assert torch.equal(lazy.to_dense(), before)
    assert not torch.allclose(NTK(model, x).to_dense(), before)


def test_a_kernel_works_under_no_grad() -> None:
    case = BY_NAME["mlp"]
    with torch.no_grad():
        ntk = case.ntk()
        assert ntk.trace(method="exact").value == pytest.approx(case.dense().trace, rel=1e-9)
        assert not torch.is_grad_enabled()
        torch.testing.assert_close(ntk.to_dense(), case.dense().kernel)
        torch.testing.assert_close(ntk @ torch.ones(12).double(), case.dense().kernel.sum(1))


def test_results_carry_no_gradient() -> None:
    ntk = BY_NAME["mlp"].shared()
    results = [ntk.to_dense(), ntk @ torch.ones(12), ntk.vjp(torch.ones(12)), ntk.jvp(torch.ones(111))]
    assert not any(result.requires_grad for result in results)
