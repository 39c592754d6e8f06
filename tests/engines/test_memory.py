"""An exact trace stays within its memory budget, where one pass for all would take ten times as much.

Measured from outside, in a process of its own: the largest resident set since a reset, with a
memory allocator that gives everything back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, json, sys, torch, ntkscope
from torch import nn

MODELS = {
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        ),
        (96, 3, 32, 32),
    ),
    "sequences": (
        lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).eval(),
        (8, 24, 32),
    ),
}

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def peak(work):
    gc.collect()
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    result = work()
    return status("VmHWM") - before, result

def at_once(jacobian):
    probes = torch.eye(jacobian.outputs).unsqueeze(1).expand(-1, jacobian.batch, -1)
    gradients = jacobian.linearize(range(jacobian.batch)).pull(probes)
    return float(sum(gradient.factor.squared_norms().sum() for gradient in gradients))

name, budget = sys.argv[1], int(sys.argv[2])
make, shape = MODELS[name]
torch.manual_seed(0)
model, x = make(), torch.randn(shape)
ntkscope.NTK(model, x[:2]).trace("exact")  # what torch loads at first use
ntk = ntkscope.NTK(model, x, memory=budget)
traced, _ = peak(ntk.engine.samples)
exact, trace = peak(lambda: ntk.trace("exact").value)
unchunked, expected = peak(lambda: at_once(ntk.engine.samples().jacobian))
print(json.dumps({"traced": traced, "exact": exact, "unchunked": unchunked,
                  "trace": trace, "expected": expected}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own count of memory")
@pytest.mark.parametrize("name", ["images", "sequences"])
def test_an_exact_trace_stays_within_its_budget(name: str, tmp_path: Path) -> None:
    budget = 16 << 20
    script = tmp_path / "peak.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), name, str(budget)]
    found = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert found["trace"] == pytest.approx(found["expected"], rel=1e-5)
    assert found["unchunked"] > 10 * budget
    assert found["exact"] < budget
    # Making a kernel takes a pass of the whole batch, and so may the look at its structure in float64.
    assert found["traced"] < found["unchunked"]
