"""lm-evaluation-harness, an extra: imported when it is needed, kept off the Hub and silent."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partialmethod
from io import StringIO
from typing import Any

from plastic_export.model.library import mlx_lm_utils

HOW = "tasks need lm-evaluation-harness; install the extra: pip install 'plastic-export[tasks]'"


def check_harness() -> None:
    """Refuse tasks where lm-evaluation-harness, or mlx-lm, is not installed.

    Raises:
        ModuleNotFoundError: Saying how to install it.
    """
    mlx_lm_utils()
    with foreign_warnings_ignored():
        try:
            import lm_eval  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name != "lm_eval":
                raise
            raise ModuleNotFoundError(HOW, name="lm_eval") from None


@contextmanager
def foreign_warnings_ignored() -> Iterator[None]:
    """Let warnings of libraries about libraries pass unseen within the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def contained() -> Iterator[list[str]]:
    """Keep lm-evaluation-harness on this machine and its words to itself within the block.

    Data sets come from the local cache of ``datasets`` or from files, measures from what is
    installed. Bars, prints and notes of the libraries are not shown, no process is forked to
    estimate an error by bootstrap, and git is not asked for the commit of the working directory.

    Yields:
        The errors that were logged in place of being raised, while the block runs.
    """
    import datasets
    import evaluate
    import lm_eval.evaluator
    import tqdm
    from huggingface_hub import constants

    silent = partialmethod(tqdm.tqdm.__init__, disable=True)
    with ExitStack() as stack:
        stack.enter_context(foreign_warnings_ignored())
        stack.enter_context(redirect_stdout(StringIO()))
        for owner, name, value in (
            (tqdm.tqdm, "__init__", silent),
            (lm_eval.evaluator, "get_git_commit_hash", lambda: None),
            (datasets.config, "HF_HUB_OFFLINE", True),
            (evaluate.config, "HF_EVALUATE_OFFLINE", True),
            (constants, "HF_HUB_OFFLINE", True),
        ):
            stack.enter_context(_changed_to(owner, name, value))
        logged: list[str] = []
        for logger in ("lm_eval", "datasets", "evaluate"):
            stack.enter_context(_kept(logging.getLogger(logger), logged))
        stack.enter_context(_without_bars(datasets))
        stack.enter_context(_one_process())
        yield logged


@contextmanager
def _changed_to(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value within the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Keeper(logging.Handler):
    """Keeps what is logged in a list."""

    def __init__(self, logged: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record.getMessage())


@contextmanager
def _kept(logger: logging.Logger, logged: list[str]) -> Iterator[None]:
    """Keep the errors of a logger instead of printing anything of it."""
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Keeper(logged)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Draw none of the bars of ``datasets``, which do not ask the class that they derive from."""
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            datasets.enable_progress_bars()
    else:
        yield


@contextmanager
def _one_process() -> Iterator[None]:
    """Let bootstraps run in this process: a fork of one that runs MLX may never end."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
