"""Requests that would have ended mlx-lm's server."""

from __future__ import annotations

import math
from typing import Any

import pytest
from plastic_export.serving.requests.request_checks import check_request
from plastic_export.serving.requests.request_error import RequestError

GOOD: tuple[dict[str, Any], ...] = (
    {"prompt": "def "},
    {"prompt": "def ", "stop": None, "top_k": 0, "logit_bias": None},
    {"prompt": "def ", "stop": "end", "top_k": 511, "logit_bias": {"0": -1.5, "511": 2}},
    {"messages": [{"role": "user", "content": "hello"}], "stop": ["a", "b"]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
    {"messages": [{"role": "assistant", "content": None}, {"role": "user"}]},
)
BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt": ""}, '"prompt" must be a string that is not empty'),
    ({"prompt": ["a", "b"]}, '"prompt" must be a string'),
    ({"prompt": 5}, '"prompt" must be a string'),
    ({"messages": []}, '"messages" must hold at least one'),
    ({"messages": "hello"}, '"messages" must be a list of objects'),
    ({"messages": [{"role": "user", "content": 5}]}, 'the "content" of "messages" must be'),
    ({"messages": [{"role": "user", "content": [5]}]}, 'the "content" of "messages" must be'),
    ({"messages": [{"content": "hello"}]}, '"messages" must each have a "role"'),
    ({"messages": [{"role": 5, "content": "hello"}]}, '"messages" must each have a "role"'),
    ({"prompt": "a", "role_mapping": 5}, '"role_mapping" must be an object'),
    ({"prompt": "a", "chat_template_kwargs": []}, '"chat_template_kwargs" must be an object'),
    ({"prompt": "a", "tools": {}}, '"tools" must be a list'),
    ({"messages": ["hello"]}, '"messages" must be a list of objects'),
    ({"stop": 5}, '"stop" must be a string or a list of strings'),
    ({"stop": [5]}, '"stop" must be a string or a list of strings'),
    ({"stop": ""}, "none of them empty"),
    ({"stop": ["a", ""]}, "none of them empty"),
    ({"top_k": 512}, '"top_k" must be below 512'),
    ({"temperature": math.nan}, '"temperature" must be finite and of 63 bits, got nan'),
    ({"top_p": math.inf}, '"top_p" must be finite and of 63 bits, got inf'),
    ({"prompt": "a", "max_tokens": 0}, '"max_tokens" must be at least 1, got 0'),
    ({"prompt": "\ud800"}, '"prompt" holds half of a character'),
    ({"stop": ["\udc00"]}, '"stop" holds half of a character'),
    ({"\ud800": 1}, '"?" holds half of a character'),
    ({"seed": -1}, '"seed" must not be negative, got -1'),
    ({"seed": 2**63}, '"seed" must be finite and of 63 bits'),
    ({"repetition_context_size": -(2**63)}, '"repetition_context_size" must be finite'),
    ({"logit_bias": {"512": 1}}, "ids of tokens from 0 to 511, got 512: 1"),
    ({"logit_bias": {"-1": 1}}, "ids of tokens from 0 to 511, got -1: 1"),
    ({"logit_bias": {"1": math.nan}}, '"logit_bias" must be finite numbers'),
    ({"logit_bias": {"1": "x"}}, '"logit_bias" must be finite numbers'),
    ({"adapters": "run"}, '"adapters" is not served'),
    ({"draft_model": "small"}, '"draft_model" is not served'),
)


@pytest.mark.parametrize("body", GOOD)
def test_what_can_be_meant_passes(body: dict[str, Any]) -> None:
    check_request(body, vocabulary=512)


@pytest.mark.parametrize(("body", "said"), BAD)
def test_what_cannot_is_refused_in_a_line(body: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_request({"prompt": "def "} | body, vocabulary=512)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
