"""The weight that is to blame where a computation ends in values that are not finite."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from plastic_core.files import FormatError

from plastic_export.checkpoint.reader import Checkpoint, refuse_non_finite, widened
from plastic_export.checkpoint.tensors import FLOATS

_SYMPTOM = re.compile(r"\b(finite|nan|inf)\b")


@contextmanager
def blaming_weights(*checkpoints: Checkpoint) -> Iterator[None]:
    """Where the block fails for a value that is not finite, name the tensor that has one.

    Args:
        checkpoints: What the block computes with, open or closed.

    Raises:
        FormatError: Naming the first tensor with a value that is NaN or infinite, in place of a
            ``ValueError`` that says what became of it. Reads the weights, then alone. An error
            that names a file by itself is raised with that as a note.
    """
    try:
        yield
    except ValueError as error:
        blamed = _blamed(checkpoints) if _SYMPTOM.search(str(error)) else None
        if blamed is None:
            raise
        if not isinstance(error, FormatError):
            raise blamed from error
        error.add_note(str(blamed))
        raise


def _blamed(checkpoints: Iterable[Checkpoint]) -> FormatError | None:
    for checkpoint in checkpoints:
        try:
            _check_finite(checkpoint)
        except FormatError as error:
            return error
    return None


def _check_finite(checkpoint: Checkpoint) -> None:
    with closing(checkpoint):
        for name, info in checkpoint.tensors.items():
            if info.dtype in FLOATS:
                values = widened(checkpoint.raw(name), info.dtype).reshape(info.shape)
                refuse_non_finite(values, info)
