"""A text that is given as the ids of its tokens, so that no tokenizer is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError

_FORM = "give integers: one row for a text, or one row per window"


def read_token_ids(file: str | Path) -> NDArray[np.int64] | None:
    """Return the token ids that a file holds; None where it is a text.

    Args:
        file: A ``.npy`` of integers, or a ``.json`` that is a list of integers or of such lists.
            Any other ``.json`` is a text.

    Returns:
        One dimension: a text that is still to be cut. Two: windows, one per row.

    Raises:
        FormatError: If a ``.npy`` is damaged or holds anything else, or an id is negative.
        OSError: If the file does not exist or cannot be read.
    """
    file = Path(file)
    if file.suffix == ".npy":
        return _checked(_array(file), file)
    listed = _list(file) if file.suffix == ".json" else None
    return None if listed is None else _checked(listed, file)


def _array(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError.about(file, f"no array of NumPy: {error}", _FORM) from error
    return array


def _list(file: Path) -> NDArray[Any] | None:
    """Return the array that a JSON file lists, None if it is something else."""
    try:
        listed = json.loads(file.read_bytes())
        array = np.array(listed) if isinstance(listed, list) else np.array("")
    except (ValueError, RecursionError):  # no JSON, or rows of several lengths
        return None
    return array if array.dtype.kind in "iu" else None


def _checked(array: NDArray[Any], file: Path) -> NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
        shape = " x ".join(map(str, array.shape)) or "one"
        raise FormatError.about(file, f"it holds {shape} of {array.dtype}, no token ids", _FORM)
    if int(array.min()) < 0 or int(array.max()) >= 2**31:
        wrong = next(i for i in (int(array.min()), int(array.max())) if not 0 <= i < 2**31)
        raise FormatError.about(file, f"{wrong} is no id of a token", _FORM)
    return array.astype(np.int64)
