"""The score of a checkpoint in a task, and how far it is from that of another."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

from plastic_export.evaluation.intervals import mean_and_error

_SAME = 1e-9  # relative, of a mean computed twice


@dataclass(frozen=True)
class TaskSettings:
    """What two scores in a task must have in common, so that they can be compared.

    Attributes:
        version: Version of the task's definition, as its author writes it.
        items: How many questions were asked.
        of: How many there are; None for a group of tasks.
        shots: Solved questions before each.
        chat_template: Whether the prompts were rendered with the template of the tokenizer.
        seed: Seed of whatever is drawn, examples among it.
        harness: Version of lm-evaluation-harness.
        precision: Of the activations: ``"float32"``, or ``"as stored"``.
        device: ``"cpu"`` or ``"gpu"``.

    Examples:
        >>> TaskSettings("1.0", 100, 2376, 0, False, 123, "0.4.13", "float32", "cpu").items
        100
    """

    version: str
    items: int
    of: int | None
    shots: int | None
    chat_template: bool
    seed: int
    harness: str
    precision: str
    device: str


@dataclass(frozen=True)
class ScoreDifference:
    """A score minus that of another checkpoint in the same questions.

    Attributes:
        against: The other checkpoint.
        score: Its score.
        score_error: Standard error of that, None where there is none.
        mean: The difference.
        error: Its standard error, None where there is none.
        paired: Whether the error is of the differences question by question, which is far smaller
            than that of independent scores where both models mostly agree.

    Examples:
        >>> ScoreDifference("SRC", 0.5, 0.05, mean=-0.1, error=0.02, paired=True).mean
        -0.1
    """

    against: str
    score: float
    score_error: float | None
    mean: float
    error: float | None
    paired: bool


@dataclass(frozen=True)
class TaskScore:
    """One measure of one checkpoint in one task, or group of tasks.

    Attributes:
        task: Name of the task.
        measure: Name of the measure, with its filter if it has one: ``"acc"``,
            ``"exact_match,strict-match"``.
        checkpoint: The checkpoint.
        value: Its score.
        error: Standard error of it, None where lm-evaluation-harness gives none.
        higher_is_better: Whether that is so, None where nobody says.
        difference: To the reference or, without one, to the first checkpoint; None for that.
        settings: What the score depends on beside the model.

    Examples:
        >>> score = evaluate_tasks(["SRC"], ["letters"], include_path="tasks")[0]
        >>> score.task, score.measure, score.settings.items
        ('letters', 'acc', 6)
    """

    task: str
    measure: str
    checkpoint: str
    value: float
    error: float | None
    higher_is_better: bool | None
    difference: ScoreDifference | None
    settings: TaskSettings


@dataclass(frozen=True)
class Draws:
    """A score as the mean over questions.

    Attributes:
        value: The score.
        error: Its standard error.
        questions: Digests of the questions.
        scores: The score in each of them, float64; None where ``value`` is not the mean of it.
    """

    value: float
    error: float | None
    questions: list[str]
    scores: NDArray[np.float64] | None

    @classmethod
    def of(
        cls, value: float, error: float | None, questions: list[str], scores: list[object]
    ) -> Draws:
        """Return a score with those of its questions, if they are numbers whose mean it is."""
        if not scores or not all(isinstance(s, int | float | np.number) for s in scores):
            return cls(value, error, questions, None)
        values = np.array(scores, np.float64)
        is_mean = abs(values.mean() - value) <= _SAME * max(1.0, abs(value))
        return cls(value, error, questions, values if is_mean else None)

    def minus(self, other: Draws, name: str) -> ScoreDifference:
        """Return the difference to another score, paired where the questions are the same.

        Args:
            other: The other score.
            name: Whose it is.

        Examples:
            >>> a = Draws.of(0.5, 0.29, ["p", "q", "r", "s"], [1, 0, 1, 0])
            >>> b = Draws.of(0.75, 0.25, ["p", "q", "r", "s"], [1, 1, 1, 0])
            >>> a.minus(b, "SRC").mean, a.minus(b, "SRC").error
            (-0.25, 0.25)
        """
        error, paired = None, False
        if self.scores is not None and other.scores is not None:
            paired = self.questions == other.questions
        if paired:
            _, error = mean_and_error(self.scores - other.scores)  # type: ignore[operator]
        elif self.error is not None and other.error is not None:
            error = hypot(self.error, other.error)
        mean = self.value - other.value
        return ScoreDifference(name, other.value, other.error, mean, error, paired)
