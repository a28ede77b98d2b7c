"""A loaded model as lm-evaluation-harness asks it, by mlx-lm's own answers.

Imports the harness: to be imported after `check_harness`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isnan
from types import SimpleNamespace
from typing import Any

from lm_eval.api.model import LM
from mlx_lm.evaluate import MLXLM
from plastic_core.files import FormatError
from plastic_runtime import Track

BATCH = 8  # texts at once, as in mlx-lm
_NOT_FINITE = "look for NaN and infinities in the weights"
_MERGED = (
    "an answer of a task has no token of its own: the tokenizer joins it with the end of the "
    "question; begin the answers with a space (target_delimiter of the task)"
)
_UNASKED = (
    "a question of a task has no token, since the tokenizer begins no text with one of its own; "
    "mlx-lm cannot score an answer to it"
)


class JudgedModel(MLXLM):  # type: ignore[misc]  # mlx-lm is not typed
    """mlx-lm's ``MLXLM`` around a model that is loaded already, in whatever form.

    Args:
        model: The model.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        source: Its name, for messages.
        chat_template: Whether prompts are rendered with the template of the tokenizer.
        track: Wraps the loop over the questions.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, source: str, chat_template: bool, track: Track
    ) -> None:
        LM.__init__(self)  # that of MLXLM loads a model
        self._model = model
        self.tokenizer = tokenizer
        self._max_tokens = None
        self._batch_size = BATCH
        self.use_chat_template = chat_template
        self._sampler = None
        self._source, self._track = source, track

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Score continuations, one context after the other.

        Spaces at the end of a context are counted to what follows, as lm-evaluation-harness does:
        tokens begin with theirs.
        """
        asked = [_split_before_spaces(*request.args) for request in requests]
        places: dict[str, list[int]] = {}
        for i, request in enumerate(asked):
            places.setdefault(request.args[0], []).append(i)
        try:
            answers = self._in_parts(super().loglikelihood, asked, [*places.values()])
        except IndexError as error:  # there it takes the first token of a continuation
            raise ValueError(_MERGED) from error
        self._check(score for score, _ in answers)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Score whole texts."""
        answers = self._in_parts(super().loglikelihood_rolling, requests, _batches(len(requests)))
        self._check(answers)
        return answers

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Complete texts."""
        return self._in_parts(super().generate_until, requests, _batches(len(requests)))

    def _in_parts(
        self,
        answer: Callable[[list[Any]], list[Any]],
        requests: Sequence[Any],
        parts: Sequence[Sequence[int]],
    ) -> list[Any]:
        """Answer requests part by part, each a list of their places, and keep their order."""
        found: list[Any] = [None] * len(requests)
        for places in self._track(parts, f"asking {self._source}"):
            for i, answered in zip(places, answer([requests[i] for i in places]), strict=True):
                found[i] = answered
        return found

    def _check(self, scores: Iterable[float]) -> None:
        for score in scores:
            if isnan(score):
                reason = "its predictions in a task are not finite"
                raise FormatError.about(self._source, reason, _NOT_FINITE)
            if score == -inf:
                raise ValueError(_UNASKED)


def _batches(count: int) -> list[range]:
    return [range(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]


def _split_before_spaces(context: str, continuation: str) -> SimpleNamespace:
    """Return a request whose context ends in no space."""
    kept = context.rstrip()
    return SimpleNamespace(args=(kept, context[len(kept) :] + continuation))
