"""Pre-tokenizers are recognised by their rules, and by nothing less."""

from __future__ import annotations

from typing import Any

import pytest
from plastic_export.gguf.tokens.pre_tokenizers import PRE_TOKENIZERS, Cuts, pre_tokenizer_name


def content(cuts: Cuts) -> dict[str, Any]:
    """A ``tokenizer.json`` that cuts by these rules, as far as is looked at."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        for pattern in cuts.patterns
    ]
    steps += [{"type": "Digits", "individual_digits": True}] if cuts.digits else []
    steps += [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts.gpt2}]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    return {"model": {"ignore_merges": cuts.ignores_merges}, "pre_tokenizer": sequence}


@pytest.mark.parametrize(("cuts", "name"), PRE_TOKENIZERS.items())
def test_every_known_one_is_recognised(cuts: Cuts, name: str) -> None:
    assert pre_tokenizer_name(content(cuts)) == name


@pytest.mark.parametrize("cuts", PRE_TOKENIZERS)
def test_another_rule_is_another_tokenizer(cuts: Cuts) -> None:
    other = cuts._replace(patterns=(*cuts.patterns, r"\p{Han}+"))
    assert pre_tokenizer_name(content(other)) is None


@pytest.mark.parametrize("step", [None, {"type": "Whitespace"}, {"type": "ByteLevel"}])
def test_what_puts_a_space_before_or_is_no_bytes_is_not_known(step: Any) -> None:
    if step and step["type"] == "ByteLevel":
        step = {**step, "add_prefix_space": True}
    assert pre_tokenizer_name({"pre_tokenizer": step}) is None
