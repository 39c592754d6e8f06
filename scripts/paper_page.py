"""Writes docs/paper.md and its pictures, and the table in README.md, from results/paper.

    python scripts/paper_page.py

In README.md the table stands between ``<!-- paper -->`` and ``<!-- end -->``, if they are there.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ntkscope.apps.paper.page import page, readme_table
from ntkscope.apps.paper.store import Results, Store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "paper"
PAGE = ROOT / "docs" / "paper.md"
IMAGES = ROOT / "docs" / "images" / "paper"
README = ROOT / "README.md"
PICTURES = ("fig1.png", "fig2.png", "fig3.png", "fig4.png")


def with_table(text: str, results: Results) -> str:
    """The README with the table of these results."""
    place = re.compile(r"(<!-- paper -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda match: f"{match[1]}\n{readme_table(results)}\n{match[2]}", text)


def main() -> None:
    results = Store(RESULTS).read()
    PAGE.write_text(page(results), encoding="utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        shutil.copyfile(RESULTS / name, IMAGES / name)
    README.write_text(with_table(README.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
