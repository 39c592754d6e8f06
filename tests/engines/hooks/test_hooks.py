"""Hooks on layers: exact numbers of the zoo, estimates as by tracing, and refusals of what is not seen."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import make, tokens
from ntkscope import NTK
from ntkscope.engines.torch.gradients.factors import Outer
from ntkscope.engines.torch.hooks.gradients import Hooked
from ntkscope.engines.torch.hooks.places import codes
from ntkscope.engines.torch.hooks.products import meetings
from ntkscope.engines.torch.hooks.taps import Place
from reference import alignment, dense
from zoo import BY_NAME, ZOO, Case, Function, each

#: Cases with parameters that no known layer uses, by the parameter that the refusal names first.
UNSEEN = {
    "matmul-by-hand": "first",
    "matmul-sequence": "weight",
    "scale-and-bias": "scale",
    "bilinear": "weight",
    "einsum": "weight",
    "slice-of-a-weight": "weight",
    "weight-norm-old": "0.weight_g",
    "weight-norm-new": "0.parametrizations.weight.original0",
    "instance-norm": "1.weight",
    "gru": "weight_ih_l0",
    "gru-last-step": "weight_ih_l0",
    "gru-hidden": "weight_ih_l0",
    "gru-initial-state": "weight_ih_l0",
    "gru-no-bias": "weight_ih_l0",
    "lstm-batch-first": "weight_ih_l0",
    "lstm-projected": "weight_ih_l0",
    "lstm-initial-state": "weight_ih_l0",
    "lstm-cell-state": "weight_ih_l0",
    "rnn-tanh-two-layers-both-ways": "weight_ih_l0",
    "rnn-relu": "weight_ih_l0",
    "rnn-cell-tanh": "cell.weight_ih",
    "rnn-cell-relu": "cell.weight_ih",
    "gru-cell-no-bias": "cell.weight_ih",
    "gru-cell": "cell.weight_ih",
    "lstm-cell": "cell.weight_ih",
    "lstm-classifier": "lstm.weight_ih_l0",
    "self-attention": "attention.in_proj_weight",
    "self-attention-no-weights-time-first": "attention.in_proj_weight",
    "cross-attention-shared-mask": "attention.q_proj_weight",
    "attention-bias-kv": "attention.in_proj_weight",
    "transformer": "layers.0.self_attn.in_proj_weight",
    "transformer-gelu-norm-first": "layers.0.self_attn.in_proj_weight",
    "transformer-causal-mask": "encoder.layers.0.self_attn.in_proj_weight",
    "class-token": "token",
    "tied-matmul-and-linear": "weight",
    "weight-and-its-transpose": "weight",
    "bias-shared-by-two-layers": "first",
    "norm-scale-shared-with-product": "scale",
    "in-place-into-a-view": "scale",
}

#: Cases whose samples are coupled; the reference of one has its own backward pass as well.
COUPLED = [case.name for case in ZOO if not case.independent and case.name != "custom-backward"]
SEEN = [case.name for case in ZOO if case.name not in {*UNSEEN, *COUPLED}]


def hooked(model: nn.Module, x: Any, **options: Any) -> NTK:
    return NTK(model, x, engine="hooks", **options)


@each(SEEN)
def test_kernels_of_the_zoo_are_exact(case: Case) -> None:
    model, inputs = case.make()
    ntk, reference = hooked(model, inputs, **case.options), case.dense()
    assert (ntk.n, ntk.n_params) == tuple(reference.jacobian.shape)
    torch.testing.assert_close(ntk.to_dense(), reference.kernel, rtol=1e-9, atol=1e-9)
    assert ntk.trace(method="exact").value == pytest.approx(reference.trace, rel=1e-9)
    exact = ntk.measure(method="exact")
    assert exact.frobenius_norm.value == pytest.approx(reference.frobenius_norm, rel=1e-9)
    assert exact.frobenius_norm.stderr == 0


@each(list(UNSEEN))
def test_parameters_that_are_not_seen_are_named(case: Case) -> None:
    model, inputs = case.make()
    with pytest.raises(ValueError, match="hooks on layers do not see all uses of the parameter") as error:
        hooked(model, inputs, **case.options)
    assert repr(UNSEEN[case.name]) in str(error.value)


@each(COUPLED)
def test_coupled_samples_are_refused(case: Case) -> None:
    model, inputs = case.make()
    with pytest.raises(ValueError, match=r"coupled|depends on the other samples|one by one|on their own"):
        hooked(model, inputs, **case.options)


@each(["mlp", "cnn-batch-norm-eval", "tied-embedding", "norm-used-twice", "embedding-mean"])
@pytest.mark.parametrize("products", [2, 6])
def test_estimates_are_those_of_tracing(case: Case, products: int) -> None:
    model, inputs = case.make()
    ours, theirs = hooked(model, inputs, **case.options), NTK(model, inputs, **case.options)
    for metric in ("frobenius_norm", "effective_rank"):
        a, b = (getattr(ntk, metric)("per-sample", products=products, seed=3) for ntk in (ours, theirs))
        assert a.value == pytest.approx(b.value, rel=1e-9)
        assert a.stderr == pytest.approx(b.stderr, rel=1e-6)
        assert a.cost.vjps == products


def test_traces_are_unbiased() -> None:
    case = BY_NAME["mlp"]
    ntk = hooked(*case.make())
    found = ntk.trace("per-sample", products=200, seed=1)
    assert found.stderr
    assert abs(found.value - case.dense().trace) < 4 * found.stderr


# Language models.


@pytest.mark.parametrize("checkpoints", ["", "plain", "reentrant"])
def test_a_language_model_with_checkpoints(checkpoints: str) -> None:
    x = tokens(7)
    models = [make(seed, layers=2, checkpoints=checkpoints) for seed in (0, 1)]
    references = [dense(make(seed, layers=2), x) for seed in (0, 1)]
    one, other = (hooked(model, x) for model in models)
    found = one.measure([other], method="exact")
    assert found.trace.value == pytest.approx(references[0].trace, rel=1e-9)
    assert found.frobenius_norm.value == pytest.approx(references[0].frobenius_norm, rel=1e-9)
    assert found.effective_rank.value == pytest.approx(references[0].effective_rank, rel=1e-9)
    assert found.alignment[0].value == pytest.approx(alignment(*references), rel=1e-9)


def test_inputs_are_not_kept_beside_a_checkpoint() -> None:
    """What a tap keeps goes through the checkpoint, which throws it away and computes it again."""
    kept: list[int] = []
    model, x = make(layers=2, checkpoints="plain"), tokens(4)
    ntk = hooked(model, x)

    def pack(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        ntk.trace("per-sample", products=2)
    with_checkpoints = sum(kept)
    kept.clear()
    plain = hooked(make(layers=2), x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        plain.trace("per-sample", products=2)
    assert with_checkpoints < sum(kept) / 3


def test_factors_are_let_go_when_they_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(layers=3), tokens(4)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    ntk = hooked(model, x)
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    factors = Hooked.factors

    def watched(self: Hooked, name: str, *sides: Tensor) -> Any:
        alive.append(sum(one() is not None for one in made))
        found = factors(self, name, *sides)
        made.extend(map(weakref.ref, found.values()))
        return found

    monkeypatch.setattr(Hooked, "factors", watched)
    ntk.frobenius_norm("per-sample", products=3)
    assert len(made) > 20
    assert max(alive) == 0


def test_layers_add_up() -> None:
    ntk = hooked(make(layers=1), tokens(5))
    whole, parts = ntk.fingerprint(probes=3), ntk.fingerprint(probes=3, by="layer")
    assert parts.trace().value == pytest.approx(whole.trace().value, rel=1e-9)
    assert parts.frobenius_norm().value == pytest.approx(whole.frobenius_norm().value, rel=1e-9)


@pytest.mark.parametrize("keep", ["batch", "unit", "place"])
@pytest.mark.parametrize("method", ["exact", "reverse"])
def test_partial_traces_are_those_of_tracing(keep: str, method: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(3, 3, 4, dtype=torch.float64)
    options: dict[str, Any] = {} if method == "exact" else {"products": 40}
    names = ("batch", "place", "unit")
    ours, theirs = (
        ntk.partial_trace(keep, names, method, **options) for ntk in (hooked(model, x), NTK(model, x))
    )
    assert ours.values == pytest.approx(theirs.values, rel=1e-9, abs=1e-9)


# The state of things.


def test_nothing_of_the_model_changes() -> None:
    model, x = make(layers=1), tokens(4)
    stepped: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: stepped.append(name))
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad for p in model.parameters()]
    random = torch.get_rng_state()
    hooked(model, x).frobenius_norm("per-sample", products=4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert bool((gradient == 3).all())
    assert torch.equal(random, torch.get_rng_state())
    assert not stepped
    assert not any(module._forward_hooks for module in model.modules())


def test_a_kernel_is_a_snapshot() -> None:
    model, x = make(layers=1), tokens(4)
    first = hooked(model, x)
    before = first.trace("exact").value
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    now = {name: value.clone() for name, value in model.state_dict().items()}
    after = first.at(model)
    assert first.trace("exact").value == before
    assert after.trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-9)
    assert first.alignment(after, "exact").value < 0.999
    assert all(torch.equal(now[name], value) for name, value in model.state_dict().items())


def test_running_averages_are_put_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Function(lambda m, x: m.count.add_(1) * 0 + x))
    model[1].register_buffer("count", torch.zeros(()))
    hooked(model, torch.randn(3, 3)).trace("exact")
    assert float(model[1].count) == 0


def test_autocast_inside_the_model() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = m.second(torch.tanh(m.first(x)))
        return y.float()

    torch.manual_seed(0)
    model, x = Function(run, first=nn.Linear(5, 8), second=nn.Linear(8, 3)), torch.randn(6, 5)
    plain = Function(lambda m, x: m.second(torch.tanh(m.first(x))), first=model.first, second=model.second)
    ours, exact = hooked(model, x).measure(method="exact"), NTK(plain, x).measure(method="exact")
    for name in ("trace", "frobenius_norm", "effective_rank"):
        assert ours[name].value == pytest.approx(exact[name].value, rel=0.02)


# Where the samples lie.


class Text(nn.Module):
    """Samples on the second axis, positions on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.words(x)).cumsum(0))).mean(0)


@pytest.mark.parametrize("length", [3, 5, 20])
def test_samples_are_found_on_the_second_axis(length: int) -> None:
    """A length that is the number of rows in a pass, or a multiple of it, misleads nobody."""
    torch.manual_seed(0)
    model, x = Text().double(), torch.randint(0, 7, (length, 5))
    ntk = hooked(model, x, batch_dim=1, chunk_size=1)
    torch.testing.assert_close(ntk.to_dense(), dense(model, x).kernel, rtol=1e-9, atol=1e-9)
    assert set(ntk.engine.hooked.places) == {"words", "norm", "head"}  # type: ignore[attr-defined]
    assert ntk.engine.hooked.places["words"][0].axis == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("as_a_batch", [False, True])
@pytest.mark.parametrize("length", [4, 5, 20])
def test_positions_have_no_samples(as_a_batch: bool, length: int) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        places = places[None] if as_a_batch else places
        return m.head(torch.tanh(m.words(x) + m.norm(m.places(places)))).mean(1)

    torch.manual_seed(0)
    parts = {"words": nn.Embedding(7, 4), "places": nn.Embedding(length, 4), "norm": nn.LayerNorm(4)}
    model = Function(run, **parts, head=nn.Linear(4, 2)).double()
    x = torch.randint(0, 7, (5, length))
    ntk = hooked(model, x, chunk_size=1)
    torch.testing.assert_close(ntk.to_dense(), dense(model, x).kernel, rtol=1e-9, atol=1e-9)


def test_samples_that_a_layer_mixes_up_are_refused() -> None:
    """Positions of all samples before the next position: the sum over all is right, each sample's is not."""

    def run(m: Any, x: Tensor) -> Tensor:
        flat = m.layer(x.transpose(0, 1).reshape(-1, 3))
        return torch.tanh(flat).reshape(x.shape[1], x.shape[0], 2).sum(0)

    model = Function(run, layer=nn.Linear(3, 2)).double()
    with pytest.raises(ValueError, match="the gradient of one sample reaches other samples"):
        hooked(model, torch.randn(4, 5, 3, dtype=torch.float64))


def test_samples_that_are_sorted_are_refused() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return m.last(torch.tanh(m.layer(x[order])[order.argsort()]))

    model = Function(run, layer=nn.Linear(3, 4), last=nn.Linear(4, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="reaches other samples in the output of the module 'layer'"):
        hooked(model, x)


def test_randomness_is_refused() -> None:
    with pytest.raises(ValueError, match="it is random"):
        hooked(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), torch.randn(4, 3))


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 70])
def test_no_code_covers_another(count: int) -> None:
    code = codes(count)
    assert code.shape[1] == count
    covers = (code.T[:, None] | ~code.T[None]).all(2)
    assert torch.equal(covers, torch.eye(count, dtype=torch.bool))


# What is not seen.


def outside(use: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Function(use, layer=nn.Linear(3, 3), other=nn.Linear(3, 3)).double()


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: m.layer(torch.tanh(F.linear(m.other(x), m.layer.weight))),
        lambda m, x: m.other(m.layer(x)) + m.layer.weight.sum(),
        lambda m, x: m.other(m.layer.forward(x)),
    ],
    ids=["by a function", "in a sum", "past the hooks"],
)
def test_uses_outside_of_the_module_are_refused(use: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"all uses of the parameter 'layer\.weight' of the module 'layer'"):
        hooked(outside(use), torch.randn(4, 3, dtype=torch.float64))


def test_a_wrong_factor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check sees an estimator that is broken on purpose."""
    summed = Outer.summed
    monkeypatch.setattr(Outer, "summed", lambda self: summed(self) * 1.001)
    with pytest.raises(ValueError, match="do not see all uses"):
        hooked(*BY_NAME["mlp"].make())


def test_a_wrong_place_is_refused() -> None:
    """Rows that are read along another axis make no sample's gradient, and the probes' code shows it."""
    x = torch.randn(5, 3, 4)
    place = Place(1)
    assert place.rows(x, 3).shape == (3, 1, 5, 4)


# In parts.


@pytest.mark.parametrize(("probes", "at_once"), [(1, 4), (4, 4), (5, 4), (7, 2), (3, 1), (9, 5)])
def test_all_pairs_of_probes_meet_once(probes: int, at_once: int) -> None:
    met = torch.zeros(probes, probes, dtype=torch.int)
    for meeting in meetings(probes, at_once):
        assert len(meeting.probes) <= max(2, at_once)
        index = torch.tensor(meeting.probes)
        met[index[:, None], index] += meeting.fresh.int()
    assert bool((met == 1).all())


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_passes_in_parts_give_the_same(chunk_size: int) -> None:
    model, x = make(layers=1), tokens(5)
    whole, parts = hooked(model, x), hooked(model, x, chunk_size=chunk_size)
    for products, method in ((5, "per-sample"), (None, "exact")):
        for metric in ("trace", "frobenius_norm"):
            one, two = (getattr(ntk, metric)(method, products=products) for ntk in (whole, parts))
            assert one.value == pytest.approx(two.value, rel=1e-9)


def test_more_samples_than_a_ring_takes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(200, 4, dtype=torch.float64)
    one, other = (
        ntk.frobenius_norm("per-sample", products=2, seed=1) for ntk in (hooked(model, x), NTK(model, x))
    )
    assert one.value == pytest.approx(other.value, rel=1e-9)
    assert one.stderr == pytest.approx(other.stderr, rel=1e-6)


# What there is not.


def test_products_are_refused_with_the_remedy() -> None:
    ntk = hooked(*BY_NAME["mlp"].make())
    for call in (
        lambda: ntk.trace("hutch++"),
        lambda: ntk.matvec(torch.zeros(ntk.n)),
        lambda: ntk.trace("per-sample-forward"),
    ):
        with pytest.raises(NotImplementedError, match=r"use method='exact' or 'per-sample'"):
            call()
    with pytest.raises(ValueError, match="unknown engine 'hook'"):
        NTK(*BY_NAME["mlp"].make(), engine="hook")  # type: ignore[arg-type]


def test_explain_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    hooked(*BY_NAME["mlp"].make()).explain("frobenius_norm")
    printed = capsys.readouterr().out
    assert "by hooks on 3 layers" in printed
    assert "not here: hooks on layers" in printed
