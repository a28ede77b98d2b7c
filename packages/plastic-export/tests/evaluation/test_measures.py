"""What is kept of the reference, and what is run again."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from plastic_export.evaluation.measures import Reference, Windows, log_probabilities, measure_texts
from plastic_runtime import untracked

VOCABULARY = 5


class Table(nn.Module):
    """Logits that depend on the token alone; it counts how often it runs."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.logits = mx.random.normal((VOCABULARY, vocabulary), key=mx.random.key(seed))
        self.calls = 0

    def __call__(self, tokens: mx.array) -> mx.array:
        self.calls += 1
        return self.logits[tokens]


def batches(count: int) -> list[mx.array]:
    return [mx.full((2, 3), i % VOCABULARY, mx.int32) for i in range(count)]


@pytest.mark.parametrize("fit", [0, 1, 3])
def test_the_reference_runs_again_only_where_there_is_no_room(fit: int) -> None:
    model, tokens = Table(0), batches(3)
    reference = Reference(model, room=fit * 4 * VOCABULARY * 2 * 3)
    first = [reference((0, i), batch) for i, batch in enumerate(tokens)]
    again = [reference((0, i), batch) for i, batch in enumerate(tokens)]
    assert model.calls == 3 + (3 - fit)
    for batch, log_q, same in zip(tokens, first, again, strict=True):
        np.testing.assert_array_equal(log_q, same)
        np.testing.assert_array_equal(log_q, log_probabilities(Table(0), batch))


def test_each_batch_of_each_text_meets_its_own_log_probabilities() -> None:
    rng = np.random.default_rng(0)
    texts = [
        Windows(name, mx.array(rng.integers(VOCABULARY, size=(20, 4)), mx.int32))
        for name in ("a", "b")
    ]
    reference = Reference(Table(0), room=2**20)
    for _ in range(2):
        for values in measure_texts(Table(0), texts, reference, untracked):
            np.testing.assert_array_equal(values[1], 0)
            np.testing.assert_array_equal(values[2], 1)


def test_a_reference_that_is_not_finite_shows_in_the_divergence() -> None:
    texts = [Windows("a", mx.zeros((2, 4), mx.int32))]
    broken = Table(0)
    broken.logits = broken.logits * mx.nan
    (values,) = measure_texts(Table(0), texts, Reference(broken, room=0), untracked)
    assert np.isnan(values[1]).all()


def test_vocabularies_of_other_sizes_are_refused() -> None:
    texts = [Windows("a", mx.zeros((2, 4), mx.int32))]
    reference = Reference(Table(0, vocabulary=7), room=0)
    with pytest.raises(ValueError, match=r"`reference` must predict 5 tokens.* predicts 7"):
        measure_texts(Table(0), texts, reference, untracked)


def test_numpy_and_mlx_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(3, 8))
    texts = [Windows("a", mx.array(tokens, mx.int32))]
    found = []
    for library in (np, mx):
        monkeypatch.setattr("plastic_export.evaluation.measures.library", lambda xp=library: xp)
        reference = Reference(Table(1), room=2**20)
        found += measure_texts(Table(0), texts, reference, untracked)
    eps = 8 * VOCABULARY * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=eps)
    np.testing.assert_array_equal(found[0][2], found[1][2])


def test_a_token_that_cannot_be_predicted_is_no_matter_where_the_reference_agrees() -> None:
    model, reference = Table(0), Table(1)
    for table in (model, reference):
        table.logits[:, 2] = -mx.inf
    texts = [Windows("a", mx.array([[0, 1, 3, 4]], mx.int32))]
    (values,) = measure_texts(model, texts, Reference(reference, room=0), untracked)
    assert np.isfinite(values).all()
