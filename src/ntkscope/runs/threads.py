"""NumPy's threads, which small matrices do better without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _controller() -> ThreadpoolController:
    # Looks through the libraries that are loaded, for some milliseconds.
    return ThreadpoolController()


def one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function of small matrices with one thread of NumPy's.

    Many products of k × k matrices wake and end the threads of NumPy's BLAS all the time, which then
    wait for the cores that torch's threads hold. Measured on two cores: a sketch of 384 products of two
    kernels, with its error bars, in 2.8 s instead of 3.6 s.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return run
