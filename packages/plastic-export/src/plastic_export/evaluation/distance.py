"""How far a model is from its reference on a text, in the measures that people compare by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from plastic_export.evaluation.distribution import Distribution
from plastic_export.evaluation.intervals import Estimated
from plastic_export.evaluation.measures import TokenMeasures

Draws = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Makes independent draws of what every token has, shape (windows, tokens)."""


WORST = 5
"""The windows that are named."""


@dataclass(frozen=True)
class WindowDivergence:
    """The divergence in one window of a text.

    Attributes:
        window: Its number among those that were read, from 1.
        kl: Mean KL(reference || model) in it, nats per token.
    """

    window: int
    kl: float


@dataclass(frozen=True)
class Distance:
    """A model beside its reference, over the scored tokens of one text, past mean KL and top-1.

    ``p`` is the probability of the token that follows in the text. Errors are over the draws of
    the evaluation, windows or tokens.

    Attributes:
        kl: KL(reference || model), nats per token.
        kl_over_tokens: How it is distributed over the tokens.
        back: KL(model || reference), nats per token; None where nobody asked for it.
        reference_perplexity: The perplexity of the reference.
        log_ratio: Logarithm of the perplexity over the reference's, nats per token.
        ratio: The perplexity over the reference's.
        correlation: Of the negative log-likelihoods of both over the tokens, as llama.cpp prints
            it; None where one of them is the same for all, or not finite.
        top5: Fraction of the tokens where both hold the same five to be the likeliest, in the same
            order, as exllamav3 counts.
        change: The mean of ``p(model) - p(reference)``.
        change_rms: The root of the mean of its square.
        change_over_tokens: How it is distributed over the tokens.
        worst_windows: The five windows of the largest mean KL, the largest first.

    Examples:
        >>> (result,) = evaluate("PACKED", ["text.txt"], reference="SRC", window=24, windows=8)
        >>> distance = result.distance
        >>> distance.kl_over_tokens.percentiles[90.0] > distance.kl_over_tokens.median > 0
        True
        >>> low, high = distance.ratio.interval
        >>> low < result.perplexity / distance.reference_perplexity < high
        True
    """

    kl_over_tokens: Distribution
    back: Estimated | None
    reference_perplexity: float
    log_ratio: Estimated
    ratio: Estimated
    correlation: float | None
    top5: Estimated
    change: Estimated
    change_rms: Estimated
    change_over_tokens: Distribution
    worst_windows: tuple[WindowDivergence, ...] = ()


@np.errstate(invalid="ignore")  # infinity less infinity, of a token that both hold impossible
def distance_of(measured: TokenMeasures, draws: Draws) -> Distance | None:
    """Return the distance that tokens show, None where they were measured without a reference.

    Examples:
        >>> nll, same = np.array([[1.0, 2.0]]), np.ones((1, 2), bool)
        >>> tokens = TokenMeasures(nll, same, nll, 0 * nll, None, same, same)
        >>> distance = distance_of(tokens, np.ravel)
        >>> distance.ratio.value, distance.change_rms.value
        (1.0, 0.0)
    """
    theirs, kl, top5 = measured.reference_nll, measured.kl, measured.top5
    if theirs is None or kl is None or top5 is None:
        return None
    log_ratio = Estimated.of(draws(measured.nll - theirs))
    change = np.exp(-measured.nll) - np.exp(-theirs)
    return Distance(
        kl_over_tokens=Distribution.of(kl),
        back=None if measured.back is None else Estimated.of(draws(measured.back), least=0),
        reference_perplexity=Estimated(float(theirs.mean())).exponential().value,
        log_ratio=log_ratio,
        ratio=log_ratio.exponential(),
        correlation=_correlation(measured.nll, theirs),
        top5=Estimated.of(draws(top5.astype(np.float64)), least=0, most=1),
        change=Estimated.of(draws(change), least=-1, most=1),
        change_rms=Estimated.of(draws(change**2), least=0).root(),
        change_over_tokens=Distribution.of(change),
        worst_windows=_worst(kl),
    )


def _worst(kl: NDArray[np.float64]) -> tuple[WindowDivergence, ...]:
    """Return the windows of the largest mean; of equal ones the first."""
    means = kl.mean(axis=1)
    first = np.argsort(-means, kind="stable")[:WORST]
    return tuple(WindowDivergence(int(i) + 1, float(means[i])) for i in first)


def _correlation(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float | None:
    """Return Pearson's correlation."""
    if not isfinite(ours.sum() + theirs.sum()):
        return None
    x, y = ours - ours.mean(), theirs - theirs.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale else None
