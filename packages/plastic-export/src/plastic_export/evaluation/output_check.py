"""Proof before success: what was written is run before it is called finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, noting
from plastic_core.linalg import to_numpy

from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.finite import blaming_weights
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.warning import told_before
from plastic_export.evaluation.by_blocks import logits_by_blocks
from plastic_export.evaluation.check_window import check_window
from plastic_export.model.divergence import divergence_in, log_softmax_in
from plastic_export.model.library import brief
from plastic_export.model.load import load_watched

_FACTOR, _SHARE, _FLOOR, _MOST = 10.0, 0.1, 0.01, 1.5
UNCHECKED = "give --no-check to write it without running it"

Predictions = NDArray[np.float32]
"""Log-probabilities of what follows each token, shape (tokens, vocabulary)."""


class FailedCheckError(RuntimeError):
    """What was written does not run as its source does.

    Examples:
        >>> try:
        ...     raise FailedCheckError("OUT: its predictions are not finite")
        ... except RuntimeError as error:
        ...     print(error)
        OUT: its predictions are not finite
    """


@dataclass(frozen=True)
class OutputCheck:
    """What one window of text showed of an output, loaded as stock mlx-lm loads it.

    Attributes:
        text: What the window was cut from.
        tokens: How many tokens it has.
        kl: KL(source || output), nats per token.
        top1: Fraction of the tokens after which both hold the same next token to be the likeliest.
        predicted: The divergence that the plan predicted; None where nothing was predicted.
        limit: The divergence beyond which the output would have been refused.

    Examples:
        >>> result = execute_plan("SRC", "OUT", "plan.json")
        >>> result.checked.kl < result.checked.limit
        True
        >>> result.checked.predicted == result.plan.predicted
        True
    """

    text: str
    tokens: int
    kl: float
    top1: float
    predicted: float | None
    limit: float


def divergence_limit(unrelated: float, vocabulary: int, predicted: float | None) -> float:
    """Return the largest divergence that an output may have on one window, nats per token.

    A model that knows nothing is at most ``log(vocabulary)`` from the source if it holds all
    tokens to be alike, and about ``unrelated`` if it is as sure of itself as the source. The limit
    is the larger one of ``log(vocabulary)`` and ``1.5 unrelated``. Where there is a prediction, it
    is ``10 predicted + 0.1 unrelated``, and at least 0.01 nats, if that is less.

    Args:
        unrelated: The divergence between predictions of the source for unrelated places of the
            window.
        vocabulary: How many tokens are predicted.
        predicted: The predicted divergence; None where nothing was predicted.

    Note:
        A heuristic, made to let every bad compression pass and to stop most wrong ones; one
        window says no more. The Llama of 5.8 M parameters (``unrelated`` 4.8, ``log(vocabulary)``
        7.6) by rank: 0.001 nats where 90 % of the bytes stay, 0.05 of 50 %, 1.4 of 10 %. The same
        with something wrong: 0.2 with ``down_proj`` 1.64 times as large or with the rows of one
        matrix shuffled, 2.1 with 1 added to all norms, 3.8 with them 0 or all ``q_proj`` shuffled,
        5.4 with the embedding and 8.1 with the head shuffled. So a prediction of 0.1 nats or less
        stops what is wrong everywhere, and without one only what is worse than knowing nothing is
        stopped. Random models of 25 types (``unrelated`` 0.2 to 3.4) came to 0.1 to 2.1 times
        ``unrelated`` where 20 to 90 % of the bytes stayed.
    """
    limit = max(math.log(vocabulary), _MOST * unrelated)
    if predicted is None:
        return limit
    return min(limit, max(_FLOOR, _FACTOR * predicted + _SHARE * unrelated))


class OutputChecker:
    """Compares outputs with the checkpoint that they stand for on one window of tokens.

    Args:
        checkpoint: The open source.
        calibration: Text to take the window from; see `check_window`.
        predicted: The predicted divergence of the output, nats per token.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        calibration: Calibration | None = None,
        predicted: float | None = None,
    ) -> None:
        self._checkpoint, self._calibration, self._predicted = checkpoint, calibration, predicted

    def run_source(self) -> None:
        """Run the source over the window.

        Raises:
            FormatError: If mlx-lm cannot load or run it, or its predictions are not finite (the
                weight to blame is named).
            ModuleNotFoundError: If mlx-lm is not installed.
            OSError: If a file cannot be read.
        """
        folder = self._checkpoint.folder
        compared = noting(f"an output is compared with it; {UNCHECKED}")
        with compared, blaming_weights(self._checkpoint):
            try:
                self._window = check_window(self._checkpoint, self._calibration)
                self._log_q = _predictions(folder, self._window.tokens)
            except (FormatError, OSError, MemoryError, ImportError):
                raise
            except Exception as error:  # mlx-lm's own code, which raises what it likes
                reason = f"mlx-lm cannot run it: {brief(error)}"
                raise FormatError.about(folder, reason, "take a checkpoint that runs") from error
            if not np.isfinite(_mean_divergence(self._log_q, self._log_q)):
                reason = f"its predictions for {self._window.text} are not finite"
                remedy = "look for NaN and infinities in the weights"
                raise FormatError.about(folder, reason, remedy)

    def check(self, folder: Path, name: str | Path) -> OutputCheck:
        """Run an output over the window, after `run_source`.

        Args:
            folder: Where its files are at the moment.
            name: What it is called in errors.

        Raises:
            FailedCheckError: If mlx-lm cannot load or run it, its predictions are not finite, or
                they are further from the source's than `divergence_limit` allows.
            OSError: If a file cannot be read.
        """
        log_q, log_p = self._log_q, self._run_output(folder, name)
        kl = _mean_divergence(log_q, log_p)
        top1 = float((log_q.argmax(axis=-1) == log_p.argmax(axis=-1)).mean())
        unrelated = _mean_divergence(log_q, np.roll(log_q, len(log_q) // 2, axis=0))
        limit = divergence_limit(unrelated, log_q.shape[1], self._predicted)
        if not kl <= limit:
            raise FailedCheckError(f"{name}: {self._verdict(kl, top1, limit)}; {UNCHECKED}")
        text, tokens = self._window.text, len(log_q)
        return OutputCheck(text, tokens, kl, top1, self._predicted, limit)

    def _run_output(self, folder: Path, name: str | Path) -> Predictions:
        """Return its predictions, whatever goes wrong as one kind of error."""
        try:
            with told_before():
                load_watched(folder, lambda weights: weights, foreign=False)  # as mlx-lm itself
                log_p = _predictions(folder, self._window.tokens)
            if log_p.shape != self._log_q.shape:
                raise ValueError(
                    f"it predicts {log_p.shape[1]} tokens, its source {self._log_q.shape[1]}"
                )
        except (OSError, MemoryError, ImportError):
            raise
        except Exception as error:  # mlx-lm's own code, which raises what it likes
            reason = str(error) if isinstance(error, FormatError) else brief(error)
            reason = f"what was written cannot be run: {reason}"
            raise FailedCheckError(f"{name}: {reason}; {UNCHECKED}") from error
        return log_p

    def _verdict(self, kl: float, top1: float, limit: float) -> str:
        if not np.isfinite(kl):
            return f"the predictions of what was written for {self._window.text} are not finite"
        asked = "" if self._predicted is None else f" where {self._predicted:.4g} was predicted"
        return (
            f"what was written is {kl:.4g} nats per token from its source on "
            f"{self._window.text}{asked}, top-1 agreement {top1:.1%}; at most {limit:.4g} may be"
        )


def run_alone(folder: Path, name: str | Path) -> int:
    """Run one window of text through a checkpoint that is compared with nothing.

    Args:
        folder: Where its files are at the moment.
        name: What it is called in errors.

    Returns:
        How many tokens ran through it.

    Raises:
        FailedCheckError: If mlx-lm cannot load or run it, or its predictions are not finite.
        OSError: If a file cannot be read.
    """
    try:
        with told_before(), open_checkpoint(folder) as checkpoint:
            window = check_window(checkpoint, None)
            log_p = _predictions(folder, window.tokens)
        if not np.isfinite(_mean_divergence(log_p, log_p)):
            raise ValueError(f"its predictions for {window.text} are not finite")
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # mlx-lm's own code, which raises what it likes
        reason = str(error) if isinstance(error, FormatError) else brief(error)
        reason = f"what was written cannot be run: {reason}"
        raise FailedCheckError(f"{name}: {reason}; {UNCHECKED}") from error
    return len(log_p)


def _predictions(folder: Path, tokens: mx.array) -> Predictions:
    logits = to_numpy(logits_by_blocks(folder, tokens))[0]
    with np.errstate(invalid="ignore"):  # what is not finite is told by name
        log_p: Predictions = log_softmax_in(np, logits)
    return log_p


def _mean_divergence(log_q: Predictions, log_p: Predictions) -> float:
    """Return KL(q || p), the mean over the tokens."""
    with np.errstate(invalid="ignore"):
        kl = divergence_in(np, np.exp(log_q), log_q, log_p)
    return max(0.0, float(kl.mean(dtype=np.float64))) if np.isfinite(kl).all() else float("inf")
