"""Differences of scores, and the errors of these."""

from __future__ import annotations

import math

import numpy as np
import pytest
from plastic_export.tasks.scores import Draws

QUESTIONS = ["a", "b", "c", "d"]


def test_the_same_questions_are_compared_one_by_one() -> None:
    one, other = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    first = Draws.of(0.75, 0.25, QUESTIONS, [*one])
    found = first.minus(Draws.of(0.25, 0.25, QUESTIONS, [*other]), "b")
    differences = np.subtract(one, other)
    assert found.paired
    assert (found.against, found.score, found.score_error) == ("b", 0.25, 0.25)
    assert found.mean == differences.mean()
    assert found.error == pytest.approx(differences.std(ddof=1) / 2)


@pytest.mark.parametrize(
    ("questions", "scores"),
    [
        (["a", "b", "c", "x"], [0.0, 0.0, 1.0, 0.0]),  # another question
        (QUESTIONS, [0.0, 0.0, 0.0, 0.0]),  # a score that is not their mean
        (QUESTIONS, [(1.0, 4), (2.0, 4), (1.0, 3), (2.0, 3)]),  # sums and counts, as of perplexity
        ([], []),  # a group of tasks
    ],
)
def test_what_cannot_be_paired_counts_as_independent(
    questions: list[str], scores: list[object]
) -> None:
    first = Draws.of(0.75, 0.3, QUESTIONS, [1.0, 0.0, 1.0, 1.0])
    found = first.minus(Draws.of(0.25, 0.4, questions, scores), "b")
    assert not found.paired
    assert found.mean == 0.5
    assert found.error == pytest.approx(0.5)


def test_without_an_error_there_is_none_of_the_difference() -> None:
    found = Draws.of(12.0, None, [], []).minus(Draws.of(10.0, 0.5, [], []), "b")
    assert (found.mean, found.error, found.paired) == (2.0, None, False)


def test_one_question_has_no_error() -> None:
    found = Draws.of(1.0, None, ["a"], [1]).minus(Draws.of(0.0, None, ["a"], [0]), "b")
    assert found.paired
    assert found.error is None
    assert math.isclose(found.mean, 1.0)
