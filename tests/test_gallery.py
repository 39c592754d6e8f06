"""Every model of the gallery, small and in float64: its exact numbers are those of autograd row by row."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.gallery import PATH, call, disturbed
from benchmarks.gallery_models import GALLERY, Model
from benchmarks.gallery_page import pages
from torch import Tensor, nn

from inside import refusal, structure
from ntkscope import NTK

ROOT = Path(__file__).parents[1]

#: Independent samples without structure, and what the refusal says.
REFUSED: dict[str, str] = {}
#: Parameters that take the general way.
GENERAL = {"fno": {"spectral.0.weight", "spectral.1.weight"}}


@pytest.fixture(autouse=True)
def packages_may_warn() -> Iterator[None]:
    """What the packages say of themselves is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=GALLERY)
def model(request: pytest.FixtureRequest) -> Model:
    entry = GALLERY[request.param]
    if missing := entry.missing():
        pytest.skip(f"{missing}; pip install 'ntkscope[gallery]'")
    return entry


def _rows(model: nn.Module, inputs: Any, options: dict[str, Any]) -> Tensor:
    """J by autograd, an output at a time."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = [
        torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for one in call(model, inputs, options).flatten()
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def test_exact_numbers_are_those_of_autograd(model: Model) -> None:
    module, inputs, options = model.build(small=True, dtype=torch.float64)
    ntk, rows = NTK(module, inputs, **options), _rows(module, inputs, options)
    kernel = rows @ rows.T
    # The same module later: an NTK is a snapshot.
    other = NTK(disturbed(module), inputs, **options)
    rows = _rows(module, inputs, options)
    kernel_2 = rows @ rows.T

    def near(value: Tensor) -> Any:
        return pytest.approx(float(value), rel=1e-8)

    norm, norm_2 = kernel.norm(), kernel_2.norm()
    assert ntk.trace("exact").value == near(kernel.trace())
    assert ntk.frobenius_norm("exact").value == near(norm)
    assert ntk.effective_rank("exact").value == near((kernel.trace() / norm) ** 2)
    assert ntk.alignment(other, method="exact").value == near((kernel * kernel_2).sum() / norm / norm_2)


def test_its_structure_is_found_or_the_refusal_says_why(model: Model) -> None:
    module, inputs, options = model.build(small=True, dtype=torch.float64)
    ntk = NTK(module, inputs, **options)
    if expected := model.coupled or REFUSED.get(model.key, ""):
        assert expected in refusal(ntk)
    else:
        assert set(structure(ntk).graph.general) == GENERAL.get(model.key, set())


def test_what_is_copied_makes_the_same_model(model: Model) -> None:
    names: dict[str, Any] = {"__name__": "copied"}
    text, use = model.snippet().split("\nmodel, inputs, options = ")
    assert "ntk = NTK(model, inputs, **options)" in use
    exec(compile(text, model.key, "exec"), names)
    torch.manual_seed(0)
    module, _, _ = names[model.key](**model.small)
    expected, _, _ = model.build(small=True)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        name: tuple(p.shape) for name, p in expected.named_parameters()
    }


def test_most_models_have_structure() -> None:
    independent = [key for key, model in GALLERY.items() if not model.coupled]
    assert len(GALLERY) >= 30
    # 28 of 30.
    assert len(independent) - len(REFUSED) >= 28 / 30 * len(independent) - 1


def test_snippets_are_python() -> None:
    for entry in GALLERY.values():
        ast.parse(entry.snippet())


def test_the_pages_say_what_was_measured() -> None:
    known = json.loads((ROOT / PATH).read_text(encoding="utf-8"))
    for name, text in pages(known).items():
        assert (ROOT / "docs" / "gallery" / name).read_text(encoding="utf-8") == text, (
            "run: python -m benchmarks.gallery --pages"
        )
