"""Work side by side in threads, with the same bits for any number of them.

BLAS sums in another order with another number of threads. So it gets one thread, and the work is
cut by its shape alone into parts that are run side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from threading import Lock, local
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

PANEL = 512
"""Rows or columns of a product that one thread computes at a time."""

_here = local()  # whether this thread runs a part already, and for how many threads it may ask
_limits = Lock()
_holders, _limiter = 0, None


def workers() -> int:
    """Return how many threads work side by side: as many as BLAS was given, or the cores.

    ``OPENBLAS_NUM_THREADS`` and its kin say so before the start, `using_workers` inside a block.

    Examples:
        >>> with using_workers(3):
        ...     workers()
        3
    """
    chosen: int | None = getattr(_here, "workers", None)
    return chosen or _given()


@contextmanager
def using_workers(count: int) -> Iterator[None]:
    """Let this thread work with so many threads inside the block.

    Args:
        count: At least 1.

    Examples:
        >>> with using_workers(2):
        ...     in_threads(str, range(3))
        ['0', '1', '2']
    """
    before = getattr(_here, "workers", None)
    _here.workers = count
    try:
        yield
    finally:
        _here.workers = before


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute with one thread, in all of the process, until the last block is left.

    Examples:
        >>> A = np.ones((2, 2))
        >>> with one_blas_thread():
        ...     (A @ A).tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """
    global _holders, _limiter
    with _limits:
        if _holders == 0:
            _given()  # before it is one
            _limiter = _blas().limit(limits=1, user_api="blas")
        _holders += 1
    try:
        yield
    finally:
        with _limits:
            _holders -= 1
            if _holders == 0 and _limiter is not None:
                _limiter.restore_original_limits()


def in_threads(f: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``[f(item) for item in items]``, computed side by side, each with one BLAS thread.

    What ``f`` starts in turn is done where it is. NumPy's error state is that of the caller.

    Args:
        f: Lets go of Python's lock, as NumPy's and compiled products do, or gains nothing.
        items: What is independent of each other.

    Raises:
        Exception: What the first item that failed raised; the others are done or were not begun.

    Examples:
        >>> in_threads(lambda n: n * n, range(4))
        [0, 1, 4, 9]
    """
    todo = list(items)
    with one_blas_thread():
        if min(len(todo), workers()) < 2 or getattr(_here, "busy", False):
            return [f(item) for item in todo]
        return _side_by_side(f, todo)


def product(A: NDArray[Any], B: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return ``A @ B``, the same bits for any number of threads.

    Args:
        A: Shape ``(m, k)``.
        B: Shape ``(k, n)``, of the same dtype.
        out: Where to write it, shape ``(m, n)``.

    Note:
        Panels of 512 rows, or of 512 columns where there are more of these, side by side.

    Examples:
        >>> product(np.ones((2, 3)), np.ones((3, 1))).tolist()
        [[3.0], [3.0]]
    """
    (m, _), n = A.shape, B.shape[1]
    C = np.empty((m, n), np.result_type(A, B)) if out is None else out
    if m >= n:
        parts = [slice(i, i + PANEL) for i in range(0, m, PANEL)]
        in_threads(lambda part: np.matmul(A[part], B, out=C[part]), parts)
    else:
        parts = [slice(i, i + PANEL) for i in range(0, n, PANEL)]
        in_threads(lambda part: np.matmul(A, B[:, part], out=C[:, part]), parts)
    return C


def _side_by_side(f: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    pool, begun = _pool(workers()), list[Future[Result]]()
    try:
        begun += [pool.submit(copy_context().run, _part, f, item) for item in items]
        return [future.result() for future in begun]
    except BaseException:
        for future in begun:
            future.cancel()
        for future in begun:  # what has begun may write into the caller's arrays
            if not future.cancelled():
                future.exception()
        raise


def _part(f: Callable[[Item], Result], item: Item) -> Result:
    _here.busy = True  # for good: it is a thread of ours
    return f(item)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="plastic")


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@cache
def _given() -> int:
    """Return how many threads BLAS had as this was first asked, at most one per core."""
    known = [int(library["num_threads"]) for library in _blas().info()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min([cores or 1, *known])
