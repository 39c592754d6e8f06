"""What processes with copies of a model and samples of their own measure; each hands back what it found."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ntkscope import NTK

__all__ = ["METHODS", "PROBES", "SCENARIOS", "ask", "process"]

#: Probes of every sample in the run whose bytes are counted.
PROBES = 4

METHODS: dict[str, dict[str, Any]] = {
    "exact": {},
    "per-sample": {"products": 8},
    "sketch": {"products": 24},
    "gram": {"products": 20},
    "nystrom": {"products": 24},
    "hutch++": {"products": 24},
}


class Recurrent(nn.Module):
    """States along the time, samples along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


def mlp(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Layers of weights and biases."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def recurrent(seed: int) -> nn.Module:
    """A GRU."""
    torch.manual_seed(seed)
    return Recurrent()


def convolution(seed: int) -> nn.Module:
    """Shared weights, whose gradients are sums over positions."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, groups=1), nn.Flatten(), nn.Linear(12, 2)
    )


def _filter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv1d(1, 2, 1)


def words(seed: int) -> nn.Module:
    """A table that is tied to the head, and many parameters."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(5) for layer in (nn.Linear(5, 5), nn.LayerNorm(5), nn.GELU())]
    model = nn.Sequential(nn.Embedding(11, 5), *layers, nn.Linear(5, 11, bias=False))
    model[-1].weight = model[0].weight
    return model


def batch(*shape: int, seed: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def share(x: Tensor, rank: int, axis: int = 0) -> Tensor:
    """Those of one process; uneven."""
    if dist.is_initialized():
        return x.tensor_split(dist.get_world_size(), dim=axis)[rank]
    return x


def group() -> str | None:
    """All processes, or nobody."""
    return "world" if dist.is_initialized() else None


def _pair(name: str, rank: int) -> tuple[NTK, NTK]:
    makes: dict[str, tuple[Callable[[int], nn.Module], Tensor, int]] = {
        "mlp": (mlp, batch(11, 6), 0),
        "recurrent": (recurrent, batch(4, 7, 4), 1),
        "convolution": (convolution, batch(7, 1, 6, 6), 0),
        "words": (words, torch.arange(21).reshape(7, 3) % 11, 0),
    }
    make, x, axis = makes[name]
    first = NTK(make(0), share(x, rank, axis), batch_dim=axis, group=group())
    return first, first.at(make(1))


def _metrics(name: str) -> Callable[[int], dict[str, float]]:
    def found(rank: int) -> dict[str, float]:
        first, second = _pair(name, rank)
        values: dict[str, float] = {}
        for method, budget in METHODS.items():
            m = first.measure([second], method=method, **budget)  # type: ignore[arg-type]
            values |= {f"{method} {key}": estimate.value for key, estimate in m.rows()}
        return values

    return found


def traces(rank: int) -> dict[str, float]:
    """The trace by every method that is for it alone."""
    first, _ = _pair("mlp", rank)
    methods = ("hutchinson", "per-sample", "per-sample-forward", "rhutch", "fhutch", "xtrace")
    return {name: first.trace(name, products=10).value for name in methods}  # type: ignore[arg-type]


def tolerances(rank: int) -> dict[str, float]:
    """Runs that grow until they are good enough, or out of time, alike on all processes."""
    first, second = _pair("recurrent", rank)
    seen: list[float] = []

    def progress(estimate: Any, spent: int, limit: int | None) -> None:
        seen.append(estimate.value)

    # Processes look at their clocks at other times, and one of them shows its progress.
    time.sleep(0.02 * rank)
    return {
        "trace": first.trace("sketch", rtol=0.05).value,
        "alignment": first.alignment(second, "gram", rtol=0.3, seconds=60).value,
        "gram": first.frobenius_norm("per-sample", products=6, progress=None if rank else progress).value,
        "seen": float(len(seen) > 0 or rank > 0),
    }


def out_of_time(rank: int) -> dict[str, Any]:
    """Nobody goes on when the first process's time is over."""
    first, _ = _pair("mlp", rank)
    estimate = first.trace("hutchinson", rtol=1e-9, seconds=1e-6 if rank == 0 else 60)
    return {"cost": estimate.cost.products, "note": estimate.note}


def verbs(rank: int) -> dict[str, Any]:
    """What else there is to ask of a kernel."""
    first, second = _pair("recurrent", rank)
    v = torch.linspace(-1, 1, first.n)
    return {
        "shape": [*first.shape, *first.output_shape],
        "state": first.state.reshape(-1).tolist(),
        "matvec": (first @ v).tolist(),
        "vjp": first.vjp(v)[:9].tolist(),
        "jvp": first.jvp(np.ones(first.n_params, dtype=np.float32)).tolist(),
        "dense": np.asarray(first.to_dense()).reshape(-1).tolist(),
        "fingerprint": first.fingerprint().alignment(second.fingerprint()).value,
        "layers": [first.fingerprint(by="layer")[layer].frobenius_norm().value for layer in ("cell", "head")],
        "eigenvalues": first.eigenpairs(3).values.tolist(),
        "log_det": first.log_det(1.0).value,
        "moments": [estimate.value for estimate in first.moments(3)],
        "split": {key: estimate.value for key, estimate in first.split("trace", by="layer").items()},
        "diagonal": np.asarray(first.diagonal().values).reshape(-1).tolist(),
        "units": np.asarray(
            first.partial_trace(keep=("unit",), names=("time", "batch", "unit")).values
        ).tolist(),
        "targets": first.target_alignment(first.state).value,
        "centred": first.alignment(second, centered=True, products=30).value,
        "population": first.effective_rank(population=True, products=8).value,
    }


def hooks(rank: int) -> dict[str, float]:
    """A plain model by hooks."""
    x = batch(7, 6, dtype=torch.float64)
    ntk = NTK(mlp(0, torch.float64), share(x, rank), engine="hooks", group=group())
    return {key: e.value for key, e in ntk.measure(method="per-sample", products=6).rows()}


def traffic(rank: int) -> dict[str, float]:
    """Bytes that come here for a norm from a few probes, and for products."""
    ntk = NTK(mlp(0), share(batch(12, 6), rank), group=group())
    exchange = ntk.engine._exchange  # type: ignore[attr-defined]
    before = exchange.received
    ntk.frobenius_norm("per-sample", products=PROBES)
    between = exchange.received
    ntk.vjp(np.ones((ntk.n, 5), dtype=np.float32))
    return {"gram": between - before, "vjps": exchange.received - between}


def others(rank: int) -> dict[str, float]:
    """Another batch of the same model."""
    first, _ = _pair("mlp", rank)
    other = first.engine.on(share(batch(5, 6, seed=3), rank))
    return {"trace": float(other.samples().exact_squares(lambda done, total: None).sum())}  # type: ignore[union-attr]


def _error(work: Callable[[], Any]) -> str:
    try:
        work()
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def errors(rank: int) -> dict[str, str]:
    """What cannot be measured so, and says why on every process."""
    x = share(batch(6, 6), rank)
    first = NTK(mlp(0), x, group=group())
    coupled = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    return {
        "parameters": _error(lambda: NTK(mlp(rank), x, group=group())),
        "lengths": _error(lambda: NTK(_filter(), torch.ones(2, 1, 3 + rank), group=group())),
        "coupled": _error(lambda: NTK(coupled, x, group=group())),
        "not finite": _error(lambda: NTK(mlp(0), x / (1 - rank), group=group())),
        "loss": _error(lambda: NTK(mlp(0), x, loss="mse", group=group())),
        "stream": _error(lambda: NTK(mlp(0), DataLoader(TensorDataset(x)), group=group())),
        "matrix": _error(lambda: first.alignment(torch.eye(first.n))),
        "alone": _error(lambda: first.alignment(NTK(mlp(0), batch(6, 6)))),
        "inputs": _error(lambda: first.alignment(NTK(mlp(0), x + rank, group=group()))),
        "samples": _error(lambda: first.partial_trace(keep="batch")),
        "norms": _error(lambda: first.split("frobenius_norm", by="layer")),
        "vector": _error(lambda: first @ torch.ones(3)),
        "group": _error(lambda: NTK(mlp(0), x, group="all")),
    }


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {
    **{name: _metrics(name) for name in ("mlp", "recurrent", "convolution", "words")},
    **{f.__name__: f for f in (traces, tolerances, out_of_time, verbs, hooks, others, errors, traffic)},
}


def ask(name: str, rank: int = 0) -> dict[str, Any]:
    """What a scenario gives here, as it is read from a file."""
    try:
        found: Mapping[str, Any] = SCENARIOS[name](rank)
    except Exception:
        found = {"failed": traceback.format_exc()}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def process(rank: int, world: int, folder: str, names: tuple[str, ...]) -> None:
    """One process: all scenarios one after the other; what they give goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for name in names:
        Path(folder, f"{name}.{rank}.json").write_text(json.dumps(ask(name, rank)))
    dist.destroy_process_group()
