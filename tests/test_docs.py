"""The pages are whole: all sections are named, all public classes shown, and no role is left raw."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import ntkscope
from ntkscope import estimators, plots
from ntkscope.ways.plan import Plan

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_overview_names_all_sections() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1]
    overview = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = re.findall(r"- ([^:\n]+): (\S+\.md)", navigation)
    assert len(pages) >= 10
    for title, page in pages:
        assert page == "index.md" or f"[{title}]({page})" in overview or f"[The {title}]({page})" in overview


def _classes(value: Any) -> Iterator[type]:
    """The package's own classes in an annotation."""
    if inspect.isclass(value) and value.__module__.startswith("ntkscope"):
        yield value
    for part in get_args(value):
        yield from _classes(part)


def _returned() -> set[type]:
    """Public classes, and all that public functions and methods return."""
    public = [getattr(ntkscope, name) for name in ntkscope.__all__ if not name.startswith("_")]
    public += [getattr(module, name) for module in (estimators, plots) for name in module.__all__]
    public.append(Plan)
    found = {value for value in public if inspect.isclass(value)}
    members = [member for cls in found for name, member in vars(cls).items() if not name.startswith("_")]
    for function in filter(inspect.isfunction, [*public, *members]):
        # Names that only type checkers import are left out: they are other packages'.
        try:
            found.update(_classes(inspect.signature(function, eval_str=True).return_annotation))
        except NameError:
            continue
    return found


def test_every_public_class_is_in_the_reference() -> None:
    shown = set(re.findall(r"^::: ntkscope\.(?:\w+\.)*(\w+)$", REFERENCE, re.MULTILINE))
    wanted = {cls.__name__ for cls in _returned()} | {"Prediction", "StateError"}
    assert {"NTK", "Estimate", "Plan", "LinearMap", "Options"} <= wanted
    assert wanted <= shown


def test_every_role_is_one_that_the_pages_turn_into_a_link() -> None:
    script = (ROOT / "scripts" / "griffe_reference.py").read_text(encoding="utf-8")
    (pattern,) = re.findall(r'_ROLE = re\.compile\(r"(.+)"\)', script)
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        roles = re.findall(r":\w+:`[^`]*`", text)
        assert [role for role in roles if not re.fullmatch(pattern, role)] == [], path


@pytest.mark.slow
def test_the_pages_build_without_raw_roles_or_names_of_constants(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    for page in tmp_path.glob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r":(meth|class|func|attr|data|mod):", html), page.name
        # No page asks for anything that is not beside it.
        assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']https?://""", html), page.name
    reference = re.sub(r"<[^>]+>", "", (tmp_path / "reference.html").read_text(encoding="utf-8"))
    assert not re.search(r"= ?(DEFAULT_\w+|STANDARD|DOUBLE_EPSILON)\b", reference)
    assert "rtol: float = 0.01" in reference
    assert (tmp_path / "javascripts" / "tex-svg.js").stat().st_size > 1_000_000
    assert 'class="arithmatex"' in (tmp_path / "concepts.html").read_text(encoding="utf-8")
