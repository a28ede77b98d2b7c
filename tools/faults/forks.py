"""Work in processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess

ONE_THREAD = "OPENBLAS_NUM_THREADS"


def one_thread() -> None:
    """Start the program again without threads: a copy of a process that has some may never wake."""
    if os.environ.get(ONE_THREAD) != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {ONE_THREAD: "1"})


def started(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process at work: on Linux a copy of this one, in which MLX must not have computed yet."""
    process: BaseProcess
    if sys.platform == "linux":
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    else:
        process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    return process


def finished(process: BaseProcess) -> None:
    """Wait for its end.

    Raises:
        RuntimeError: If it failed; what it printed tells why.
    """
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run failed with exit status {process.exitcode}; see above")
