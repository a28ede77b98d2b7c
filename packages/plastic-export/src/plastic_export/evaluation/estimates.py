"""The measures of a checkpoint on a text: means over windows with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log
from sys import float_info
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_export.evaluation.intervals import Interval, confidence_interval, mean_and_error

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """A checkpoint against the first one, window by window.

    Attributes:
        measure: What is compared: ``"kl"`` or, without a reference, ``"nll"``.
        mean: Mean over the windows of its own minus the first one's, nats per token; negative
            where it is better.
        error: Standard error of ``mean``, None if there is only one window.
        interval: 95 % confidence interval of ``mean``. Each holds by itself: of twenty
            comparisons one is expected to miss.

    Examples:
        >>> Comparison("kl", mean=0.25, error=0.05, interval=(0.13, 0.37)).verdict
        'worse'
    """

    measure: Literal["kl", "nll"]
    mean: float
    error: float | None
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the interval leaves out zero."""
        low, high = self.interval or (-inf, inf)
        if high < 0:
            return "better"
        return "worse" if low > 0 else "no difference shown"


class Vocabulary(NamedTuple):
    """The tokens that models are compared on.

    Attributes:
        tokens: How many take part.
        padding: How many more one of the models has rows for.
    """

    tokens: int
    padding: int


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on one text. Standard errors are over windows, None if there is only one.

    Attributes:
        text: Name of the text's file.
        windows: How many windows were run.
        tokens: How many tokens were predicted: all but the first of each window.
        nll: Mean negative log-likelihood, nats per token.
        nll_error: Its standard error.
        perplexity: ``exp(nll)``.
        perplexity_error: Its standard error to first order, ``perplexity * nll_error``.
        kl: Mean Kullback-Leibler divergence KL(reference || model), nats per token; None without
            a reference.
        kl_error: Its standard error.
        top1: Fraction of positions where both hold the same token to be the likeliest.
        top1_error: Its standard error.
        checkpoint: What was evaluated, as it was given.
        difference: The difference to the first of several checkpoints; None for that one.
        vocabulary: How many tokens took part, those that a tokenizer knows and all models have.
        padding: How many rows of the widest vocabulary took no part.
        overflows: Whether the checkpoint, stored in float16, is finite in float32 alone, in which
            it was measured.

    Examples:
        >>> (result,) = evaluate("SRC", ["text.txt"], window=24, windows=8)
        >>> low, high = result.perplexity_interval
        >>> low < result.perplexity < high
        True
    """

    text: str
    windows: int
    tokens: int
    nll: float
    nll_error: float | None
    perplexity: float
    perplexity_error: float | None
    kl: float | None = None
    kl_error: float | None = None
    top1: float | None = None
    top1_error: float | None = None
    checkpoint: str = ""
    difference: Comparison | None = None
    vocabulary: int | None = None
    padding: int = 0
    overflows: bool = False

    @property
    def nll_interval(self) -> Interval | None:
        """95 % confidence interval of ``nll``, None if there is only one window."""
        return _interval(self.nll, self.nll_error, self.windows)

    @property
    def perplexity_interval(self) -> Interval | None:
        """95 % confidence interval of ``perplexity``: the exponentials of that of ``nll``."""
        limits = self.nll_interval
        return None if limits is None else (_exp(limits[0]), _exp(limits[1]))

    @property
    def kl_interval(self) -> Interval | None:
        """95 % confidence interval of ``kl``, cut off at 0: no divergence is below."""
        return _interval(self.kl, self.kl_error, self.windows, 0, inf)

    @property
    def top1_interval(self) -> Interval | None:
        """95 % confidence interval of ``top1``, cut off at 0 and 1."""
        return _interval(self.top1, self.top1_error, self.windows, 0, 1)


def estimate(
    checkpoint: str,
    text: str,
    tokens: int,
    measured: NDArray[np.float64],
    *,
    first: NDArray[np.float64] | None = None,
    vocabulary: Vocabulary | None = None,
    overflows: bool = False,
) -> Evaluation:
    """Summarise what was measured within each window.

    Args:
        checkpoint: What was measured.
        text: Name of the text's file.
        tokens: How many tokens were predicted.
        measured: The result of `measure_texts`, shape (measures, windows).
        first: The same of the first checkpoint, if this is another.
        vocabulary: What the models were compared on, if it is known.
        overflows: See `Evaluation`.
    """
    estimates = [mean_and_error(row) for row in measured]
    nll, nll_error = estimates[0]
    kl, kl_error = estimates[1] if len(estimates) > 1 else (None, None)
    top1, top1_error = estimates[2] if len(estimates) > 2 else (None, None)
    perplexity = _exp(nll)
    return Evaluation(
        text=text,
        windows=measured.shape[1],
        tokens=tokens,
        nll=nll,
        nll_error=nll_error,
        perplexity=perplexity,
        perplexity_error=None if nll_error is None else perplexity * nll_error,
        kl=kl,
        kl_error=kl_error,
        top1=top1,
        top1_error=top1_error,
        checkpoint=checkpoint,
        difference=None if first is None else _difference(measured, first),
        vocabulary=vocabulary.tokens if vocabulary else None,
        padding=vocabulary.padding if vocabulary else 0,
        overflows=overflows,
    )


def _difference(measured: NDArray[np.float64], first: NDArray[np.float64]) -> Comparison:
    row = min(1, len(measured) - 1)
    mean, error = mean_and_error(measured[row] - first[row])
    limits = _interval(mean, error, measured.shape[1])
    return Comparison("kl" if row else "nll", mean, error, limits)


def _interval(
    mean: float | None,
    error: float | None,
    windows: int,
    least: float = -inf,
    most: float = inf,
) -> Interval | None:
    if mean is None or error is None:
        return None
    low, high = confidence_interval(mean, error, windows)
    return max(low, least), min(high, most)


def _exp(x: float) -> float:
    return exp(x) if x <= log(float_info.max) else inf
