"""Writes the README's table of speed from results/speed.json, between its two markers.

python scripts/benchmark_table.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "speed.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
PASS = "forward and backward"


def seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def ratio(over: tuple[float, float, float]) -> str:
    median, low, high = over
    return f"{median:.3g} ({low:.3g}–{high:.3g})"


def row(title: str, section: dict[str, Any]) -> str:
    times = {timed["name"]: timed for timed in section["times"]}
    ours = times[section["baseline"]]
    one = times.get(PASS)
    passes = f"{ours['median'] / one['median']:.3g}" if one else ""
    others = [
        f"{name}: {ratio(timed['ratio'])}"
        for name, timed in times.items()
        if name not in (PASS, ours["name"]) and "ours" not in name and not name.startswith("trace(")
    ]
    way = ours["name"].removesuffix(" (ours)").replace(", 1 probes", ", 1 probe")
    return f"| {title} | {way}: {seconds(ours['median'])} | {passes} | {'<br>'.join(others)} |"


def table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    repeats = {section["repeats"] for section in results["sections"].values()}
    lines = [
        "| what | ours | in forward and backward passes | others: times slower, median (quartiles) |",
        "| --- | --- | --- | --- |",
        *(row(title, section) for title, section in results["sections"].items()),
        "",
        f"Measured in turn, {min(repeats)} rounds, {machine['threads']} threads of {machine['processor']}, "
        f"float32; {versions}. A method to a tolerance has the smallest budget whose median error is "
        "within it. `python -m benchmarks` measures it again.",
    ]
    return "\n".join(lines)


def page(text: str, results: dict[str, Any]) -> str:
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1] if END in rest else "\n" + rest.lstrip("\n")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    made = page(text, results)
    if "--check" in sys.argv[1:]:
        sys.exit(made != text)
    README.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
