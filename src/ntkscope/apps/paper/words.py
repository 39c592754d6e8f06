"""How numbers and names are put in tables and pages."""

from __future__ import annotations

from ntkscope.apps.paper.store import Results

__all__ = ["TITLES", "count", "duration", "error_words", "factor", "machine_words", "percent"]

TITLES = {"mlp": "MLP", "gru": "GRU", "mnist": "MNIST MLP"}


def count(number: float, name: str) -> str:
    """A number and what it counts.

    >>> count(1, "thread"), count(1200, "VJP")
    ('1 thread', '1,200 VJPs')
    """
    return f"{number:,.0f} {name}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Two or three digits and the unit that suits.

    >>> duration(0.0123), duration(4.2), duration(251.0)
    ('12 ms', '4.2 s', '251 s')
    """
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:,.0f} s"


def factor(ratio: float) -> str:
    """A speed-up with two digits.

    >>> factor(0.5), factor(36.4), factor(12345)
    ('0.50×', '36×', '12,000×')
    """
    if ratio < 1:
        return f"{ratio:.2f}×"
    if ratio < 10:
        return f"{ratio:.1f}×"
    return f"{float(f'{ratio:.2g}'):,.0f}×"


def percent(share: float) -> str:
    """Two digits at most.

    >>> percent(0.01), percent(0.00123)
    ('1%', '0.12%')
    """
    return f"{100 * share:.2g}%"


def error_words(error: float) -> str:
    """A relative error as a power of ten.

    >>> error_words(0.00123), error_words(1e-5), error_words(0.0)
    ('1.2e-3', '1e-5', '0')
    """
    if error == 0:
        return "0"
    digits, power = f"{error:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def machine_words(results: Results) -> str:
    """What everything was measured on, in one sentence or two."""
    fixed = results.settings["fixed"]
    place = fixed.get("gpu") or f"{fixed['cores']} × {fixed['processor']}"
    counts = sorted({results.repeats(name) for name in results.experiments()})
    repeats = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    runs = "repetition" if repeats == "1" else "repetitions"
    quick = " These are quick results: few repetitions of small budgets." if results.quick else ""
    return (
        f"Measured on {place} with {count(fixed['threads'], 'thread')}, torch {fixed['torch']}, "
        f"Python {fixed['python']}, float32, device {fixed['device']}; {repeats} {runs}, large "
        f"budgets in fewer; seed {fixed['seed']}; digits of {fixed['digits']}.{quick}"
    )
