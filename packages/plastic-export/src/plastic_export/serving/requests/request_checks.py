"""Fields of a request that mlx-lm's server does not check, and would end over. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from plastic_export.serving.requests.request_error import RequestError

KINDS = {"role_mapping": dict, "chat_template_kwargs": dict, "tools": list}
"""Fields that mlx-lm hands to the template of a chat, and what they are."""
NOT_SERVED = ("adapters", "draft_model")
"""Fields that name another model."""
MOST = 2**63
"""Numbers from here on fit into no integer of MLX."""


def check_request(body: Mapping[str, Any], vocabulary: int) -> None:
    """Raise unless the fields of a request can be meant.

    Args:
        body: The request.
        vocabulary: Tokens that the model knows.

    Raises:
        RequestError: Naming the field.

    Examples:
        >>> check_request({"prompt": "def ", "stop": ["end"]}, vocabulary=512)
    """
    _check_text(body)
    for field in NOT_SERVED:
        if body.get(field) is not None:
            raise RequestError(f'"{field}" is not served: the model is served alone')
    for field, kind in KINDS.items():
        if not isinstance(body.get(field), kind | None):
            name = "a list" if kind is list else "an object"
            raise RequestError(f'"{field}" must be {name}')
    _check_numbers(body)
    _check_prompt(body)
    _check_stop(body.get("stop"))
    top_k = body.get("top_k", 0)
    if top_k >= vocabulary:
        known = f"{vocabulary}, the tokens that this model knows"
        raise RequestError(f'"top_k" must be below {known}, got {top_k}')
    for token, bias in (body.get("logit_bias") or {}).items():
        is_finite = isinstance(bias, int | float) and math.isfinite(bias)
        if not 0 <= int(token) < vocabulary or not is_finite:
            known = f"numbers by ids of tokens from 0 to {vocabulary - 1}"
            raise RequestError(f'"logit_bias" must be finite {known}, got {token}: {bias}')


def _check_numbers(body: Mapping[str, Any]) -> None:
    for field, value in body.items():
        if isinstance(value, int | float) and not abs(value) < MOST:  # NaN too
            raise RequestError(f'"{field}" must be finite and of 63 bits, got {value}')
    for field in ("max_tokens", "max_completion_tokens"):
        if (most := body.get(field)) is not None and most < 1:
            raise RequestError(f'"{field}" must be at least 1, got {most}')
    if (body.get("seed") or 0) < 0:
        raise RequestError(f'"seed" must not be negative, got {body["seed"]}')


def _check_text(body: Mapping[str, Any]) -> None:
    for field, value in body.items():
        try:
            json.dumps({field: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            name = field.encode(errors="replace").decode()
            line = f'"{name}" holds half of a character of UTF-16, which is no text'
            raise RequestError(line) from None


def _check_prompt(body: Mapping[str, Any]) -> None:
    if "prompt" in body and not (isinstance(body["prompt"], str) and body["prompt"]):
        raise RequestError('"prompt" must be a string that is not empty')
    if "messages" in body:
        _check_messages(body["messages"])


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise RequestError('"messages" must be a list of objects')
    if not messages:
        raise RequestError('"messages" must hold at least one message')
    if not all(isinstance(m.get("role"), str) for m in messages):
        raise RequestError('"messages" must each have a "role", a string')
    for content in (m.get("content") for m in messages):
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or any(type(p) is not dict for p in parts):
            raise RequestError('the "content" of "messages" must be a string or a list of objects')


def _check_stop(stop: Any) -> None:
    if stop is None or stop == []:
        return
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
        raise RequestError('"stop" must be a string or a list of strings, none of them empty')
