"""How a tokenizer cuts a text before it merges, and what llama.cpp calls that.

It is recognised by the rules that ``tokenizer.json`` states, so that newly trained tokenizers with
rules of a known model are recognised too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_LETTERS_AND_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Cuts(NamedTuple):
    """The rules by which a text is cut.

    Attributes:
        patterns: Regular expressions that cut, in order.
        digits: Whether every digit is a piece of its own.
        gpt2: Whether GPT-2's expression cuts at last.
        ignores_merges: Whether a piece that is a token is not merged from its parts.

    Examples:
        >>> PRE_TOKENIZERS[Cuts(digits=True, gpt2=True)]
        'smollm'
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    ignores_merges: bool = False


PRE_TOKENIZERS: Mapping[Cuts, str] = {
    Cuts(gpt2=True): "gpt-2",
    Cuts(digits=True, gpt2=True): "smollm",
    Cuts((_LETTERS_AND_MARKS % r"\p{N}{1,3}",), ignores_merges=True): "llama-bpe",
    Cuts((_LETTERS_AND_MARKS % r"\p{N}{1,3}",)): "smaug-bpe",
    Cuts((_LETTERS_AND_MARKS % r"\p{N}",)): "qwen2",
}
"""What llama.cpp calls them."""


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level tokenizer cuts; None where it has none.

    Args:
        tokenizer: Content of ``tokenizer.json``.

    Examples:
        >>> split = {"type": "Split", "pattern": {"Regex": r"\\p{N}"}, "behavior": "Isolated"}
        >>> pre_tokenizer_name({"model": {}, "pre_tokenizer": split}) is None
        True
        >>> pre_tokenizer_name({"model": {}, "pre_tokenizer": {"type": "ByteLevel"}})
        'gpt-2'
    """
    cuts = Cuts(ignores_merges=bool(tokenizer.get("model", {}).get("ignore_merges")))
    for step in _steps(tokenizer.get("pre_tokenizer")):
        match step:
            case {"type": "ByteLevel", "add_prefix_space": True}:
                return None
            case {"type": "ByteLevel", "use_regex": False}:
                pass
            case {"type": "ByteLevel"}:
                cuts = cuts._replace(gpt2=True)
            case {"type": "Digits", "individual_digits": True}:
                cuts = cuts._replace(digits=True)
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
                cuts = cuts._replace(patterns=(*cuts.patterns, pattern))
            case _:
                return None
    return PRE_TOKENIZERS.get(cuts)


def _steps(step: Any) -> Iterator[Any]:
    """The steps of a pre-tokenizer, in order."""
    if isinstance(step, dict) and step.get("type") == "Sequence":
        for inner in step.get("pretokenizers", ()):
            yield from _steps(inner)
    else:
        yield step
