"""MathJax beside the pages, so that formulas are drawn without a network."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCRIPT = Path("static/mathjax/es5/tex-svg.js")


def on_post_build(config: Any) -> None:
    """Copies it out of the package that brings it."""
    spec = find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise RuntimeError("MathJax is not installed; run: make docs, or pip install django-static-mathjax")
    target = Path(config["site_dir"]) / "javascripts" / SCRIPT.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(spec.origin).parent / SCRIPT, target)
