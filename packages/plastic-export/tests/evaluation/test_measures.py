"""What every token shows, and what follows of it, against independent formulas in NumPy."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from plastic_export.evaluation.distance import Distance, distance_of
from plastic_export.evaluation.estimates import Evaluation, estimate
from plastic_export.evaluation.measures import (
    TokenMeasures,
    joined,
    log_probabilities_of,
    measures_of,
)
from plastic_export.evaluation.settings import EvaluationSettings

WINDOWS, SCORED, VOCABULARY = 3, 4, 9
SHAPE = (WINDOWS, SCORED, VOCABULARY)
EPS = 64 * VOCABULARY * float(np.finfo(np.float32).eps)
LOGITS = arrays(np.float32, SHAPE, elements=st.floats(-12, 12, width=32))
ZEROS = np.zeros((WINDOWS, SCORED + 1), np.int32)
TOKENS = arrays(np.int32, (WINDOWS, SCORED + 1), elements=st.integers(0, VOCABULARY - 1))

Array = NDArray[Any]


def settings(errors_over: str) -> EvaluationSettings:
    shape = (SCORED + 1, WINDOWS, SCORED)
    return EvaluationSettings(
        "t", "", "", *shape, "none", "float32", "cpu", errors_over=errors_over
    )


def measured(tokens: Array, ours: Array, theirs: Array | None) -> TokenMeasures:
    log_p = log_probabilities_of(mx.array(ours))
    log_q = None if theirs is None else log_probabilities_of(mx.array(theirs))
    return measures_of(mx.array(tokens), log_p, log_q, both_directions=True)


def log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def at_targets(values: Array, tokens: Array) -> Array:
    return np.take_along_axis(values, tokens[:, 1:, None], axis=-1)[..., 0]


@given(TOKENS, LOGITS, LOGITS)
def test_every_token_has_what_its_definition_says(
    tokens: Array, ours: Array, theirs: Array
) -> None:
    found = measured(tokens, ours, theirs)
    p, q = log_softmax(ours), log_softmax(theirs)
    expected = {
        "nll": -at_targets(p, tokens),
        "reference_nll": -at_targets(q, tokens),
        "kl": (np.exp(q) * (q - p)).sum(axis=-1),
        "back": (np.exp(p) * (p - q)).sum(axis=-1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=EPS, atol=30 * EPS)
    assert found.is_finite.all()


@pytest.mark.parametrize("seed", range(8))
def test_the_five_likeliest_agree_in_their_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theirs = rng.permuted(np.broadcast_to(np.arange(VOCABULARY, dtype=np.float32), SHAPE), axis=-1)
    ours = theirs.copy()
    for window, token in np.ndindex(WINDOWS, SCORED):  # two of a rank, likelier or not, trade
        low = int(rng.integers(VOCABULARY - 1))
        pair = [int((theirs[window, token] == rank).argmax()) for rank in (low, low + 1)]
        ours[window, token, pair] = theirs[window, token, pair[::-1]]
    same = np.argsort(-ours, axis=-1) == np.argsort(-theirs, axis=-1)
    found = measured(ZEROS, ours, theirs)
    np.testing.assert_array_equal(found.top1, same[..., 0])
    np.testing.assert_array_equal(found.top5, same[..., :5].all(axis=-1))
    assert found.top5 is not None
    assert not found.top5.all()


def standard_error(values: Array) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


@pytest.mark.parametrize("over", ["windows", "tokens"])
@given(TOKENS, LOGITS, LOGITS)
def test_every_figure_is_its_definition(
    over: str, tokens: Array, ours: Array, theirs: Array
) -> None:
    found = estimate("m", measured(tokens, ours, theirs), settings(over))
    p, q = log_softmax(ours), log_softmax(theirs)
    x, y = -at_targets(p, tokens), -at_targets(q, tokens)
    change = np.exp(-x) - np.exp(-y)
    kl = (np.exp(q) * (q - p)).sum(axis=-1)
    close = {"rel": 1e-4, "abs": 1e-4}

    def drawn(values: Array) -> Array:
        return values.ravel() if over == "tokens" else values.mean(axis=1)

    distance = found.distance
    assert isinstance(distance, Distance)
    assert found.kl == pytest.approx(kl.mean(), **close)
    assert found.kl_error == pytest.approx(standard_error(drawn(kl)), **close)
    assert distance.back is not None
    assert distance.back.value == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean(), **close)
    assert distance.reference_perplexity == pytest.approx(math.exp(y.mean()), **close)
    ratio = math.exp(x.mean() - y.mean())
    assert distance.ratio.value == pytest.approx(ratio, **close)
    error = standard_error(drawn(x - y))
    assert distance.ratio.error == pytest.approx(ratio * error, **close)
    assert distance.change.value == pytest.approx(change.mean(), **close)
    assert distance.change.error == pytest.approx(standard_error(drawn(change)), **close)
    rms = math.sqrt((change**2).mean())
    assert distance.change_rms.value == pytest.approx(rms, **close)
    if rms > 1e-2 and distance.change_rms.error is not None:
        error = standard_error(drawn(change**2)) / (2 * rms)
        assert distance.change_rms.error == pytest.approx(error, **close)
    if x.std() > 1e-2 and y.std() > 1e-2:
        correlation = np.corrcoef(x.ravel(), y.ravel())[0, 1]
        assert distance.correlation == pytest.approx(correlation, rel=0, abs=1e-2)
    for percent in (10.0, 50.0, 90.0):
        quantile = np.quantile(kl, percent / 100)
        assert distance.kl_over_tokens.percentiles[percent] == pytest.approx(quantile, **close)
        quantile = np.quantile(change, percent / 100)
        assert distance.change_over_tokens.percentiles[percent] == pytest.approx(quantile, **close)
    assert distance.kl_over_tokens.percentiles[99.9] is None


@given(TOKENS, LOGITS, LOGITS)
def test_errors_over_tokens_are_those_that_llama_cpp_prints(
    tokens: Array, ours: Array, theirs: Array
) -> None:
    """Its formulas: sums of values, of squares and of products, over all tokens."""
    found = estimate("m", measured(tokens, ours, theirs), settings("tokens"))
    p, q = log_softmax(ours), log_softmax(theirs)
    x, y = -at_targets(p, tokens).ravel(), -at_targets(q, tokens).ravel()
    n, close = x.size, {"rel": 1e-3, "abs": 2e-3}

    def uncertainty(values: Array) -> float:
        spread = (values**2).sum() / n - (values.sum() / n) ** 2
        return math.sqrt(max(spread, 0) / (n - 1))

    covariance = ((x * y).sum() / n - x.sum() / n * y.sum() / n) / (n - 1)
    of_ratio = uncertainty(x) ** 2 + uncertainty(y) ** 2 - 2 * covariance
    distance, ratio = found.distance, math.exp((x - y).mean())
    assert distance is not None
    assert found.perplexity_error == pytest.approx(math.exp(x.mean()) * uncertainty(x), **close)
    assert distance.log_ratio.error == pytest.approx(math.sqrt(max(of_ratio, 0)), **close)
    assert distance.ratio.error == pytest.approx(ratio * math.sqrt(max(of_ratio, 0)), **close)
    if uncertainty(x) > 1e-2 and uncertainty(y) > 1e-2:
        correlation = covariance / (uncertainty(x) * uncertainty(y))
        assert distance.correlation == pytest.approx(correlation, rel=0, abs=1e-2)
    square = (np.exp(-x) - np.exp(-y)) ** 2
    rms = math.sqrt(square.mean())
    assert distance.change_rms.value == pytest.approx(rms, **close)
    if rms > 1e-2:
        error = 0.5 / rms * uncertainty(square)
        assert distance.change_rms.error == pytest.approx(error, **close)
    same = found.top1
    assert same is not None
    assert found.top1_error == pytest.approx(math.sqrt(same * (1 - same) / (n - 1)), abs=1e-9)


def random_logits(seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 2, SHAPE).astype(np.float32)


def test_a_prediction_that_is_not_finite_is_infinitely_wrong() -> None:
    ours = random_logits(0)
    ours[1, 2] = np.nan
    found = estimate("m", measured(ZEROS, ours, ours), settings("windows"))
    assert found.not_finite == pytest.approx(1 / (WINDOWS * SCORED))
    assert (found.perplexity, found.kl, found.kl_interval) == (math.inf, math.inf, None)
    assert found.distance is not None
    assert found.distance.kl_over_tokens.most == math.inf
    assert found.distance.kl_over_tokens.median == 0
    assert found.top1 == pytest.approx(1 - found.not_finite)
    assert found.distance.correlation is None


def test_what_is_infinitely_wrong_is_worse_than_all_else() -> None:
    theirs, broken = random_logits(1), random_logits(2)
    broken[0, 0, 0] = np.inf
    good = measured(ZEROS, random_logits(3), theirs)
    bad = measured(ZEROS, broken, theirs)
    pairs = {"worse": (bad, good), "better": (good, bad), "no difference shown": (bad, bad)}
    for verdict, (one, first) in pairs.items():
        difference = estimate("m", one, settings("windows"), first=first).difference
        assert difference is not None
        assert difference.verdict == verdict


def test_vocabularies_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`reference` must predict 9 tokens.* predicts 7"):
        measured(ZEROS, random_logits(0), random_logits(1)[..., :7])


def test_fewer_than_five_tokens_agree_where_all_do() -> None:
    ours = random_logits(0)[..., :3]
    found = measured(ZEROS, ours, ours)
    assert found.top5 is not None
    assert found.top5.all()


def test_a_token_that_cannot_be_predicted_is_no_matter_where_the_reference_agrees() -> None:
    ours, theirs = random_logits(0), random_logits(1)
    ours[..., 2] = theirs[..., 2] = -np.inf
    assert measured(ZEROS, ours, theirs).is_finite.all()


def test_numpy_and_mlx_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for library in (np, mx):
        monkeypatch.setattr("plastic_export.evaluation.measures.library", lambda xp=library: xp)
        found.append(measured(ZEROS, random_logits(0), random_logits(1)))
    for name in ("nll", "reference_nll", "kl", "back"):
        np.testing.assert_allclose(*(getattr(f, name) for f in found), rtol=0, atol=30 * EPS)
    for name in ("top1", "top5"):
        np.testing.assert_array_equal(*(getattr(f, name) for f in found))


def test_batches_are_joined_in_their_order() -> None:
    ours, theirs = random_logits(0), random_logits(1)
    whole = measured(ZEROS, ours, theirs)
    parts = [measured(ZEROS[i : i + 1], ours[i : i + 1], theirs[i : i + 1]) for i in range(WINDOWS)]
    for name, values in vars(joined(parts)).items():
        np.testing.assert_array_equal(values, getattr(whole, name))
    assert joined([measured(ZEROS, ours, None)]).kl is None


def test_without_a_reference_there_is_no_distance() -> None:
    found: Evaluation = estimate("m", measured(ZEROS, random_logits(0), None), settings("tokens"))
    assert found.distance is None
    assert distance_of(measured(ZEROS, random_logits(0), None), np.ravel) is None
