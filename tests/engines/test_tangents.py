"""Forward products sample by sample: exact with the parameters' own directions, unbiased with signs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.samples.tangents import SampleTangents
from zoo import BY_NAME, INDEPENDENT, Case, each, paper_gru

# torch's forward mode does not see the padding; the others have no forward mode.
NO_FORWARD = {"embedding-padding"}


def _identity(tangents: SampleTangents, batch: int) -> Tensor:
    everything = torch.eye(tangents.size, dtype=torch.float64)
    return tangents.squared_norms(
        tangents.size,
        lambda probes, samples: everything[probes.start : probes.stop, None].expand(-1, len(samples), -1),
    ).sum(0)


@each([case for case in INDEPENDENT if case.name not in NO_FORWARD])
def test_every_parameters_direction_gives_the_squared_norm(case: Case) -> None:
    jacobian = case.shared().engine.samples().jacobian
    found = _identity(SampleTangents(jacobian), jacobian.batch)
    torch.testing.assert_close(found, jacobian.frobenius_squared(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_signs_are_unbiased_and_their_spread_is_told(name: str) -> None:
    case = BY_NAME[name]
    found = [case.shared().trace("per-sample-forward", products=8, seed=seed) for seed in range(60)]
    values = torch.tensor([estimate.value for estimate in found], dtype=torch.float64)
    z = (values.mean() - case.dense().trace) / (values.std() / len(values) ** 0.5)
    assert abs(float(z)) < 4
    told = sum((estimate.stderr or 0.0) ** 2 for estimate in found) / len(found)
    assert told**0.5 == pytest.approx(float(values.std()), rel=0.35)
    assert found[0].cost.jvps == 8


def test_the_numbers_do_not_depend_on_the_memory() -> None:
    model, x = paper_gru()
    options = {"outputs": lambda y: y[0], "batch_dim": 1}
    values = [
        NTK(model, x, memory=budget, **options).trace("per-sample-forward", products=2).value
        for budget in (1 << 30, 1 << 22)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


class PaddedWords(nn.Module):
    """Torch's forward mode moves the padding's row; few samples have it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(30, 4, padding_idx=0), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens)).sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_forward_mode_is_found_in_one_sample_of_many(seed: int, dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokens = PaddedWords().to(dtype), torch.randint(1, 30, (400, 8))
    tokens[37 * seed, 2] = 0
    with pytest.raises(ValueError, match="not the transpose"):
        NTK(model, tokens).trace("per-sample-forward", products=2)


@pytest.mark.parametrize("name", sorted(NO_FORWARD))
def test_a_wrong_forward_mode_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"'per-sample-forward' does not apply: .*; use 'per-sample'"):
        BY_NAME[name].shared().trace("per-sample-forward", products=2)
