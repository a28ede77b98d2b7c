"""What a worker process may do instead of returning: functions that a worker can import."""

import atexit
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def raise_value_error(name: str) -> NoReturn:
    raise ValueError(f"`{name}` must be finite.")


class UnpicklableError(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")


def raise_unpicklable_error() -> NoReturn:
    raise UnpicklableError(1, 2)


def return_a_function() -> object:
    return lambda: None


def exit_at_once(status: int) -> NoReturn:
    print("printed last words")
    os.write(2, b"written last words\n")
    os._exit(status)


def exit_like_a_script() -> NoReturn:
    sys.exit(0)


def exit_after_returning() -> str:
    atexit.register(os._exit, 3)
    return "complete"


def signal_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def scribble_and_exit() -> NoReturn:
    """Write to whatever may be the pipe of the result, then stop as LAPACK would."""
    for descriptor in range(3, 32):
        try:
            os.write(descriptor, b"done" * 16)
        except OSError:
            continue
    os._exit(0)


def sleep() -> None:
    time.sleep(60)


def sleep_in_a_child_that_holds_the_pipe() -> NoReturn:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)


def lock_and_sleep(path: Path) -> None:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(60)


def svd(A: NDArray[Any]) -> list[NDArray[Any]]:
    return [np.array(factor) for factor in mx.linalg.svd(mx.array(A), stream=mx.cpu)]
