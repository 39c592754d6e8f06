"""Models in shards on two processes: the numbers of one process, the bytes that move, and errors for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from gpt import LENGTH, WIDTH, WORDS, make, tokens
from ntkscope import NTK
from sharded import COUNTS, PROBES, SCENARIOS, layers, measured, process

pytestmark = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
    ),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of this torch needs a GPU"
    ),
]

WORLD = len(COUNTS)
BLOCKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a scenario has given on a process; all run in the same two."""
    folder = tmp_path_factory.mktemp("sharded")
    multiprocessing.spawn(process, (WORLD, str(folder), tuple(SCENARIOS)), nprocs=WORLD, join=True)  # type: ignore[no-untyped-call]

    def look(name: str, rank: int = 0) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(Path(folder, f"{name}.{rank}.json").read_text())
        assert "failed" not in result, result["failed"]
        return result

    return look


@pytest.fixture(scope="module")
def one() -> dict[str, float]:
    """The same numbers on one process by tracing, in float64."""
    return measured(*(NTK(make(seed), tokens(8)) for seed in (0, 1)))


def test_all_metrics_are_those_of_one_process(found: Callable[..., Any], one: dict[str, float]) -> None:
    for rank in range(WORLD):
        assert found("metrics", rank) == pytest.approx(one, rel=1e-4)
    assert found("metrics", 0) == found("metrics", 1)


def test_parts_are_those_of_one_process(found: Callable[..., Any]) -> None:
    assert found("splits") == pytest.approx(layers(NTK(make(0, layers=1), tokens(8))), rel=1e-4, abs=1e-9)
    assert found("splits", 0) == found("splits", 1)


def test_layers_spread_over_processes(found: Callable[..., Any]) -> None:
    ntk = NTK(make(0, layers=1), tokens(8))
    assert found("tensor_parallel") == pytest.approx(measured(ntk, ntk), rel=1e-9)


def test_copies_beside_shards(found: Callable[..., Any]) -> None:
    ntk = NTK(make(0, layers=1), tokens(8))
    assert found("copies") == pytest.approx(measured(ntk, ntk), rel=1e-9)


def test_low_precision_is_close(found: Callable[..., Any]) -> None:
    ntk = NTK(make(0, layers=1), tokens(8))
    assert found("low_precision") == pytest.approx(measured(ntk, ntk), rel=0.05)


def test_gradients_of_training_are_left_alone(found: Callable[..., Any]) -> None:
    assert found("accumulation") == {"same": True}


def test_a_kernel_is_a_snapshot(found: Callable[..., Any]) -> None:
    values = found("snapshot")
    assert values["before"] == values["after"]
    assert values["moved"] == 0
    assert values["trained"] > 2 * values["before"]


def test_a_refusal_reaches_every_process(found: Callable[..., Any]) -> None:
    for words in found("refusal").values():
        assert "all uses of the parameter 'layer.weight' of the module 'layer'" in words


def test_what_one_process_refuses_all_do(found: Callable[..., Any]) -> None:
    assert "process 1 of 2 has failed: ValueError: the state has" in found("not_finite", 0)["error"]
    assert "NaN or infinite" in found("not_finite", 1)["error"]


def test_samples_of_other_shapes_are_refused(found: Callable[..., Any]) -> None:
    for rank in range(WORLD):
        assert "different shapes" in found("shapes", rank)["error"]


def test_what_is_said(found: Callable[..., Any]) -> None:
    said = found("text", 1)
    # Else they would wait for each other.
    assert said["plan"] == found("text", 0)["plan"]
    assert f"state 8×{WORDS}" in said["repr"]
    assert "on 2 processes with 3 samples here" in said["samples"]


# Bytes.


def _linear(inputs: int, outputs: int, positions: int) -> int:
    """Numbers of one sample that a layer with a bias sends: δ of all probes and a, or G where it is less."""
    return min(positions * (PROBES * outputs + inputs + 1), PROBES * outputs * (inputs + 1))


def expected_bytes() -> tuple[float, float]:
    """What a process gets in the mean: factors and inner products, and shards, as docs/scale.md has it."""
    norm = 2 * PROBES * WIDTH
    block = (
        _linear(WIDTH, 3 * WIDTH, LENGTH)
        + _linear(WIDTH, WIDTH, LENGTH)
        + _linear(WIDTH, 4 * WIDTH, LENGTH)
        + _linear(4 * WIDTH, WIDTH, LENGTH)
        + 2 * norm
    )
    # An index has 8 bytes, as two numbers; the head's weight is the table of words: a factor of two parts.
    tables = min(LENGTH * (PROBES * WIDTH + 2), PROBES * WIDTH * WORDS) + min(
        LENGTH * (PROBES * WORDS + WIDTH), PROBES * WIDTH * WORDS
    )
    places = min(LENGTH * (PROBES * WIDTH + 2), PROBES * WIDTH * LENGTH)
    shared = (WORLD - 1) / WORLD
    factors = 4 * max(COUNTS) * (BLOCKS * block + tables + places + norm)
    products = 2 * 8 * (sum(COUNTS) * PROBES) ** 2
    parameters = sum(p.numel() for p in make(0).parameters())
    return shared * (factors + products), shared * 3 * 4 * parameters


def test_bytes_that_move_are_those_of_the_formula(found: Callable[..., Any]) -> None:
    ours, shards = expected_bytes()
    traffic = [found("traffic", rank) for rank in range(WORLD)]
    said, seen = (sum(one[name] for one in traffic) / WORLD for name in ("said", "seen"))
    assert said == pytest.approx(ours, rel=0.1)
    assert seen == pytest.approx(ours + shards, rel=0.1)
