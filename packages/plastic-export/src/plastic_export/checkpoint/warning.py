"""Warnings about a checkpoint that is read, though not as its files say.

They travel as Python's own: a program filters them by their class, and the ``plastic`` command
prints each once, as a line on standard error.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from plastic_core.files import FormatError


class CheckpointWarning(UserWarning):
    """A checkpoint is read, though not as its files say.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", CheckpointWarning)  # refuse such checkpoints
        ...     open_checkpoint("SRC").close()
    """


@contextmanager
def told_before() -> Iterator[None]:
    """Let nothing be told within the block that was told of its source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        yield


def warn_about(
    file: str | os.PathLike[str], reason: str, outcome: str, *, tensor: str | None = None
) -> None:
    """Warn of something in a checkpoint that is no reason to refuse it.

    Args:
        file: File or folder to blame.
        reason: What is strange about it.
        outcome: What is done in spite of it, such as "mlx-lm ignores it, and so it is here".
        tensor: Name of the tensor to blame, if it is one tensor.
    """
    line = FormatError.about(file, reason, outcome, tensor=tensor)
    warnings.warn(str(line), CheckpointWarning, stacklevel=2)
