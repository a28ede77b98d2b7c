"""A worker's death, silence or half a result is an error, and leaves nothing behind."""

import fcntl
import importlib
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.linalg import thin_svd
from plastic_core.testing import bits
from plastic_export.process.worker import Worker, WorkerError, run_isolated

HERE = Path(__file__).parent
AMPLE = 60.0
SHORT = 1.5  # seconds; a worker starts in about 0.5


class Started(subprocess.Popen[Any]):
    """Real processes, remembered."""

    processes: list["Started"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processes.append(self)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Started]]:
    """The workers of a test, of which neither a process nor an open file may be left after it."""
    Started.processes = []
    monkeypatch.setattr(subprocess, "Popen", Started)
    files = sorted(os.listdir("/dev/fd"))
    yield Started.processes
    assert sorted(os.listdir("/dev/fd")) == files
    for process in Started.processes:
        assert process.returncode is not None
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


@pytest.fixture
def provocations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that a worker finds only if it is handed the caller's ``sys.path``."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("provocations")


def test_a_factorisation_is_the_same_in_a_worker() -> None:
    A = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    isolated = run_isolated(thin_svd, A, timeout=AMPLE)
    assert [bits(factor) for factor in isolated] == [bits(factor) for factor in thin_svd(A)]


def test_mlx_arrays_and_keyword_arguments_go_there_and_back() -> None:
    sent = mx.array([1.0, -0.0, float("nan")], dtype=mx.bfloat16)
    received: dict[str, Any] = run_isolated(dict, timeout=AMPLE, left=sent, right="text")
    assert bits(received["left"]) == bits(sent)
    assert received["right"] == "text"


def test_a_large_array_goes_there_and_back_and_is_allocated_once() -> None:
    large = np.frombuffer(np.random.default_rng(0).bytes(2**26), np.uint8)
    tracemalloc.start()
    received = run_isolated(operator.pos, large, timeout=AMPLE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(received, large)
    assert peak < 1.1 * large.nbytes


@pytest.mark.parametrize(
    ("name", "arguments", "ending"),
    [
        ("exit_at_once", [0], "status 0 but without a complete result"),
        ("exit_like_a_script", [], "status 0 but without a complete result"),
        ("exit_after_returning", [], "status 3"),
        ("scribble_and_exit", [], "status 0 but without a complete result"),
        ("signal_itself", [signal.SIGSEGV], "killed by SIGSEGV"),
        ("signal_itself", [signal.SIGKILL], "killed by SIGKILL, perhaps for want of memory"),
    ],
)
def test_a_worker_that_dies_is_an_error(
    provocations: ModuleType, name: str, arguments: list[int], ending: str
) -> None:
    with pytest.raises(WorkerError, match=f"^The worker process of `{name}` .*{ending}"):
        run_isolated(getattr(provocations, name), *arguments, timeout=AMPLE)


def test_the_error_holds_what_the_worker_printed_last(provocations: ModuleType) -> None:
    with pytest.raises(WorkerError, match=r"status 3.*\n *printed last.*\n *written last"):
        run_isolated(provocations.exit_at_once, 3, timeout=AMPLE)


@pytest.mark.parametrize("name", ["sleep", "sleep_in_a_child_that_holds_the_pipe"])
def test_a_worker_that_hangs_is_killed_at_the_deadline(provocations: ModuleType, name: str) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match=f"`{name}` missed its deadline of {SHORT} s"):
        run_isolated(getattr(provocations, name), timeout=SHORT)
    assert SHORT <= time.monotonic() - start < SHORT + 5


def test_a_large_argument_to_a_worker_that_does_not_read_it_meets_the_deadline() -> None:
    with pytest.raises(WorkerError, match="missed its deadline"):
        run_isolated(np.sum, np.ones(2**24), timeout=0.01)


@pytest.mark.parametrize("side", [4, 40])
def test_an_infinity_in_the_svd_of_mlx_never_looks_like_success(
    provocations: ModuleType, side: int
) -> None:
    """The reference LAPACK hangs on the small matrix and exits with status 0 on the large one."""
    A = np.ones((side, side), np.float32)
    A[0, 0] = np.inf
    try:
        factors = run_isolated(provocations.svd, A, timeout=SHORT)
    except RuntimeError:
        return
    assert not all(np.isfinite(factor).all() for factor in factors)


def test_an_exception_arrives_unchanged_with_the_traceback_of_the_worker(
    provocations: ModuleType,
) -> None:
    with pytest.raises(ValueError, match="`A` must be finite") as caught:
        run_isolated(provocations.raise_value_error, "A", timeout=AMPLE)
    assert caught.value.args == ("`A` must be finite.",)
    (note,) = caught.value.__notes__
    assert re.search(r"In the worker process:\n.*in raise_value_error\n", note, re.DOTALL)


def test_an_exception_that_cannot_be_pickled_arrives_as_a_worker_error(
    provocations: ModuleType,
) -> None:
    with pytest.raises(WorkerError, match="UnpicklableError: 1 is not 2"):
        run_isolated(provocations.raise_unpicklable_error, timeout=AMPLE)


def test_a_result_that_cannot_be_pickled_is_an_error(provocations: ModuleType) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="return_a_function"):
        run_isolated(provocations.return_a_function, timeout=AMPLE)


def test_a_worker_serves_many_calls_and_starts_anew_after_one_that_failed(
    provocations: ModuleType, started: list[Started]
) -> None:
    with Worker() as worker:
        first = worker.call(os.getpid, timeout=AMPLE)
        assert worker.call(os.getpid, timeout=AMPLE) == first != os.getpid()
        with pytest.raises(ValueError, match="must be finite"):
            worker.call(provocations.raise_value_error, "A", timeout=AMPLE)
        assert worker.call(os.getpid, timeout=AMPLE) == first
        for name, arguments in (("exit_at_once", [0]), ("signal_itself", [signal.SIGSEGV])):
            with pytest.raises(WorkerError, match=f"`{name}`"):
                worker.call(getattr(provocations, name), *arguments, timeout=AMPLE)
        with pytest.raises(WorkerError, match="missed its deadline"):
            worker.call(provocations.sleep, timeout=SHORT)
        assert worker.call(os.getpid, timeout=AMPLE) != first
    assert len(started) == 4
    worker.close()


def test_a_worker_is_not_shared_with_a_fork() -> None:
    with Worker() as worker:
        first = worker.call(os.getpid, timeout=AMPLE)
        if (child := os.fork()) == 0:
            own = worker.call(os.getpid, timeout=AMPLE)
            worker.close()
            os._exit(int(own == first))
        assert os.waitpid(child, 0)[1] == 0
        assert worker.call(os.getpid, timeout=AMPLE) == first


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what runs in its background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_kills_the_worker(
    provocations: ModuleType, tmp_path: Path, started: list[Started]
) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: is_locked(lock))
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_isolated(provocations.lock_and_sleep, lock, timeout=AMPLE)
    thread.join()
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert not is_locked(lock)


def test_a_worker_whose_caller_was_killed_ends_after_the_deadline(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    code = (
        "import sys, pathlib; path, lock = sys.argv[1:]; sys.path.append(path); "
        "import provocations; from plastic_export.process.worker import run_isolated; "
        f"run_isolated(provocations.lock_and_sleep, pathlib.Path(lock), timeout={4 * SHORT})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(HERE), str(lock)]) as caller:
        wait_until(lambda: is_locked(lock))
        caller.kill()
    assert is_locked(lock)
    wait_until(lambda: not is_locked(lock))


def test_a_worker_imports_nothing_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert run_isolated(abs, -1, timeout=AMPLE) == 1


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_no_positive_number_of_seconds_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="`timeout` must be a positive number of seconds"):
        run_isolated(abs, -1, timeout=timeout)


def test_what_a_worker_could_not_import_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, started: list[Started]
) -> None:
    def of_a_script() -> None: ...

    of_a_script.__module__ = "__main__"
    for function in (of_a_script, lambda: None, mx.linalg.svd):
        with pytest.raises(TypeError, match="`function` and its arguments must be picklable"):
            run_isolated(function, timeout=AMPLE)
    with pytest.raises(TypeError, match="float64 would arrive as float32"):
        run_isolated(abs, mx.array(1.0, dtype=mx.float64), timeout=AMPLE)
    assert not started


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
