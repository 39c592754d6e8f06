"""Misses of rtol=0.01 by every method of models' kernels, where a few samples or outputs make the kernel.

    python -m benchmarks.heavy_models --seeds 400

Models whose inputs have log-normal norms, one input 60 times as large as the others, two dominant
outputs, three active samples of 20,000. Rows are merged into the JSON file by model, metric and method.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.timing import machine
from ntkscope import NTK
from ntkscope.measure import METHODS

FILE = Path("results/estimators/heavy_models.json")
RTOL = 0.01
# What is not met by then has converged=False and is no miss.
MOST = 600
SINGLES = ("trace", "frobenius_norm", "effective_rank")


def _network(outputs=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs)).double()


def _log_normal():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, generator=generator, dtype=torch.double)
    return _network(), x * torch.exp(1.5 * torch.randn(60, 1, generator=generator, dtype=torch.double)), {}


def _outlier():
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    x[17] *= 60
    torch.manual_seed(0)
    # Without a bend, which would make the large input no larger than the others.
    return nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 10)).double(), x, {}


def _two_outputs():
    model = _network()
    scale = torch.ones(10, dtype=torch.double)
    scale[3] = scale[7] = 30
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    return model, x, {"outputs": lambda y: y * scale}


def _three_active():
    x = torch.zeros(20_000, 10, dtype=torch.double)
    x[0, 0] = x[37, 1] = x[74, 2] = 1
    torch.manual_seed(0)
    return nn.Linear(10, 1, bias=False).double(), x, {}


MODELS = {
    "log-normal": _log_normal,
    "outlier": _outlier,
    "two outputs": _two_outputs,
    "three active": _three_active,
}


def pair(name):
    """The kernel of a model, and that of the model with its weights moved by a third of their size."""
    model, x, options = MODELS[name]()
    first = NTK(model, x, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(9), dtype=parameter.dtype
            )
            parameter.add_(0.33 * parameter.std(correction=0) * noise)
    return first, NTK(model, x, **options)


def misses(name, metric, method, seeds, kernels=None):
    """Runs to rtol: how many miss by more than 2 and 5 of it, and how many of the 95% intervals cover."""
    first, second = kernels or pair(name)
    others = [second] if metric == "alignment" else []
    call = getattr(first, metric)
    right = call(*others, method="exact").value
    runs = [call(*others, method=method, rtol=RTOL, seed=s, max_products=MOST) for s in range(seeds)]
    error = np.array([abs(run.value / right - 1) for run in runs])
    met = np.array([run.converged is not False for run in runs])
    bars = [(run.interval(), run.value) for run in runs if run.stderr]
    covered = [low - 1e-9 * right <= right <= high + 1e-9 * right for (low, high), _ in bars]
    return {
        "model": name,
        "metric": metric,
        "method": method,
        "seeds": seeds,
        "over2": float(np.mean(met & (error > 2 * RTOL))),
        "over5": int(np.sum(met & (error > 5 * RTOL))),
        "worst": float(np.max(error, where=met, initial=0)),
        "covered": float(np.mean(covered)) if covered else None,
        "spent": float(np.median([max(run.cost.vjps, run.cost.jvps) for run in runs])),
        "exact": float(np.mean([run.stderr == 0 for run in runs])),
        "unconverged": float(np.mean(~met)),
    }


def cases(metrics=(*SINGLES, "alignment")):
    """(metric, method) of everything that estimates."""
    return [(metric, method) for metric in metrics for method in METHODS[metric] if method != "exact"]


def merge(rows):
    """Put rows into the JSON file, in place of those of the same case."""
    keys = ("model", "metric", "method")
    known = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    fresh = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in known if tuple(row[key] for key in keys) not in fresh]
    ordered = sorted(kept + rows, key=lambda row: tuple(row[key] for key in keys))
    lines = ",\n".join(json.dumps(row) for row in ordered)
    FILE.write_text(f'{{"machine": {json.dumps(machine())},\n"rows": [\n{lines}\n]}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    warnings.simplefilter("error")
    for name in options.models:
        kernels = pair(name)
        for metric, method in cases():
            if options.methods and method not in options.methods:
                continue
            row = misses(name, metric, method, options.seeds, kernels)
            if not options.dry:
                merge([row])
            print(*(f"{v:.3g}" if isinstance(v, float) else v for v in row.values()), flush=True)


if __name__ == "__main__":
    main()
