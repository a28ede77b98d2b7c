"""What the figures of an evaluation depend on, beside the models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from plastic_core.files import json_digest, sha256_file
from plastic_core.linalg import on_cpu

from plastic_export.evaluation.convention import CONVENTIONS, OWN, Like

Beginning = Literal["every window", "the text", "none"]


@dataclass(frozen=True)
class EvaluationSettings:
    """What two evaluations must have in common, so that their figures can be compared.

    Attributes:
        text: Name of the text's file.
        text_sha256: SHA-256 of the file.
        tokens_sha256: SHA-256 of the windows' token ids, int32, which the tokenizer made of it.
        window: Tokens of a window.
        windows: How many there are.
        scored: How many tokens of each are scored, the last ones.
        bos: What begins with the tokens that the tokenizer puts before a text.
        precision: Of the activations: ``"float32"``, or ``"as stored"``.
        device: ``"cpu"`` or ``"gpu"``.
        like: The tool whose rules were followed, None for our own.
        errors_over: What errors take for independent.

    Examples:
        >>> (result,) = evaluate("SRC", ["text.txt"], window=24, windows=8)
        >>> again = evaluate("PACKED", ["text.txt"], window=24, windows=8)[0]
        >>> result.settings.digest == again.settings.digest
        True
    """

    text: str
    text_sha256: str
    tokens_sha256: str
    window: int
    windows: int
    scored: int
    bos: Beginning
    precision: str
    device: str
    like: Like | None = None
    errors_over: Literal["windows", "tokens"] = "windows"

    @property
    def digest(self) -> str:
        """The first 12 digits of the SHA-256 of all of it but the name of the file."""
        record = {**asdict(self), "text": None}
        return json_digest(record)[:12]


def settings_of(
    file: str | Path, tokens: mx.array, prefix: Sequence[int], like: Like | None
) -> EvaluationSettings:
    """Return the settings of a text in windows.

    Args:
        file: The text.
        tokens: Its windows, shape (windows, tokens).
        prefix: The tokens that begin every text.
        like: The tool whose rules are followed.

    Examples:
        >>> found = settings_of("text.txt", mx.array([[1, 5, 6], [1, 7, 8]]), [1], None)
        >>> found.window, found.windows, found.scored, found.bos
        (3, 2, 2, 'every window')
    """
    rule = CONVENTIONS[like] if like else OWN
    windows, window = tokens.shape
    return EvaluationSettings(
        text=Path(file).name,
        text_sha256=sha256_file(file),
        tokens_sha256=hashlib.sha256(np.asarray(tokens).tobytes()).hexdigest(),
        window=window,
        windows=windows,
        scored=window - 1 - rule.context(window),
        bos=_beginning(np.asarray(tokens), prefix),
        precision="float32" if on_cpu() else "as stored",
        device="cpu" if on_cpu() else "gpu",
        like=like,
        errors_over="tokens" if rule.over_tokens else "windows",
    )


def reference_settings(
    texts: Sequence[EvaluationSettings], window: int, windows: int | None
) -> dict[str, Any]:
    """Return what log-probabilities depend on beside the model, by the names for messages.

    Args:
        texts: The settings of all texts, at least one.
        window: Tokens of a window, as asked for.
        windows: How many at most, as asked for.

    Examples:
        >>> one = settings_of("text.txt", mx.array([[1, 5, 6]]), [1], None)
        >>> reference_settings([one], 3, 24)["number of windows"]
        24
    """
    found = {
        "window length": window,
        "number of windows": windows,
        "text": [one.text_sha256 for one in texts],
        "tokenizer": [one.tokens_sha256 for one in texts],
        "device": texts[0].device,
        "precision": texts[0].precision,
    }
    like = texts[0].like
    return {"convention": like, **found} if like else found


def _beginning(tokens: np.ndarray, prefix: Sequence[int]) -> Beginning:
    if not prefix:
        return "none"
    begins = tokens[:, 0] == prefix[0]
    if begins.all():
        return "every window"
    return "the text" if begins[0] else "none"
