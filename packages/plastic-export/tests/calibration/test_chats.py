"""Whether a tokenizer renders chats, in every version of mlx-lm."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from plastic_export.calibration.chats import has_chat_template


@pytest.mark.parametrize(
    ("tokenizer", "has"),
    [
        (SimpleNamespace(has_chat_template=True, chat_template=None), True),
        (SimpleNamespace(has_chat_template=False, chat_template=None), False),
        (SimpleNamespace(chat_template="{{ messages }}"), True),  # mlx-lm 0.28
        (SimpleNamespace(chat_template=None), False),
    ],
)
def test_it_has_a_chat_template(tokenizer: SimpleNamespace, has: bool) -> None:
    assert has_chat_template(tokenizer) == has
