"""Makes the tutorials' notebooks from their pages, runs them, and takes the pages' pictures from them.

``python scripts/tutorials.py`` needs nbclient and ipykernel, which the extra ``dev`` brings.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted((DOCS / "tutorials").glob("*.md"))
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
#: What only a page has: its picture, which the notebook draws, and the link to the notebook.
_ONLY_PAGE = re.compile(r"^(?:!\[.*\]\(.*\)|\*The same as a \[notebook\].*)\n\n?", re.MULTILINE)


def cells(page: str) -> list[tuple[str, str]]:
    """Kinds and texts of the cells that a page is made of."""
    found = []
    for index, text in enumerate(_BLOCK.split(page)):
        kind = "code" if index % 2 else "markdown"
        plain = text if index % 2 else _ONLY_PAGE.sub("", text)
        if plain.strip():
            found.append((kind, plain.strip()))
    return found


def script(page: str) -> str:
    """All of its code."""
    return "\n\n".join(text for kind, text in cells(page) if kind == "code") + "\n"


def notebook(page: str) -> dict[str, Any]:
    """The page as a notebook, not run yet; the same text every time."""
    made = []
    for index, (kind, text) in enumerate(cells(page)):
        cell = {"cell_type": kind, "id": f"cell-{index}", "metadata": {}, "source": text}
        made.append(cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def run(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with what its cells printed and drew; files that it writes go to the folder."""
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.from_dict(made)
    nbformat.validate(node)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        node, timeout=600, kernel_name="python3", resources=resources, record_timing=False
    ).execute()
    # Which Python it was is of no use to a reader.
    node.metadata["language_info"] = {"name": "python"}
    return node


def main() -> None:
    for page in PAGES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            node = run(notebook(page.read_text(encoding="utf-8")), folder)
            text = json.dumps(node, indent=1, ensure_ascii=False) + "\n"
            page.with_suffix(".ipynb").write_text(text, encoding="utf-8")
            for picture in folder.glob("*.png"):
                shutil.copyfile(picture, DOCS / "images" / picture.name)
        print(page.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
