"""The log-probabilities of a reference in a file, two bytes each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    Closing,
    FormatError,
    Header,
    OpenFile,
    SafetensorsWriter,
    TensorSpec,
    open_safetensors,
    parse_object,
)
from plastic_core.linalg import to_numpy

from plastic_export.evaluation.measures import LogProbabilities
from plastic_export.model.divergence import library, log_softmax_in

_FORMAT = "plastic-reference-1"
_STEPS = 2**16 - 2  # and one more code, for what is impossible
_IMPOSSIBLE = _STEPS + 1
_REMEDY = "make it with plastic evaluate --save-reference"
_INFORMATION = "reference"  # the setting that may differ: nobody is asked for it

Codes = tuple[NDArray[np.uint16], NDArray[np.float32]]


def encode_log_probabilities(log_q: NDArray[np.float32]) -> Codes:
    r"""Encode log-probabilities in 65,535 steps of the square root of the distance to the largest.

    .. math:: c = \mathrm{round}\left(N \sqrt{(\max_j \ell_j - \ell) / D}\right),
              \quad D = \max_j \ell_j - \min_j \ell_j

    So steps are finest where tokens are likely. By measurement on a vocabulary of 49,152 the KL
    divergence from the decoded ones is right to 4e-6 of itself down to 1.3 millinats, where those
    of half precision are right to 3e-4, and the 16,384 likeliest with the rest summed to 1e-3.

    Args:
        log_q: Shape (tokens, vocabulary), no NaN. Negative infinity is kept as it is.

    Returns:
        The codes, of the same shape, and the depth ``D`` of every token, shape (tokens,).

    Examples:
        >>> codes, depths = encode_log_probabilities(np.log(np.array([[0.5, 0.3, 0.2]], "f4")))
        >>> codes[0, 0], codes[0, 2], np.round(np.exp(decode_log_probabilities(codes, depths)), 4)
        (np.uint16(0), np.uint16(65534), array([[0.5, 0.3, 0.2]], dtype=float32))
    """
    below = log_q.max(axis=-1, keepdims=True) - log_q
    possible = np.isfinite(below)
    depths = np.where(possible, below, 0).max(axis=-1)
    scale = np.maximum(depths, np.finfo(np.float32).tiny)[:, None]
    with np.errstate(invalid="ignore"):
        codes = np.where(possible, np.rint(_STEPS * np.sqrt(below / scale)), _IMPOSSIBLE)
    return codes.astype(np.uint16), depths


def decode_log_probabilities(
    codes: NDArray[np.uint16], depths: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return normalised log-probabilities from what `encode_log_probabilities` made of them.

    Codes of some tokens alone give the log-probabilities among these.
    """
    roots = codes.astype(np.float32) / np.float32(_STEPS)
    below = np.where(codes == _IMPOSSIBLE, np.float32(np.inf), depths[:, None] * roots * roots)
    log_q: NDArray[np.float32] = log_softmax_in(np, -below)
    return log_q


class SavedReference(Closing):
    """A file of log-probabilities, open. A context manager.

    Args:
        file: A file that `write_reference` wrote.

    Attributes:
        file: The file.
        settings: What it was made with.
        vocabulary: How many tokens it has log-probabilities for.

    Raises:
        FormatError: If it is none of those, or damaged.
        OSError: If it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._open: OpenFile = open_safetensors(file)
        try:
            self.settings, self.vocabulary = _checked(self._open.header, file)
        except FormatError:
            self._open.close()
            raise

    def check(self, settings: Mapping[str, Any], *, windows: int) -> None:
        """Refuse it for a comparison with other settings, or another number of windows.

        Raises:
            FormatError: Naming the first one that differs.
        """
        for key in [*(self.settings.keys() - settings.keys()), *settings]:
            ours, theirs = settings.get(key), self.settings.get(key)
            if theirs != ours and key != _INFORMATION:
                values = "" if isinstance(ours, list | dict) else f": {theirs!r}, not {ours!r}"
                reason = f"it was saved with another {key}{values}"
                remedy = "name the checkpoint as the reference, or save it anew"
                raise FormatError.about(self.file, reason, remedy)
        if len(self._open.header.tensors) != len(_specs(0, (1, 1))) * windows:
            raise FormatError.about(self.file, "damaged: windows are missing", _REMEDY)

    @property
    def weights(self) -> int:
        """Entries of all matrices of what it was saved of; 0 where it does not say."""
        known = self.settings.get(_INFORMATION)
        found = known.get("weights") if isinstance(known, dict) else None
        return found if isinstance(found, int) else 0

    def read(self, first: int, count: int, vocabulary: int) -> LogProbabilities:
        """Return the log-probabilities of some windows, for the first tokens of the vocabulary."""
        log_q = [self._window(i)[:, :vocabulary] for i in range(first, first + count)]
        depths = [self._array("depths", i, "<f4") for i in range(first, first + count)]
        decoded = [decode_log_probabilities(c, d) for c, d in zip(log_q, depths, strict=True)]
        return decoded if library() is np else [mx.array(window) for window in decoded]

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _window(self, number: int) -> NDArray[np.uint16]:
        return self._array("codes", number, "<u2").reshape(-1, self.vocabulary)

    def _array(self, what: str, number: int, dtype: str) -> NDArray[Any]:
        return self._open.read(self._open.header.tensors[_name(what, number)]).view(dtype)


def _checked(header: Header, file: Path) -> tuple[dict[str, Any], int]:
    """Return the settings and the size of the vocabulary of a file that is what it says."""
    if header.metadata.get("format") != _FORMAT:
        reason = "it holds no log-probabilities of a reference, or of another version"
        raise FormatError.about(file, reason, _REMEDY)
    codes = [t.shape for t in header.tensors.values() if t.dtype == "U16"]
    specs = {s.name: s for i, shape in enumerate(codes) for s in _specs(i, shape)}
    found = {t.name: TensorSpec(t.name, t.dtype, t.shape) for t in header.tensors.values()}
    if not codes or found != specs or len({len(shape) for shape in codes} | {2}) > 1:
        raise FormatError.about(file, "damaged: its tensors are not those of windows", _REMEDY)
    text = header.metadata.get("settings", "")
    return parse_object(text.encode(), file, _REMEDY), codes[0][1]


def write_reference(
    file: str | os.PathLike[str],
    shapes: Sequence[tuple[int, int]],
    windows: Iterable[LogProbabilities],
    settings: Mapping[str, Any],
) -> None:
    """Write the log-probabilities of all windows to a safetensors file.

    Args:
        file: Its name; it is there when all is written.
        shapes: Of every window: tokens, vocabulary.
        windows: Log-probabilities, one list per batch.
        settings: What they depend on, in JSON's types.

    Raises:
        ValueError: If there is a NaN among them; nothing is written.
        OSError: If the system refuses.
    """
    specs = [s for i, shape in enumerate(shapes) for s in _specs(i, shape)]
    metadata = {"format": _FORMAT, "settings": json.dumps(settings, sort_keys=True)}
    with SafetensorsWriter(file, specs, metadata) as writer:
        every = (window for batch in windows for window in batch)
        for number, window in enumerate(every):
            log_q = window if isinstance(window, np.ndarray) else to_numpy(window)
            if np.isnan(log_q).any():
                raise ValueError("log-probabilities must be finite, got NaN.")
            codes, depths = encode_log_probabilities(log_q)
            writer.write(_name("depths", number), depths)
            writer.write(_name("codes", number), codes)


def reference_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """Return the bytes of the tensors of such a file.

    Examples:
        >>> reference_bytes([(255, 49152)])
        25068540
    """
    return sum(spec.nbytes for i, shape in enumerate(shapes) for spec in _specs(i, shape))


def _specs(number: int, shape: tuple[int, ...]) -> list[TensorSpec]:
    depths = TensorSpec(_name("depths", number), "F32", shape[:1])
    return [depths, TensorSpec(_name("codes", number), "U16", shape)]


def _name(what: str, number: int) -> str:
    return f"{what}.{number}"
