"""What is answered to lm-evaluation-harness, against the logits and against stock mlx-lm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from plastic_core.files import FormatError
from plastic_export.model.load import load_for_inference, load_model
from plastic_export.model.tokenizer import load_tokenizer
from plastic_runtime import untracked

pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed", exc_type=ImportError)

from mlx_lm.evaluate import MLXLM
from plastic_export.tasks.judged_model import JudgedModel

PAIRS = [("AB", "CD"), ("x", "y"), ("AB", "E"), ("ABCABC", "ABCDEFGHIJ"), ("x", "zz")]


def asked(pairs: Sequence[tuple[str, ...]]) -> list[Any]:
    return [SimpleNamespace(args=pair) for pair in pairs]


def judged(folder: Path, model: Any = None, track: Any = untracked) -> JudgedModel:
    model = load_for_inference(folder) if model is None else model
    how = {"source": "it", "chat_template": False, "track": track}
    return JudgedModel(model, load_tokenizer(folder), **how)


def log_likelihood(folder: Path, text: str, before: int) -> float:
    """The sum over the tokens behind the first ones, in float64."""
    ids = load_tokenizer(folder).encode(text)
    logits = np.asarray(load_model(folder)(mx.array([ids[:-1]])).astype(mx.float32), np.float64)[0]
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return float(sum(log_p[i - 1, ids[i]] for i in range(before, len(ids))))


@pytest.fixture
def exact(make_readable: Callable[..., Path], tiny_weights: dict[str, mx.array]) -> Path:
    """A checkpoint in float32, so that stock mlx-lm rounds no activation."""
    weights = {name: w.astype(mx.float32) for name, w in tiny_weights.items()}
    return make_readable("exact", weights=weights, dtype="float32")


def test_log_likelihoods_are_those_of_the_logits_and_of_mlx_lm(exact: Path) -> None:
    ours = judged(exact).loglikelihood(asked(PAIRS))
    stock = MLXLM(str(exact)).loglikelihood(asked(PAIRS))
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    for (question, answer), (mine, _), (theirs, _) in zip(PAIRS, ours, stock, strict=True):
        expected = log_likelihood(exact, question + answer, len(question))
        assert mine == pytest.approx(expected, rel=2e-5)
        assert theirs == pytest.approx(expected, rel=2e-5)


def test_whole_texts_are_scored_in_their_order(exact: Path) -> None:
    texts = [("ABC" * (1 + i % 5) + "xyz",) for i in range(11)]
    ours = judged(exact).loglikelihood_rolling(asked(texts))
    assert ours == pytest.approx([log_likelihood(exact, text, 1) for (text,) in texts], rel=2e-5)


def test_spaces_at_the_end_of_a_question_are_the_answers(exact: Path) -> None:
    plain = judged(exact).loglikelihood(asked([("AB", " C")]))
    assert judged(exact).loglikelihood(asked([("AB ", "C")])) == plain


def test_texts_are_completed(exact: Path) -> None:
    ways = {"until": ["~"], "max_gen_toks": 3}
    questions: list[Any] = [("ABC", ways), ("x", ways)]
    ours = judged(exact).generate_until(asked(questions))
    assert ours == MLXLM(str(exact)).generate_until(asked(questions))


def test_every_question_is_tracked(exact: Path) -> None:
    seen: list[tuple[int, str]] = []

    def track(items: Sequence[Any], description: str) -> Sequence[Any]:
        seen.append((len(items), description))
        return items

    judged(exact, track=track).loglikelihood(asked(PAIRS))
    assert seen == [(3, "asking it")]


def test_what_is_not_finite_is_refused(exact: Path) -> None:
    broken = load_for_inference(exact)
    broken.model.norm.weight = mx.full(broken.model.norm.weight.shape, float("nan"))
    with pytest.raises(FormatError, match="it: its predictions in a task are not finite"):
        judged(exact, broken).loglikelihood(asked(PAIRS))


def test_a_question_without_a_token_is_refused(exact: Path) -> None:
    with pytest.raises(ValueError, match="a question of a task has no token"):
        judged(exact).loglikelihood(asked([("", "AB")]))


def test_an_answer_without_a_token_of_its_own_is_refused(exact: Path) -> None:
    with pytest.raises(ValueError, match="has no token of its own"):
        judged(exact).loglikelihood(asked([("AB", "")]))
