"""The gallery's pages, from its models and from what was measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gallery_models import GALLERY, Model

__all__ = ["FAMILIES", "pages", "write_pages"]

FOLDER = Path("docs/gallery")
_METRICS = ("trace, first call", "trace", "norm", "effective rank", "alignment", "all four")

#: Title and first sentence of each page.
FAMILIES = {
    "vision": ("Images", "Networks of images from timm, and the denoisers of diffusion models."),
    "language": ("Text and speech", "Language models of transformers, and what peft makes of them."),
    "recurrent": ("Sequences", "Recurrences and convolutions over time, in plain torch."),
    "graphs": ("Graphs", "Message passing in plain torch."),
    "science": ("Science", "Operators, equations, generative models and spikes, in plain torch."),
    "derived": (
        "Weights and training",
        "Weights that follow from parameters, tables, routing, batch norm.",
    ),
}

_HEAD = """# Gallery

Models as their libraries write them. Each has the lines to copy, what was found of its structure, what
the numbers cost, and what it is apt to go wrong by. Parameters and inputs are random; nothing is
downloaded. `pip install 'ntkscope[gallery]'` brings timm, transformers, peft and diffusers.

Costs are in passes: forward and backward passes of the same model on the same batch. *First* makes the
kernel and measures its trace to 1%; *trace* is the same again with another seed; *four* is the trace,
the norm, the effective rank and the alignment with a second checkpoint, to 3% each. *Memory* is the peak
of the first call over the peak of one pass, both with the model's parameters. ∗ marks what did not reach
its tolerance in the time given, {seconds} seconds or less.

Every model stands in `tests/test_gallery.py` at a small size in float64, where all exact numbers are
those of autograd, row by row, to 1e-8. `python -m benchmarks.gallery` measures them anew.
"""


def pages(known: dict[str, Any]) -> dict[str, str]:
    """Text by file name.

    Args:
        known: What ``python -m benchmarks.gallery`` has written: models by key, the machine, and notes on
            models that were measured in another way.
    """
    measured = known["models"]
    found = {f"{family}.md": _page(family, measured, known.get("notes", {})) for family in FAMILIES}
    lines = ["| model | page | parameters | state | structure | first | trace | four | memory |"]
    lines.append("| --- | --- | --: | --: | --- | --: | --: | --: | --: |")
    order = list(FAMILIES)
    for key, model in sorted(GALLERY.items(), key=lambda pair: order.index(pair[1].family)):
        title = FAMILIES[model.family][0]
        row = [f"[{model.name}]({model.family}.md#{_anchor(model.name)})", title]
        lines.append(_row([*row, *_numbers(measured.get(key))]))
    note = (
        f"\nProcessor time of one thread, torch {known['machine']['versions']['torch']}.\n"
        if measured
        else ""
    )
    # A paragraph is a line.
    head = [" ".join(paragraph.split()) for paragraph in _HEAD.format(seconds=60).split("\n\n")]
    found["index.md"] = "\n\n".join([*head, "\n".join(lines)]) + "\n" + note
    return found


def write_pages(known: dict[str, Any]) -> None:
    """Puts the pages where they belong."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages(known).items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def _page(family: str, measured: dict[str, Any], notes: dict[str, str]) -> str:
    title, first = FAMILIES[family]
    models = [(key, model) for key, model in GALLERY.items() if model.family == family]
    return f"# {title}\n\n{first} [All models](index.md).\n" + "".join(
        _section(model, measured.get(key), notes.get(key, "Not measured yet.")) for key, model in models
    )


def _section(model: Model, found: dict[str, Any] | None, note: str) -> str:
    text = f"\n## {model.name}\n\n{model.trap}\n\n```python\n{model.snippet()}```\n"
    if found is None:
        return f"{text}\n{note}\n"
    text += (
        f"\nState {'×'.join(map(str, found['shape']))}, {found['p']:,} parameters. {_structure(found)}\n\n"
    )
    text += _row(_METRICS) + "\n" + _row(["--:"] * len(_METRICS)) + "\n"
    text += _row([_cost(found, name) for name in _METRICS]) + "\n\n"
    return text + (
        f"In passes of {1000 * found['pass']:.3g} ms; the trace by `{found['method']}`, {found['cost']}. "
        f"Peak memory {_memory(found)} that of a pass, {found['bytes of a pass'] / 1e6:,.0f} MB.\n"
    )


def _structure(found: dict[str, Any]) -> str:
    structure = found["structure"]
    if "refusal" in structure:
        return f"No structure of samples: {structure['refusal']}."
    words = f"{structure['batch']} independent samples, {structure['uses']} uses of parameters known by layer"
    if structure["derived"]:
        words += f", {structure['derived']} weights derived from parameters"
    general = structure["general"]
    reasons = "; ".join(f"`{name}`: {why}" for name, why in list(general.items())[:2])
    return words + (f"; {len(general)} by the general way ({reasons})." if general else ".")


def _numbers(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["–"] * 7
    structure = found["structure"]
    words = "no" if "refusal" in structure else "yes" if not structure["general"] else "in part"
    costs = [_cost(found, name) for name in ("trace, first call", "trace", "all four")]
    return [f"{found['p']:,}", f"{found['n']:,}", words, *costs, _memory(found)]


def _cost(found: dict[str, Any], name: str) -> str:
    if name not in found["passes"]:
        return "–"
    passes, converged = found["passes"][name]
    return (f"{passes:,.0f}" if passes >= 100 else f"{passes:.3g}") + ("" if converged else "∗")


def _memory(found: dict[str, Any]) -> str:
    return f"{found['bytes of the trace'] / found['bytes of a pass']:.2g}×"


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _anchor(name: str) -> str:
    kept = "".join(letter for letter in name.lower() if letter.isalnum() or letter in " -_")
    return "-".join(kept.split())
