"""Factorisations of a stranger's weights, in a process whose death or silence is noticed.

A LAPACK that finds an argument illegal may end the process with exit status 0, or never return.
What `plastic_core.linalg` hands to it is finite and scaled, so that none is known to; but the
weights are anybody's, the LAPACK whatever NumPy was built with, and a compression that ends with
status 0 and no output would be believed.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import mlx.core as mx

from plastic_export.process.worker import IN_WORKER, Worker, WorkerError

Result = TypeVar("Result")

START = 300.0
"""Seconds that the start of the process may take."""

PATIENCE = 300.0
"""Seconds that any call may take."""

LEAST_WORK = 2.0**27
"""``m n min(m, n)`` from which a worker is worth its start: that of a matrix of side 512."""

SECONDS_PER_PRODUCT = 2e-8
"""What each of ``m n min(m, n)`` adds: twenty operations, at a billion of them per second."""

_worker = Worker()


def in_worker(
    function: Callable[..., Result],
    /,
    *args: Any,
    name: str,
    shape: tuple[int, ...],
    **kwargs: Any,
) -> Result:
    """Return ``function(*args, **kwargs)``, computed in the one worker of this process.

    A matrix that is factorised sooner than a worker starts is factorised here.

    Args:
        function: A function at the top level of a module.
        *args: Picklable.
        name: The name of the matrix that is factorised, for the message of a ``WorkerError``.
        shape: The shape of the matrix, which decides the deadline.
        **kwargs: Picklable.

    Raises:
        WorkerError: If the worker died or missed the deadline, which is long.
        Exception: What ``function`` raised, as if it had been called here.

    Cost:
        The start of an interpreter at the first call, a copy of the arguments at each.
    """
    work = float(math.prod(shape)) * min(shape)
    if work < LEAST_WORK:
        return function(*args, **kwargs)
    deadline = PATIENCE + SECONDS_PER_PRODUCT * work
    try:
        _worker.call(_prepare, timeout=START)
        return _worker.call(function, *args, timeout=deadline, **kwargs)
    except WorkerError as error:
        error.add_note(f"at {name!r}")
        raise
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        notes[:] = [note for note in notes if not note.startswith(IN_WORKER)]
        raise


def _prepare() -> None:
    """Start, and give back the memory of every array at once: matrices differ in size."""
    mx.set_cache_limit(0)


@atexit.register
def _close() -> None:
    with suppress(WorkerError):  # whatever it does after its last result is nobody's loss
        _worker.close()
