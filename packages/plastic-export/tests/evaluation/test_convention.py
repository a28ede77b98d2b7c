"""How other tools cut a text: every token where they have it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.calibration.tokens import TokenText
from plastic_export.evaluation.convention import CONVENTIONS, OWN, llama_chunks, mlx_lm_rows

IDS = st.lists(st.integers(3, 99), min_size=1, max_size=80)
BOS, END = 1, 2


@given(IDS, st.integers(3, 12), st.none() | st.integers(1, 9), st.booleans())
def test_chunks_are_those_of_the_loop_of_llama_cpp(
    ids: list[int], length: int, limit: int | None, has_bos: bool
) -> None:
    tokens = [BOS, *ids] if has_bos else ids
    text = TokenText(ids, [BOS] if has_bos else [], END)
    if len(tokens) < 2 * length:
        with pytest.raises(ValueError, match=f"{len(tokens)} tokens; .* {2 * length} tokens"):
            llama_chunks(text, length=length, limit=limit)
        return
    chunks = []
    for i in range(min(len(tokens) // length, limit or len(tokens))):
        chunk = tokens[i * length : (i + 1) * length]
        if has_bos:
            chunk[0] = BOS
        chunks.append(chunk)
    assert llama_chunks(text, length=length, limit=limit).tolist() == chunks


@given(IDS, st.integers(2, 12), st.none() | st.integers(1, 9), st.booleans())
def test_rows_are_those_of_mlx_lm(
    ids: list[int], length: int, limit: int | None, has_end: bool
) -> None:
    tokens = [BOS, *ids, END]
    text = TokenText(ids + [END] * has_end, [BOS], END)
    if len(tokens) < length:
        with pytest.raises(ValueError, match="fewer than one window"):
            mlx_lm_rows(text, length=length, limit=limit)
        return
    rows = np.array(tokens[: len(tokens) // length * length]).reshape(-1, length)[:limit]
    np.testing.assert_array_equal(mlx_lm_rows(text, length=length, limit=limit), rows)


def test_what_begins_a_text_is_not_put_there_twice() -> None:
    text = TokenText([BOS, 5, 6, 7, 8, 9], [BOS], None)
    assert mlx_lm_rows(text, length=3, limit=1).tolist() == [[BOS, 5, 6]]
    assert llama_chunks(text, length=3, limit=None).tolist() == [[BOS, 5, 6], [BOS, 8, 9]]


@pytest.mark.parametrize(("cut", "least"), [(llama_chunks, 3), (mlx_lm_rows, 2)])
def test_windows_in_which_nothing_is_scored_are_refused(cut: object, least: int) -> None:
    assert callable(cut)
    with pytest.raises(ValueError, match=f"at least {least} tokens"):
        cut(TokenText(range(9), [], None), length=least - 1, limit=None)
    with pytest.raises(ValueError, match="at least 1 window"):
        cut(TokenText(range(9), [], None), length=least, limit=0)


@given(st.integers(3, 4096))
def test_llama_cpp_scores_what_its_counter_says(window: int) -> None:
    context = CONVENTIONS["llama.cpp"].context(window)
    assert window - 1 - context == len(range(window // 2, window - 1))
    assert OWN.context(window) == CONVENTIONS["mlx-lm"].context(window) == 0
