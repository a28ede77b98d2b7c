"""What two evaluations must have in common shows in one digest."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import mlx.core as mx
import pytest
from plastic_export.evaluation.settings import reference_settings, settings_of

TOKENS = mx.array([[1, 5, 6, 7], [1, 8, 9, 4]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("abc")
    return path


def test_the_digest_depends_on_all_but_the_name(file: Path) -> None:
    settings = settings_of(file, TOKENS, [1], None)
    assert replace(settings, text="other").digest == settings.digest
    digests = {settings.digest}
    for field in fields(settings):
        if field.name != "text":
            value = getattr(settings, field.name)
            changed = value + 1 if isinstance(value, int) else f"{value}?"
            digests.add(replace(settings, **{field.name: changed}).digest)
    assert len(digests) == len(fields(settings))


@pytest.mark.parametrize(
    ("tokens", "prefix", "bos"),
    [
        (TOKENS, [1], "every window"),
        (TOKENS, [], "none"),
        (TOKENS, [3], "none"),
        (mx.array([[1, 5], [6, 7]]), [1], "the text"),
        (mx.array([[6, 7], [1, 5]]), [1], "none"),
    ],
)
def test_it_says_what_begins_with_bos(
    file: Path, tokens: mx.array, prefix: list[int], bos: str
) -> None:
    assert settings_of(file, tokens, prefix, None).bos == bos


def test_a_tool_to_be_like_is_told_first_of_what_a_reference_depends_on(file: Path) -> None:
    ours, like = (settings_of(file, TOKENS, [1], tool) for tool in (None, "llama.cpp"))
    assert (ours.scored, like.scored, like.errors_over) == (3, 1, "tokens")
    assert "convention" not in reference_settings([ours], 4, 24)
    assert next(iter(reference_settings([like], 4, None))) == "convention"
