"""One seed of the fuzzer: ``PYTHONPATH=tests python -m fuzz.one SEED``."""

from __future__ import annotations

import sys

from fuzz.compare import judge, shrink
from fuzz.machine import steady
from fuzz.models import specify


def main(seed: int) -> bool:
    """Prints what comes of a seed, and of its simplest form if it fails."""
    steady()
    spec = specify(seed)
    verdict = judge(spec)
    print(spec, f"{verdict.kind}: {verdict.detail}", *verdict.refusals, sep="\n  ")
    if verdict.failed:
        spec, verdict = shrink(spec, verdict)
        print("in its simplest form:", spec, f"{verdict.kind}: {verdict.detail}", sep="\n  ")
    return verdict.failed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
