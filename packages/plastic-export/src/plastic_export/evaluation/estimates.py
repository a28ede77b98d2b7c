"""The measures of a checkpoint on a text: means over windows with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_export.evaluation.distance import Distance, Draws, distance_of
from plastic_export.evaluation.intervals import (
    Estimated,
    Interval,
    exp_or_inf,
    interval_within,
    mean_and_error,
)
from plastic_export.evaluation.measures import TokenMeasures
from plastic_export.evaluation.settings import EvaluationSettings

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """A checkpoint against the first one, window by window, or token by token.

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
        """Better or worse only where the interval leaves out zero, or one of them is infinite."""
        low, high = self.interval or ((-inf, inf) if abs(self.mean) < inf else 2 * (self.mean,))
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
class RunSpeed:
    """What a run over a text, or several, took.

    Attributes:
        tokens_per_second: Tokens read in a second, with the reading of the weights and the
            comparison of the predictions.
        peak_memory: Bytes of MLX's arrays at most, as mlx-lm counts them; those of NumPy, which
            computes in its place on a CPU, are not among them.

    Examples:
        >>> (result,) = evaluate("SRC", ["text.txt"], window=24, windows=8)
        >>> result.runtime.tokens_per_second > 0, result.runtime.peak_memory > 0
        (True, True)
    """

    tokens_per_second: float
    peak_memory: int


@dataclass(frozen=True)
class ModelSize:
    """How large a checkpoint is.

    Attributes:
        model_bytes: Bytes of its weight files, and of an adapter that it was written with.
        bits_per_weight: Eight times that, per entry of all matrices of the largest of the
            checkpoints that were compared, so that matrices in factors count as what they stand
            for; None where it has no matrix that can be counted.

    Examples:
        >>> (result,) = evaluate("PACKED", ["text.txt"], reference="SRC", window=24, windows=8)
        >>> result.size.model_bytes == Path("PACKED/model.safetensors").stat().st_size
        True
        >>> 4 < result.size.bits_per_weight < 16
        True
    """

    model_bytes: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on one text. Standard errors are over windows, None if there is only one.

    Attributes:
        text: Name of the text's file.
        windows: How many windows were run.
        tokens: How many tokens were scored: all but the first of each window, unless the settings
            say otherwise.
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
        not_finite: Fraction of the tokens whose predictions are not finite; they count as
            infinitely wrong.
        lost: Where predictions stop being finite: the window and, where it is known, the block.
        distance: What else was compared with the reference; None without one.
        size: How large the checkpoint is.
        runtime: How fast it ran, and in how much memory; two runs differ in it.
        settings: What the figures depend on beside the checkpoint and the reference.

    Examples:
        >>> (result,) = evaluate("SRC", ["text.txt"], window=24, windows=8)
        >>> low, high = result.perplexity_interval
        >>> low < result.perplexity < high
        True
        >>> result.settings.scored, result.not_finite
        (23, 0.0)
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
    not_finite: float = 0.0
    lost: str | None = None
    distance: Distance | None = None
    size: ModelSize | None = None
    runtime: RunSpeed | None = field(default=None, compare=False)
    settings: EvaluationSettings | None = None

    @property
    def nll_interval(self) -> Interval | None:
        """95 % confidence interval of ``nll``, cut off at 0; None if there is only one window."""
        return interval_within(self.nll, self.nll_error, self._draws, least=0)

    @property
    def perplexity_interval(self) -> Interval | None:
        """95 % confidence interval of ``perplexity``, at least 1: ``exp`` of that of ``nll``."""
        limits = self.nll_interval
        return None if limits is None else (exp_or_inf(limits[0]), exp_or_inf(limits[1]))

    @property
    def kl_interval(self) -> Interval | None:
        """95 % confidence interval of ``kl``, cut off at 0: no divergence is below."""
        return interval_within(self.kl, self.kl_error, self._draws, least=0)

    @property
    def top1_interval(self) -> Interval | None:
        """95 % confidence interval of ``top1``, cut off at 0 and 1."""
        return interval_within(self.top1, self.top1_error, self._draws, 0, 1)

    @property
    def _draws(self) -> int:
        """How many draws the errors are over."""
        over_tokens = self.settings is not None and self.settings.errors_over == "tokens"
        return self.tokens if over_tokens else self.windows


def estimate(
    checkpoint: str,
    measured: TokenMeasures,
    settings: EvaluationSettings,
    *,
    first: TokenMeasures | None = None,
    vocabulary: Vocabulary | None = None,
    overflows: bool = False,
    lost: str | None = None,
    size: ModelSize | None = None,
    runtime: RunSpeed | None = None,
) -> Evaluation:
    """Summarise what was measured at every token of a text.

    Args:
        checkpoint: What was measured.
        measured: The measures of a text.
        settings: What they depend on.
        first: The same of the first checkpoint, if this is another.
        vocabulary: What the models were compared on, if it is known.
        overflows: See `Evaluation`.
        lost: See `Evaluation`.
        size: See `Evaluation`.
        runtime: See `Evaluation`.

    Examples:
        >>> nll = np.array([[1.0, 3.0], [2.0, 2.0]])
        >>> settings = EvaluationSettings("t", "", "", 3, 2, 2, "none", "float32", "cpu")
        >>> found = estimate("SRC", TokenMeasures(nll, nll > 0), settings)
        >>> found.nll, found.nll_error, found.tokens
        (2.0, 0.0, 4)
    """
    draws = np.ravel if settings.errors_over == "tokens" else _over_windows
    nll = Estimated.of(draws(measured.nll))
    perplexity = nll.exponential()
    kl, kl_error = _mean(measured.kl, draws)
    top1, top1_error = _mean(measured.top1, draws)
    return Evaluation(
        text=settings.text,
        windows=settings.windows,
        tokens=measured.nll.size,
        nll=nll.value,
        nll_error=nll.error,
        perplexity=perplexity.value,
        perplexity_error=perplexity.error,
        kl=kl,
        kl_error=kl_error,
        top1=top1,
        top1_error=top1_error,
        checkpoint=checkpoint,
        difference=None if first is None else _difference(measured, first, draws),
        vocabulary=vocabulary.tokens if vocabulary else None,
        padding=vocabulary.padding if vocabulary else 0,
        overflows=overflows,
        not_finite=1 - float(measured.is_finite.mean()),
        lost=lost,
        distance=distance_of(measured, draws),
        size=size,
        runtime=runtime,
        settings=settings,
    )


def _mean(values: NDArray[Any] | None, draws: Draws) -> tuple[float | None, float | None]:
    """Return the mean and its error, of what was measured."""
    return (None, None) if values is None else mean_and_error(draws(values.astype(np.float64)))


def _over_windows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each window, the tokens of which are not independent."""
    means: NDArray[np.float64] = values.mean(axis=1)
    return means


def _difference(measured: TokenMeasures, first: TokenMeasures, draws: Draws) -> Comparison:
    ours, theirs = (measured.nll, first.nll)
    if measured.kl is not None and first.kl is not None:
        ours, theirs = measured.kl, first.kl
    with np.errstate(invalid="ignore"):  # infinity less infinity
        differences = draws(ours) - draws(theirs)
    mean, error = mean_and_error(differences)
    limits = interval_within(mean, error, len(differences))
    return Comparison("nll" if measured.kl is None else "kl", mean, error, limits)
