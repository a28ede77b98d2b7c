"""Functions compiled by numba for this machine, and kept on disk for the next run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

VECTORISED = {"reassoc", "contract", "nsz"}
"""What numba's ``fastmath`` must allow for sums to be vectorised; their order is that of the
machine, the same in every call."""


class CompilingWarning(UserWarning):
    """The loops of the rounding are compiled, which takes some ten seconds.

    It is told once per process, and only where they are not on disk: numba keeps them in the
    ``__pycache__`` of the package or in a folder of the user; ``NUMBA_CACHE_DIR`` names another.

    Examples:
        >>> import warnings
        >>> warnings.simplefilter("ignore", CompilingWarning)  # a program that tells it otherwise
    """


def compiled(*signature: str, **options: Any) -> Callable[[F], F]:
    """Return a decorator that compiles a function, which then runs without Python's lock.

    Args:
        signature: The types of its arguments as numba writes them, compiled at once and kept on
            disk. A function without one is compiled as part of those that call it.
        options: Of ``numba.njit``.
    """
    from numba import njit  # half a second, for those who round alone

    def decorate(f: F) -> F:
        if not signature:
            part: F = njit(**options)(f)
            return part
        try:
            with _telling("once"):
                kept: F = njit(*signature, nogil=True, cache=True, **options)(f)
                return kept
        except Exception as error:  # of the folder, or else it comes again
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        remedy = "Set NUMBA_CACHE_DIR to a folder that can be written"
        with _telling(f"in every run: {reason}. {remedy}"):
            alone: F = njit(*signature, nogil=True, **options)(f)
            return alone

    return decorate


def _telling(when: str) -> AbstractContextManager[None]:
    """Tell that something is compiled in the block, unless it was told before."""
    from numba.core import event

    class Teller(event.Listener):  # type: ignore[misc]
        def on_start(self, event: object) -> None:
            _tell(when)

        def on_end(self, event: object) -> None:
            pass

    block: AbstractContextManager[None] = event.install_listener("numba:compile", Teller())
    return block


@cache
def _told() -> set[str]:
    return set()


def _tell(when: str) -> None:
    if not _told():
        _told().add(when)
        line = f"the loops of the rounding are compiled, about ten seconds, {when}"
        warnings.warn(line, CompilingWarning, stacklevel=2)
