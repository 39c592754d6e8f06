"""Many seeds of the fuzzer, and what came of them: ``PYTHONPATH=tests python -m fuzz.sweep 0 1000``."""

from __future__ import annotations

import sys
from collections import Counter

from fuzz.compare import judge, shrink
from fuzz.machine import steady
from fuzz.models import specify


def main(start: int, stop: int) -> int:
    """Prints every failure in its simplest form, refusals by reason, and counts; returns the failures."""
    steady()
    kinds: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for seed in range(start, stop):
        spec = specify(seed)
        verdict = judge(spec)
        kinds[verdict.kind] += 1
        refusals.update(verdict.refusals)
        if verdict.failed:
            simplest, found = shrink(spec, verdict)
            failures[f"{found.kind}: {simplest}"] += 1
            print(f"python -m fuzz.one {seed}  # {found.kind}: {simplest}: {found.detail}", flush=True)
        elif verdict.kind == "invalid":
            print(f"seed {seed} is no model: {spec}: {verdict.detail}", flush=True)
    for title, counts in (("refused", refusals), ("failed", failures)):
        print(f"\n{title}:", *(f"  {count:5} {line}" for line, count in counts.most_common()), sep="\n")
    print(f"\n{stop - start} models:", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return sum(failures.values())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])) > 0)
