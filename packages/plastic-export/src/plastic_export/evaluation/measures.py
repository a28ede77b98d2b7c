"""What the predictions of a model show at every token, by themselves and beside a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_runtime.distributed import Team

from plastic_export.model.divergence import divergence_in, in_library, library, log_softmax_in
from plastic_export.model.numpy_attention import use_numpy_attention

LOGITS = 2**23  # at most so many logits of one model at a time, unless one window has more
ROWS = 8  # and at most so many windows
TOP = 5  # the likeliest tokens whose order is compared

LogProbabilities = list[NDArray[np.float32]] | list[mx.array]
"""One array per window, float32, of shape (tokens, vocabulary)."""
Values = NDArray[np.float64]
"""A number for every token that is scored, shape (windows, tokens)."""


class Windows(NamedTuple):
    """A text as windows of tokens.

    Attributes:
        text: What it is called.
        tokens: Shape (windows, tokens).
    """

    text: str
    tokens: mx.array


@dataclass(frozen=True)
class TokenMeasures:
    """What every scored token of some windows showed; each of shape (windows, tokens).

    A token whose prediction is not finite counts as infinitely wrong: its losses and divergences
    are infinite, it has no probability, and nothing agrees.

    Attributes:
        nll: Negative log-likelihood, nats.
        is_finite: Whether all that was measured is finite.
        reference_nll: The same as ``nll`` of the reference; this and what follows None without one.
        kl: KL(reference || model), nats.
        back: KL(model || reference), nats; None too where nobody asked for it.
        top1: Whether both hold the same token to be the likeliest.
        top5: Whether both hold the same five to be, in the same order.
    """

    nll: Values
    is_finite: NDArray[np.bool_]
    reference_nll: Values | None = None
    kl: Values | None = None
    back: Values | None = None
    top1: NDArray[np.bool_] | None = None
    top5: NDArray[np.bool_] | None = None


def joined(parts: Sequence[TokenMeasures]) -> TokenMeasures:
    """Return the measures of all windows of several batches.

    Examples:
        >>> nothing = TokenMeasures(np.zeros((2, 3)), np.ones((2, 3), bool))
        >>> joined([nothing, nothing]).nll.shape
        (4, 3)
    """
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(TokenMeasures)}
    whole: dict[str, Any] = {
        name: None if each[0] is None else np.concatenate(each) for name, each in columns.items()
    }
    return TokenMeasures(**whole)


def gathered_measures(
    team: Team, own: Sequence[TokenMeasures | None], lengths: Sequence[int]
) -> list[TokenMeasures]:
    """Return the measures of all windows of every text, those of the first process first.

    Args:
        team: The processes; each calls this with what it has.
        own: What this one measured of each text; None where it had no window of it.
        lengths: How many tokens of a window of each text are scored.

    Returns:
        Every number with the bits that the process had which measured it.

    Examples:
        >>> one = TokenMeasures(np.zeros((2, 3)), np.ones((2, 3), bool))
        >>> gathered_measures(Team(), [one], [3])[0].nll.shape
        (2, 3)
    """
    if team.size == 1:
        return [measures for measures in own if measures is not None]
    return [_gathered(team, *text) for text in zip(own, lengths, strict=True)]


def _gathered(team: Team, own: TokenMeasures | None, length: int) -> TokenMeasures:
    names = [f.name for f in fields(TokenMeasures) if getattr(own, f.name, None) is not None]
    kinds = {name: getattr(own, name).dtype.str for name in names}
    known: dict[str, str] = {}
    for found in team.gathered(kinds):
        known |= found
    whole: dict[str, Any] = {}
    for name, kind in known.items():
        values = getattr(own, name) if own is not None else np.zeros((0, length), kind)
        parts = team.gathered_arrays(values.reshape(-1))
        whole[name] = np.concatenate(parts).reshape(-1, length)
    return TokenMeasures(**whole)


def rows_at_once(length: int, width: int) -> int:
    """Return how many windows of ``length`` tokens, with ``width`` logits each, run at a time."""
    return min(ROWS, max(1, LOGITS // (length * width)))


def log_probabilities(
    model: nn.Module, tokens: mx.array, vocabulary: int | None = None, *, context: int = 0
) -> LogProbabilities:
    """Return the log-probabilities of what follows each token, shape (windows, tokens).

    Args:
        model: Maps tokens to logits.
        tokens: Shape (windows, tokens).
        vocabulary: How many tokens may follow; by default all that the model has logits for.
        context: How many tokens of each window are read, with nothing asked about what follows.
    """
    with use_numpy_attention():
        return log_probabilities_of(model(tokens)[:, context:], vocabulary)


def log_probabilities_of(logits: mx.array, vocabulary: int | None = None) -> LogProbabilities:
    """Return the log-probabilities that logits mean; see `log_probabilities`."""
    logits = logits[..., :vocabulary].astype(mx.float32)
    mx.eval(logits)
    xp = library()
    with np.errstate(invalid="ignore"):  # what is not finite shows in the measures
        return [log_softmax_in(xp, in_library(window, xp)) for window in logits]


@np.errstate(invalid="ignore")
def token_divergences(log_q: LogProbabilities, log_p: LogProbabilities) -> Values:
    """Return KL(q || p) at every token, nats, shape (windows, tokens).

    Raises:
        ValueError: If the vocabularies have other sizes.

    Examples:
        >>> q, p = (np.log(np.array([row], "f4")) for row in ([0.5, 0.5], [0.25, 0.75]))
        >>> token_divergences([q], [p]).round(3)
        array([[0.144]])
    """
    _check_vocabulary(log_p[0].shape[-1], log_q[0].shape[-1])
    xp = library()
    pairs: list[tuple[Any, Any]] = list(zip(log_q, log_p, strict=True))
    return _array([divergence_in(xp, xp.exp(q), q, p) for q, p in pairs])


@np.errstate(invalid="ignore")
def measures_of(
    tokens: mx.array,
    log_p: LogProbabilities,
    log_q: LogProbabilities | None,
    *,
    both_directions: bool = False,
) -> TokenMeasures:
    """Measure the last tokens of some windows, as many as there are predictions of.

    Args:
        tokens: The windows, shape (windows, tokens).
        log_p: What the model holds of them.
        log_q: What the reference holds of them, if there is one.
        both_directions: Whether KL(model || reference) is measured too.

    Raises:
        ValueError: If the vocabulary of the reference has another size.
    """
    targets = list(np.asarray(tokens)[:, -len(log_p[0]) :, None])
    nll = _likelihoods(log_p, targets)
    if log_q is None:
        return _infinitely_wrong(TokenMeasures(nll, np.isfinite(nll)))
    kl = token_divergences(log_q, log_p)
    top = [_likeliest(q) == _likeliest(p) for q, p in zip(log_q, log_p, strict=True)]
    return _infinitely_wrong(
        TokenMeasures(
            nll,
            np.isfinite(nll) & np.isfinite(kl),
            reference_nll=_likelihoods(log_q, targets),
            kl=kl,
            back=token_divergences(log_p, log_q) if both_directions else None,
            top1=np.array([same[:, 0] for same in top]),
            top5=np.array([same.all(axis=-1) for same in top]),
        )
    )


def _infinitely_wrong(m: TokenMeasures) -> TokenMeasures:
    """Let what is not finite be infinite and agree with nothing."""

    def infinite(values: Values | None) -> Values | None:
        return None if values is None else np.where(m.is_finite, values, np.inf)

    def false(flags: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        return None if flags is None else flags & m.is_finite

    return TokenMeasures(
        np.where(m.is_finite, m.nll, np.inf),
        m.is_finite,
        reference_nll=m.reference_nll,
        kl=infinite(m.kl),
        back=infinite(m.back),
        top1=false(m.top1),
        top5=false(m.top5),
    )


def _likelihoods(log_p: LogProbabilities, targets: Sequence[NDArray[Any]]) -> Values:
    """Return minus the log-probability of every target."""
    xp = library()
    pairs: list[tuple[Any, Any]] = list(zip(log_p, map(xp.array, targets), strict=True))
    return _array([-xp.take_along_axis(p, t, axis=-1)[:, 0] for p, t in pairs])


def _likeliest(log_p: Any) -> NDArray[np.int64]:
    """Return the likeliest tokens, the first of them first, shape (tokens, five)."""
    xp, count = library(), min(TOP, log_p.shape[-1])
    some = xp.argpartition(-log_p, count - 1, axis=-1)[:, :count]
    order = xp.argsort(-xp.take_along_axis(log_p, some, axis=-1), axis=-1)
    found: NDArray[np.int64] = np.array(xp.take_along_axis(some, order, axis=-1), np.int64)
    # Among equals the first, as in every other tool.
    found[:, 0] = np.array(log_p.argmax(axis=-1))
    return found


def _array(windows: Sequence[Any]) -> Values:
    return np.array([np.asarray(window, np.float64) for window in windows])


def _check_vocabulary(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise ValueError(
            f"`reference` must predict {ours} tokens, as the checkpoint does, and predicts {theirs}"
        )
