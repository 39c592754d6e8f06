"""Numbers by layer, parameter, sample and output against dense Jacobians, exactly and by probes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ntkscope import NTK, ArrayEstimate, PartAlignments, Split
from ntkscope.parts.grouping import group_parameters
from zoo import BY_NAME, ZOO, Case, each

SEVERAL = ["mlp", "gru", "transformer", "tied-embedding", "frozen", "unused-parameter", "batch-norm-training"]


def layers(case: Case, seed: int = 0, by: Any = "layer") -> dict[str, np.ndarray]:
    """J of every part, cut from the dense one by hand."""
    model, _ = case.make()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    jacobian, start = case.dense(seed).jacobian.numpy(), 0
    columns: dict[str, list[np.ndarray]] = {}
    for name, parameter in named.items():
        part = name if by == "parameter" else name.rpartition(".")[0] or "self"
        columns.setdefault(part, []).append(jacobian[:, start : start + parameter.numel()])
        start += parameter.numel()
    assert start == jacobian.shape[1]
    return {name: np.concatenate(blocks, axis=1) for name, blocks in columns.items()}


def _strip(names: Sequence[str]) -> list[str]:
    return [name.removeprefix("model.") for name in names]


@each(ZOO)
def test_traces_by_parameter_add_up(case: Case) -> None:
    found = case.shared().split(by="parameter", method="exact")
    expected = layers(case, by="parameter")
    assert len(found) == len(expected)
    for part, jacobian in zip(found.values(), expected.values(), strict=True):
        assert part.value == pytest.approx(np.sum(jacobian**2), rel=1e-9, abs=1e-12)
        assert part.stderr == 0
    assert found.whole is not None
    assert sum(map(float, found.values())) == pytest.approx(case.dense().trace, rel=1e-9)
    assert found.whole.value == pytest.approx(case.dense().trace, rel=1e-9)


@each(SEVERAL)
def test_exact_norms_and_alignments_by_layer(case: Case) -> None:
    ntk, other = case.shared(), case.shared(1)
    kernels = {name: j @ j.T for name, j in layers(case).items()}
    others = {name: j @ j.T for name, j in layers(case, 1).items()}
    norm = ntk.split("frobenius_norm", method="exact")
    rank = ntk.split("effective_rank", method="exact")
    aligned = ntk.split("alignment", other=other, method="exact")
    matrix = ntk.part_alignments(method="exact")
    across = ntk.part_alignments(other=other, method="exact")
    assert list(norm) == list(kernels)
    assert matrix.rows == across.columns == tuple(kernels)
    for a, (name, kernel) in enumerate(kernels.items()):
        size = np.linalg.norm(kernel)
        assert norm[name].value == pytest.approx(size, rel=1e-9, abs=1e-12)
        if size == 0:
            assert np.isnan(matrix.values[a, a])
            continue
        assert rank[name].value == pytest.approx((np.trace(kernel) / size) ** 2, rel=1e-9)
        theirs = others[name]
        cosine = np.sum(kernel * theirs) / size / np.linalg.norm(theirs)
        assert aligned[name].value == pytest.approx(cosine, rel=1e-9)
        for b, (one, two) in enumerate(zip(kernels.values(), others.values(), strict=True)):
            for found, truth in ((matrix, one), (across, two)):
                if np.linalg.norm(truth) > 0:
                    expected = np.sum(kernel * truth) / size / np.linalg.norm(truth)
                    assert found.values[a, b] == pytest.approx(expected, rel=1e-9)
    assert norm.whole is None


@each(SEVERAL)
def test_squared_gradients_and_diagonal(case: Case) -> None:
    ntk, kernel = case.shared(), case.dense().kernel.numpy()
    diagonal = ntk.diagonal(method="exact")
    assert diagonal.shape == ntk.output_shape
    np.testing.assert_allclose(diagonal.values.reshape(-1), np.diagonal(kernel), rtol=1e-9, atol=1e-12)
    assert diagonal.is_exact
    if not case.independent:
        with pytest.raises(ValueError, match="a sample has no gradient of its own here"):
            ntk.squared_gradients()
        return
    squares = ntk.squared_gradients(method="exact")
    index = ntk.engine.samples().state_index()  # type: ignore[union-attr]
    np.testing.assert_allclose(squares.values, np.diagonal(kernel)[index].sum(1), rtol=1e-9)
    by_sample = ntk.split(by="sample", method="exact")
    np.testing.assert_allclose(list(map(float, by_sample.values())), squares.values, rtol=1e-12)
    by_output = ntk.split(by="output", method="exact")
    places = diagonal.values.reshape(-1, ntk.output_shape[-1]).sum(0)
    np.testing.assert_allclose(list(map(float, by_output.values())), places, rtol=1e-9)


@pytest.mark.parametrize("by", ["layer", "sample"])
@each(["mlp", "gru"])
def test_random_probes_are_unbiased_and_add_up(case: Case, by: str) -> None:
    ntk = case.shared()
    truth = ntk.split(by=by, method="exact")
    found = [ntk.split(by=by, method="per-sample", products=12, seed=seed) for seed in range(400)]
    _check(truth, found)
    for one in found[:10]:
        assert one.whole is not None
        assert sum(map(float, one.values())) == pytest.approx(one.whole.value, rel=1e-9)
        assert one.cost.vjps == 12


def test_the_whole_batch_is_unbiased() -> None:
    ntk = BY_NAME["batch-norm-training"].shared()
    found = [ntk.split(method="gram", products=12, seed=seed) for seed in range(200)]
    _check(ntk.split(method="exact"), found)


@pytest.mark.parametrize(("name", "method"), [("mlp", "per-sample"), ("batch-norm-training", "gram")])
def test_norms_by_probes(name: str, method: Any) -> None:
    ntk, other = BY_NAME[name].shared(), BY_NAME[name].shared(1)
    for metric, kernel in (("frobenius_norm", None), ("alignment", other)):
        truth = ntk.split(metric, other=kernel, method="exact")
        products = 24 if kernel is None else 48
        found = [
            ntk.split(metric, other=kernel, method=method, products=products, seed=seed) for seed in range(60)
        ]
        assert found[0].cost.vjps == products
        for part, exact in truth.items():
            inside = [one[part].interval()[0] <= exact.value <= one[part].interval()[1] for one in found]
            # Alignments of single layers lie at 1, beyond which no estimate goes.
            assert np.mean(inside) >= 0.85, (metric, part)
            mean = np.mean([one[part].value for one in found])
            assert mean == pytest.approx(exact.value, rel=0.1)


def _check(truth: Split, found: Sequence[Split]) -> None:
    for name, part in truth.items():
        values = np.array([one[name].value for one in found])
        deviation = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - part.value) < 4 * deviation + 1e-9 * part.value
        low, high = np.array([one[name].interval() for one in found]).T
        covered = np.mean((low - 1e-9 <= part.value) & (part.value <= high + 1e-9))
        assert 0.91 <= covered <= 1


def test_alignments_of_a_deep_network_take_few_passes() -> None:
    """All pairs of layers from eight backward passes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [layer for _ in range(10) for layer in (nn.Linear(8, 8), nn.Tanh())]
        model, x = nn.Sequential(*blocks, nn.Linear(8, 3)).double(), torch.randn(40, 8).double()
    ntk = NTK(model, x)
    exact = ntk.part_alignments(method="exact")
    found = ntk.part_alignments(method="per-sample", products=8)
    assert found.cost.vjps == 8
    assert found.shape == (11, 11)
    np.testing.assert_allclose(found.values, exact.values, atol=0.1)
    assert np.nanmean(np.abs(found.values - exact.values)) < 0.03


def test_a_trace_by_layer_runs_the_products_of_the_trace() -> None:
    for name in ("mlp", "gru"):
        ntk = BY_NAME[name].ntk()
        assert ntk.split().cost.vjps <= ntk.trace("exact").cost.vjps
    for rtol in (0.2, 0.02):
        ntk = BY_NAME["gru"].ntk()
        cost = ntk.split(method="per-sample", rtol=rtol).cost.vjps
        assert cost <= 1.2 * max(ntk.trace("per-sample", rtol=rtol).cost.vjps, 8)


def test_errors_of_estimated_squares_cover() -> None:
    ntk = BY_NAME["gru"].shared()
    for make, exact in (
        (lambda seed: ntk.diagonal(method="forward", products=40, seed=seed), ntk.diagonal(method="exact")),
        (
            lambda seed: ntk.squared_gradients(method="per-sample", products=8, seed=seed),
            ntk.squared_gradients(method="exact"),
        ),
    ):
        found = [make(seed) for seed in range(100)]
        values = np.array([one.values for one in found])
        z = (values.mean(0) - exact.values) / (values.std(0, ddof=1) / 10)
        assert np.abs(z).max() < 4.5
        inside = [(one.interval()[0] <= exact.values) & (exact.values <= one.interval()[1]) for one in found]
        assert 0.91 <= np.mean(inside) <= 0.99


def test_to_a_tolerance() -> None:
    ntk = BY_NAME["gru"].shared()
    assert ntk.squared_gradients().is_exact
    assert ntk.diagonal().is_exact
    drawn = ntk.diagonal(method="forward", rtol=0.2)
    assert drawn.converged
    assert drawn.relative_stderr is not None
    assert drawn.relative_stderr < 0.2
    norms = ntk.split("frobenius_norm", method="per-sample", rtol=0.2)
    assert all(part.converged is not False for part in norms.values())


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("layer", ("a.b", "a", "self")),
        ("parameter", ("a.b.weight", "a.b.bias", "a.scale", "token")),
        (lambda name: name[0], ("a", "t")),
        ({"weights": "*.weight", "biases": "*.bias"}, ("weights", "biases", "rest")),
        (["a.*", "*"], ("a.*", "*")),
    ],
)
def test_groups_of_parameters(by: Any, names: tuple[str, ...]) -> None:
    grouping = group_parameters(by, ["a.b.weight", "a.b.bias", "a.scale", "token"])
    assert grouping.names == names
    assert sorted(set(grouping.parts.values())) == list(range(len(names)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"by": "colour"}, ValueError, "unknown by='colour'; choose 'layer', 'parameter'"),
        ({"by": ["x*"]}, ValueError, "no parameter matches 'x.'; the parameters are 0.weight"),
        ({"by": 3}, TypeError, "by must be a text, a function or patterns"),
        ({"by": lambda name: 1}, TypeError, "return a str"),
        ({"metric": "rank"}, ValueError, "unknown metric 'rank'"),
        ({"method": "sketch"}, ValueError, "unknown method 'sketch' for splits"),
        ({"metric": "alignment"}, ValueError, "alignment takes 2 kernels, found 1; see other="),
        ({"metric": "frobenius_norm", "by": "output"}, ValueError, "splits the trace alone; of one output"),
        ({"method": "per-sample", "by": "output"}, ValueError, "needs one-hot probes; use method='exact'"),
        ({"method": "gram", "by": "sample"}, ValueError, "use method='exact'"),
        ({"metric": "alignment", "other": torch.eye(12)}, TypeError, "has no parts to compare with"),
    ],
)
def test_errors_name_the_remedy(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        BY_NAME["mlp"].shared().split(**arguments)


def test_coupled_samples_are_no_parts() -> None:
    ntk = BY_NAME["batch-norm-training"].shared()
    with pytest.raises(ValueError, match="by='sample' needs samples on their own"):
        ntk.split(by="sample")
    for metric in ("trace", "frobenius_norm"):
        with pytest.raises(ValueError, match="the samples are coupled; use"):
            ntk.split(metric, method="per-sample")


def test_results_for_people_and_files() -> None:
    ntk = BY_NAME["mlp"].shared()
    split = ntk.split()
    assert split.table().splitlines()[-1].startswith("whole")
    assert "trace by layer" in repr(split)
    assert split._repr_html_().count("<tr>") == 3
    assert sum(split.shares().values()) == pytest.approx(1)
    text = json.dumps(split.to_dict(), allow_nan=False)
    assert Split.from_dict(json.loads(text)).to_dict() == split.to_dict()
    with pytest.raises(KeyError, match="no part is named '7'; the parts are 0, 2, 4"):
        split["7"]
    with pytest.raises(ValueError, match="do not add up to the whole"):
        ntk.split("frobenius_norm").shares()
    matrix = ntk.part_alignments()
    back = PartAlignments.from_dict(json.loads(json.dumps(matrix.to_dict(), allow_nan=False)))
    assert back.to_dict() == matrix.to_dict()
    assert repr(matrix).startswith("alignment 3×3 exact")
    diagonal = ntk.diagonal()
    assert ArrayEstimate.from_dict(diagonal.to_dict()).to_dict() == diagonal.to_dict()
