"""A tokenizer with a chat template that knows systems, tools and their calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plastic_export.model.tokenizer import load_tokenizer

TOOLS = (
    "{% if tools %}<|im_start|>tools:{{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content or '' }}"
    "{% if m.tool_calls is defined %}calls{{ m.tool_calls | tojson }}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@pytest.fixture
def tokenizer(make_chatty: Callable[..., Path]) -> Any:
    """mlx-lm's tokenizer of one token per letter, with this template."""
    return load_tokenizer(make_chatty(TOOLS))
