"""A call in a process of its own: whatever ends or hangs that process becomes an exception.

LAPACK need not come back. Where a build of it meets an infinity it may end the process with exit
status 0, hang, or read memory that is not its own; no ``try`` sees any of that. Here the caller
believes one thing only: a complete result, checksummed, from a process that then exits with 0.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

from plastic_core.record import pack, receive, send, unpack

Result = TypeVar("Result")

PIPE_BYTES = 2**20  # where it can be chosen: about twice the throughput of the usual 64 KiB

# Replaces sys.path: "python -c" would import from the working directory, perhaps a downloaded one.
_START = (
    "import sys; timeout, *sys.path = sys.argv[1:]; "
    "from plastic_core.isolated import _serve; _serve(float(timeout))"
)
_SIGNALS = {s.value: s.name for s in signal.Signals}


class WorkerError(RuntimeError):
    """A worker process ended without a result; the message says how, and what it printed last."""


def run_isolated(
    function: Callable[..., Result], /, *args: Any, timeout: float, **kwargs: Any
) -> Result:
    """Return ``function(*args, **kwargs)``, computed in a new process within ``timeout`` seconds.

    The process is a fresh interpreter with the caller's ``sys.path``, not a fork (threads of a
    BLAS and of Metal do not survive one), and it never imports the caller's ``__main__``: scripts
    need no guard, but ``function`` and the classes of its arguments must come from a module. When
    this function returns or raises, KeyboardInterrupt included, the process is gone. If the caller
    is killed, the process ends by itself at the latest one second after the deadline.

    Args:
        function: Function at the top level of a module other than ``__main__``.
        *args: Picklable arguments. NumPy and MLX arrays arrive with the same bits; a contiguous
            NumPy array goes straight from its memory into that of the other side.
        timeout: Seconds from the call to the exit of the process, its start (about that of
            ``import plastic_core``) and the transfers included.
        **kwargs: Picklable arguments, none named ``timeout``.

    Returns:
        What ``function`` returned, which must be picklable too.

    Raises:
        WorkerError: If the process misses the deadline, is killed by a signal, exits with a status
            other than 0, or exits with 0 before its result is complete.
        Exception: What ``function`` raised, with the worker's traceback as a note; as a
            ``WorkerError`` if it cannot be pickled.
        TypeError: If ``function`` or an argument cannot be pickled, or an MLX array is float64.
        ValueError: If ``timeout`` is not a positive number of seconds.

    Note:
        A guard against crashes, not a sandbox: the worker may do what the caller may. Its standard
        output and error are shown only if it fails. MLX's default device and NumPy's error state
        are those of a fresh process.

    Example:
        >>> import math
        >>> run_isolated(math.hypot, 3.0, 4.0, timeout=60)
        5.0
    """
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(
            f"`timeout` must be a positive number of seconds up to {threading.TIMEOUT_MAX:.0f}, "
            f"got {timeout}."
        )
    request = _packed_call(function, args, kwargs)
    with tempfile.TemporaryFile() as log:
        with _worker(timeout, log) as (process, expired):
            reply = _exchange(process, request)
            status = process.wait()
        if reply is None or status != 0:
            late = f"missed its deadline of {timeout:g} s" if expired.is_set() else ""
            how = late or _ending(status)
            raise WorkerError(f"The worker process of `{_name(function)}` {how}.{_tail(log)}")
    outcome: tuple[Result, Exception | None] = unpack(reply)
    result, error = outcome
    if error is not None:
        raise error
    return result


def _packed_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[memoryview]:
    try:
        if getattr(function, "__module__", None) == "__main__":
            raise pickle.PicklingError("the worker does not import __main__")
        return pack((function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`function` and its arguments must be picklable, `{_name(function)}` by its name in "
            f"a module: {error}."
        ) from error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


@contextmanager
def _worker(
    timeout: float, log: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], threading.Event]]:
    """A worker that outlives neither the block nor the deadline, and whether the latter came."""
    options = ["-u", "-X", "faulthandler", "-c", _START, str(timeout), *sys.path]
    expired = threading.Event()
    with subprocess.Popen(
        [sys.executable, *options],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        process_group=0,  # Ctrl-C reaches the caller alone
    ) as process:

        def expire() -> None:
            expired.set()
            _kill(process)

        timer = threading.Timer(timeout, expire)
        try:
            timer.start()
            yield process, expired
        finally:
            timer.cancel()
            _kill(process)
            process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started, unless its number may have gone to another."""
    if process.returncode is None:  # not poll(): a dead one may have left a child with the pipe
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _exchange(
    process: subprocess.Popen[bytes], request: list[memoryview]
) -> list[memoryview] | None:
    """The reply to a request, None where the worker does not complete one."""
    stdin, stdout = process.stdin, process.stdout
    assert isinstance(stdin, io.FileIO)
    assert isinstance(stdout, io.FileIO)
    _widen(stdin)
    _widen(stdout)
    with suppress(BrokenPipeError), stdin:
        send(stdin, request)
    with suppress(EOFError):
        return receive(stdout)
    return None


def _widen(pipe: io.FileIO) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # beyond what the system grants to this user
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _ending(status: int) -> str:
    if status > 0:
        return f"ended with exit status {status}"
    if status == 0:
        return (
            "ended with exit status 0 but without a complete result, as when LAPACK stops at an "
            "argument it finds illegal (look for infinities in the input)"
        )
    cause = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    return f"was killed by {_SIGNALS.get(-status, f'signal {-status}')}{cause}"


def _tail(log: IO[bytes]) -> str:
    """The last lines that the worker printed."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = log.read().decode(errors="replace").splitlines()[-12:]
    return "\n  ".join([" It printed last:", *lines]) if lines else ""


def _serve(timeout: float) -> None:
    """What the worker process does: one call, whose outcome is all that the pipe ever carries."""
    signal.setitimer(signal.ITIMER_REAL, timeout + 1)  # in case nobody is left to kill it
    with open(os.dup(1), "wb", buffering=0) as replies:
        os.dup2(2, 1)
        with open(0, "rb", buffering=0, closefd=False) as requests:
            request = receive(requests)
        send(replies, _outcome(request))


def _outcome(request: list[memoryview]) -> list[memoryview]:
    try:
        function, args, kwargs = unpack(request)
        return pack((function(*args, **kwargs), None))
    except Exception as error:
        portable = _portable(error)
        lines = traceback.format_exception(error)
        portable.add_note("".join(["In the worker process:\n", *lines]).rstrip())
        return pack((None, portable))


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling."""
    try:
        unpack(pack(error))
    except Exception:
        return WorkerError("".join(traceback.format_exception_only(error)).strip())
    return error
