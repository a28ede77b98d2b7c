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
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, TypeVar

from plastic_core.files import Closing

from plastic_export.process.pipe import pack, receive, send, unpack

Result = TypeVar("Result")

IN_WORKER = "In the worker process:"
"""How the note begins that holds the traceback of the worker."""

PIPE_BYTES = 2**20  # where it can be chosen: about twice the throughput of the usual 64 KiB

# Replaces sys.path: "python -c" would import from the working directory, perhaps a downloaded one.
_START = (
    "import sys; _, *sys.path = sys.argv; "
    "from plastic_export.process.worker import _serve; _serve()"
)
_SIGNALS = {s.value: s.name for s in signal.Signals}


class WorkerError(RuntimeError):
    """A worker process ended without a result; the message says how, and what it printed last.

    Examples:
        >>> import os
        >>> try:
        ...     run_isolated(os._exit, 0, timeout=60)
        ... except WorkerError as error:
        ...     print("without a complete result" in str(error))
        True
    """


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

    Examples:
        >>> import math
        >>> run_isolated(math.hypot, 3.0, 4.0, timeout=60)
        5.0
    """
    with Worker() as worker:
        return worker.call(function, *args, timeout=timeout, **kwargs)


class Worker(Closing):
    """A process that computes one call after another, each as by `run_isolated`. A context manager.

    The process starts with the first call and stays for the next, which saves the start. It is
    gone after a call that failed, and a new one starts with the call after that. Not for use by
    several threads at once; a fork of the caller starts a process of its own.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._owner = 0
        self._latest = ""

    def call(
        self, function: Callable[..., Result], /, *args: Any, timeout: float, **kwargs: Any
    ) -> Result:
        """Return ``function(*args, **kwargs)``; see `run_isolated` for the rest.

        Raises:
            WorkerError: If the process misses the deadline, or ends before its result is complete.
            Exception: What ``function`` raised, with the worker's traceback as a note.
            TypeError: If ``function`` or an argument cannot be pickled, or an MLX array is float64.
            ValueError: If ``timeout`` is not a positive number of seconds.
        """
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"`timeout` must be a positive number of seconds up to "
                f"{threading.TIMEOUT_MAX:.0f}, got {timeout}."
            )
        request = _packed_call(timeout, function, args, kwargs)
        process, self._latest = self._started(), _name(function)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill(process)

        timer = threading.Timer(timeout, expire)
        try:
            timer.start()
            reply = _exchange(process, request)
        except BaseException:
            self._stop()
            raise
        finally:
            timer.cancel()
        if reply is None:
            raise WorkerError(self._ending(timeout, expired.is_set()))
        if expired.is_set():  # too late for this call, which is complete
            self._stop()
        outcome: tuple[Result, Exception | None] = unpack(reply)
        result, error = outcome
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the process, if there is one.

        Raises:
            WorkerError: If it then ends with a status other than 0.
        """
        process, log = self._process, self._log
        if process is None or log is None or self._owner != os.getpid():
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            status = process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        tail = _tail(log)
        self._stop()
        if status:
            raise WorkerError(f"The worker process of `{self._latest}` {_ending(status)}.{tail}")

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the process, a new one where there is none that lives."""
        if self._owner != os.getpid():
            self._process = self._log = None  # those of the process that this one was forked from
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = _start(self._log)
            self._owner = os.getpid()
        return self._process

    def _ending(self, timeout: float, expired: bool) -> str:
        """Describe the end of the process that was to complete a call."""
        assert self._process is not None
        assert self._log is not None
        try:
            status = self._process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            status, expired = -signal.SIGKILL, True
        how = f"missed its deadline of {timeout:g} s" if expired else _ending(status)
        message = f"The worker process of `{self._latest}` {how}.{_tail(self._log)}"
        self._stop()
        return message

    def _stop(self) -> None:
        """Kill the process and give back what belongs to it."""
        process, log, self._process, self._log = self._process, self._log, None, None
        if process is not None:
            _kill(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        if log is not None:
            log.close()

    def leave(self, error: BaseException | None) -> None:
        """Let the process end, or stop it after an error."""
        if error is None:
            self.close()
        else:
            self._stop()


def _packed_call(
    timeout: float, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[memoryview]:
    try:
        if getattr(function, "__module__", None) == "__main__":
            raise pickle.PicklingError("the worker does not import __main__")
        return pack((timeout, function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`function` and its arguments must be picklable, `{_name(function)}` by its name in "
            f"a module: {error}."
        ) from error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Return a process that serves calls until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-u", "-X", "faulthandler", "-c", _START, *sys.path],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        process_group=0,  # Ctrl-C reaches the caller alone
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started, unless its number may have gone to another."""
    if process.returncode is None:  # not poll(): a dead one may have left a child with the pipe
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _exchange(
    process: subprocess.Popen[bytes], request: list[memoryview]
) -> list[memoryview] | None:
    """Return the reply to a request, None where the worker does not complete one."""
    stdin, stdout = process.stdin, process.stdout
    assert isinstance(stdin, io.FileIO)
    assert isinstance(stdout, io.FileIO)
    _widen(stdin)
    _widen(stdout)
    with suppress(BrokenPipeError):
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
    """Return the last lines that the worker printed."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = log.read().decode(errors="replace").splitlines()[-12:]
    return "\n  ".join([" It printed last:", *lines]) if lines else ""


def _serve() -> None:
    """Serve calls in the worker process; their outcomes are all that the pipe ever carries."""
    with open(os.dup(1), "wb", buffering=0) as replies:
        os.dup2(2, 1)
        with open(0, "rb", buffering=0, closefd=False) as requests, suppress(EOFError):
            while True:
                send(replies, _outcome(receive(requests)))


def _outcome(request: list[memoryview]) -> list[memoryview]:
    try:
        timeout, function, args, kwargs = unpack(request)
        signal.setitimer(signal.ITIMER_REAL, timeout + 1)  # in case nobody is left to kill it
        return pack((function(*args, **kwargs), None))
    except Exception as error:
        portable = _portable(error)
        lines = traceback.format_exception(error)
        portable.add_note("".join([f"{IN_WORKER}\n", *lines]).rstrip())
        return pack((None, portable))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _portable(error: Exception) -> Exception:
    """Return the error itself if it survives pickling."""
    try:
        unpack(pack(error))
    except Exception:
        return WorkerError("".join(traceback.format_exception_only(error)).strip())
    return error
