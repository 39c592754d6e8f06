"""Samples on two and three processes: the numbers of one, whatever is asked, and errors for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from spread import METHODS, PROBES, SCENARIOS, ask, process

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)

#: What several processes refuse is asked of two of them.
EVERYWHERE = tuple(name for name in SCENARIOS if name not in ("errors", "traffic"))

Look = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """What a scenario has given on a process; all run in the same ones."""
    return _look(request.param, EVERYWHERE, tmp_path_factory)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Look:
    """The errors of two processes."""
    return _look(2, ("errors", "traffic"), tmp_path_factory)


def _look(world: int, names: tuple[str, ...], folders: pytest.TempPathFactory) -> Look:
    folder = folders.mktemp(f"spread{world}")
    multiprocessing.spawn(process, (world, str(folder), names), nprocs=world, join=True)  # type: ignore[no-untyped-call]

    def look(name: str, rank: int | None = None) -> dict[str, Any]:
        results = [json.loads(Path(folder, f"{name}.{r}.json").read_text()) for r in range(world)]
        for result in results:
            assert "failed" not in result, result["failed"]
        if rank is None:
            # Every process gets the same numbers, to the last bit.
            assert all(result == results[0] for result in results)
        return dict(results[rank or 0])

    return look


@pytest.fixture(scope="module")
def one() -> Callable[[str], dict[str, Any]]:
    """The same on this process alone."""
    known: dict[str, dict[str, Any]] = {}

    def look(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = ask(name)
            assert "failed" not in known[name], known[name]["failed"]
        return known[name]

    return look


@pytest.mark.parametrize("name", ["mlp", "recurrent", "convolution", "words"])
def test_every_metric_by_every_method_is_that_of_one_process(
    found: Look, one: Callable[[str], Any], name: str
) -> None:
    assert len(one(name)) == 4 * len(METHODS)
    assert found(name) == pytest.approx(one(name), rel=1e-5)


@pytest.mark.parametrize("name", ["traces", "tolerances", "hooks", "others"])
def test_runs_that_decide_are_those_of_one_process(found: Look, one: Callable[[str], Any], name: str) -> None:
    assert found(name) == pytest.approx(one(name), rel=1e-5)


def test_all_other_verbs(found: Look, one: Callable[[str], Any]) -> None:
    ours, theirs = one("verbs"), found("verbs")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, dict):
            assert theirs[key] == pytest.approx(value, rel=1e-5), key
        else:
            np.testing.assert_allclose(theirs[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_time_is_that_of_the_first_process(found: Look) -> None:
    assert found("out_of_time")["note"] == "the time budget ended it"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parameters", "the parameters of process 1 are not those of process 0"),
        ("lengths", "the structures of process 1 are not those of process 0"),
        ("coupled", "those of process 0 are not"),
        ("not finite", "NaN or infinite"),
        ("loss", "leave loss= out"),
        ("stream", "give each one batch"),
        ("matrix", "is compared with another such kernel"),
        ("alone", "one is of samples on several processes and one is not"),
        ("inputs", "on process 1, "),
        ("samples", "keep other axes"),
        ("norms", "split the trace"),
        ("vector", "since n=18"),
    ],
)
def test_what_is_refused_is_refused_on_every_process(refused: Look, name: str, words: str) -> None:
    for rank in (0, 1):
        assert words in refused("errors", rank)[name], (rank, name)


def test_groups_are_named_by_their_own_names(refused: Look) -> None:
    assert "'world'" in refused("errors", 0)["group"]


def test_what_moves_is_what_the_docs_say(refused: Look) -> None:
    world, batch, layers, number = 2, 6, [(6, 9), (9, 8), (8, 3)], 4
    found = refused("traffic", 0)
    parameters = sum((i + 1) * o for i, o in layers)
    assert found["vjps"] == 2 * (world - 1) / world * number * 5 * parameters
    deltas = sum(PROBES * o / world for _, o in layers)
    features = sum(i + 1 for i, _ in layers)
    factors = (world - 1) * number * batch * (deltas + features)
    # All pairs of 12 samples.
    pairs = 2 * (world - 1) / world * number * (world * batch * PROBES) ** 2
    assert found["gram"] == pytest.approx(factors + pairs, rel=0.1)
