"""A thousand random models: no number is wrong without saying so, no error is not ours."""

from __future__ import annotations

import pytest

from fuzz.compare import judge
from fuzz.models import build, specify
from truth.reference import dense

CHUNK = 50


def test_a_seed_is_a_model() -> None:
    """The same seed gives the same model, inputs and Jacobian."""
    for seed in (0, 17, 40):
        first, second = (build(specify(seed)) for _ in range(2))
        left, right = (dense(subject.model, subject.call).jacobian for subject in (first, second))
        assert bool((left == right).all())


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(20))
def test_random_models(chunk: int) -> None:
    failures = []
    for seed in range(CHUNK * chunk, CHUNK * (chunk + 1)):
        verdict = judge(specify(seed))
        if verdict.failed:
            failures.append(f"PYTHONPATH=tests python -m fuzz.one {seed}  # {verdict.kind}: {verdict.detail}")
        if verdict.kind == "invalid":
            failures.append(f"seed {seed} is no model: {verdict.detail}")
    assert not failures, "\n".join(failures)
