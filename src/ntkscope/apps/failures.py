"""How a command fails: in one line on stderr, with an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from ntkscope.apps.processes import EndedError, is_early, is_said_elsewhere, leave, speaking_once
from ntkscope.errors import ProcessLostError, words_of_the_terminal

__all__ = ["FAILED", "INTERRUPTED", "OneLineErrors"]

#: Exit codes: of every error, and of Ctrl-C.
FAILED, INTERRUPTED = 2, 130


class OneLineErrors(TyperGroup):
    """Every error is one line on stderr and exit code 2; ``--debug`` adds the traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Runs the command and ends the process with its exit code."""
        words = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        try:
            with words_of_the_terminal(), speaking_once():
                code = super().main(words, *rest, **extra)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            if "--debug" in words:
                traceback.print_exc()
            code = FAILED
            if not is_said_elsewhere():
                _complain(_message(error))
        except EndedError as error:
            code = FAILED
            if not is_early():
                _complain(str(error))
        if code == INTERRUPTED:
            _complain("interrupted")
        status = code if isinstance(code, int) else 0
        leave(status)
        sys.exit(status)


def _message(error: Exception) -> str:
    """One line; the name of the error only where it is not one of ours."""
    if hasattr(error, "format_message"):  # of the command line itself
        return f"{error.format_message()} (see --help)"
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, TypeError, ImportError, ProcessLostError)) and text:
        return text
    return f"{type(error).__name__}: {text or 'no message'} (--debug shows where)"


def _complain(text: str) -> None:
    print(f"ntkscope: {text}", file=sys.stderr)
