"""The tables of a report: the last numbers, the settings and the costs of its runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ntkscope.tracking.figures import symbol_of, title_of
from ntkscope.tracking.metrics import WATCHED
from ntkscope.tracking.run import Run

__all__ = ["plain_settings", "table", "tables_of"]

#: What settings are called where their names are those of Python.
_CALLED = {"n": "outputs (n)", "n_params": "parameters", "by": "kept apart by"}


def table(rows: Sequence[Sequence[Any]], head: Sequence[str], *, prose: bool = False) -> str:
    """A table of HTML, with everything escaped.

    Args:
        rows: Cells; the last one of a short row goes over those that it lacks.
        head: Of the columns.
        prose: Whether the last column has sentences, which need some width.
    """
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{_row(row, len(head))}</tr>" for row in rows)
    kind = "wide prose" if prose else "wide"
    return f'<div class="{kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[Any], width: int) -> str:
    # A number and its error stay on one line.
    texts = [html.escape(str(cell)).replace(" ± ", "\u00a0±\u00a0") for cell in cells]
    span = width - len(texts) + 1
    last = f'<td colspan="{span}">' if span > 1 else "<td>"
    return "".join(f"<td>{text}</td>" for text in texts[:-1]) + f"{last}{texts[-1]}</td>"


def tables_of(runs: Sequence[Run]) -> str:
    """What the runs had at their last look, how they were made, and what watching them cost."""
    last = [
        [title_of(name), symbol_of(name), *(_last(run, name) for run in runs)]
        for name in WATCHED
        if any(name in run.metrics for run in runs)
    ]
    settings = [{**plain_settings(run.settings), **plain_settings(run.config)} for run in runs]
    names = [*plain_settings(runs[0].config)] if runs else []
    names = list(dict.fromkeys([*names, *(name for known in settings for name in known)]))
    rows = [[name, *_shared([known.get(name, "") for known in settings])] for name in names]
    costs = [_costs(run) for run in runs]
    rows += [[name, *_shared([cost[name] for cost in costs])] for name in costs[0]] if costs else []
    head = [run.name for run in runs]
    return (
        f"<section><h2>At the last look</h2>{table(last, ['number', 'what it is', *head])}</section>"
        f"<section><h2>Settings and costs</h2>{table(rows, ['', *head])}</section>"
    )


def plain_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings in words."""
    return {_CALLED.get(name, name.replace("_", " ")): _words(value) for name, value in settings.items()}


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(one).replace("_", " ") for one in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shared(cells: Sequence[str]) -> Sequence[str]:
    """One cell where all say the same."""
    return cells[:1] if len(set(cells)) == 1 else cells


def _last(run: Run, name: str) -> str:
    found = [look.metrics[name] for look in run.looks if name in look.metrics]
    return found[-1].value_text() if found else ""


def _costs(run: Run) -> dict[str, str]:
    looks = run.looks
    seconds, training = sum(look.cost.seconds for look in looks), looks[-1].training if looks else 0.0
    share = f"{100 * sum(x.cost.seconds for x in looks[1:]) / training:.1f}%" if training > 0 else ""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return {
        "looks": str(len(looks)),
        "last step": f"{looks[-1].step:,}" if looks else "",
        "backward passes of looks (VJPs)": f"{sum(look.cost.vjps for look in looks):,}",
        "seconds of looks": f"{seconds:.2f}",
        "seconds of training": f"{training:.2f}" if training else "",
        "looks after the first, of training": share,
        "versions": versions,
    }
