"""The tokens of a byte-level BPE, ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError

from plastic_export.gguf.tokens.pre_tokenizers import pre_tokenizer_name
from plastic_export.gguf.tokens.token_kinds import TokenKind, TokenTable

_NORMALIZERS = (None, "NFC")
REMEDY = "`plastic gguf` prints the commands of llama.cpp's converter, which knows more"


def byte_level_name(tokenizer: Mapping[str, Any], file: Path) -> str:
    """Return llama.cpp's name for how this tokenizer cuts a text.

    Args:
        tokenizer: Content of ``tokenizer.json``.
        file: Its place, for messages.

    Raises:
        FormatError: If it is no byte-level BPE, or cuts in a way that llama.cpp is not known to.
    """
    model = tokenizer.get("model", {})
    kind, normalizer = model.get("type"), (tokenizer.get("normalizer") or {}).get("type")
    if kind != "BPE" or normalizer not in _NORMALIZERS:
        found = f"model {kind!r}, normalizer {normalizer!r}"
        raise FormatError.about(file, f"no byte-level BPE: {found}", REMEDY)
    name = pre_tokenizer_name(tokenizer)
    if name is None:
        reason = "it cuts a text by rules that are not known to be llama.cpp's"
        raise FormatError.about(file, reason, REMEDY)
    return name


def byte_level_tokens(tokenizer: Mapping[str, Any]) -> TokenTable:
    """Return the tokens, those that were added to the merged ones among them.

    Args:
        tokenizer: Content of ``tokenizer.json``.
    """
    vocabulary = tokenizer["model"]["vocab"]
    table = TokenTable([], [])
    for text, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        table.put(index, text, TokenKind.NORMAL)
    for token in tokenizer.get("added_tokens") or ():
        kind = TokenKind.CONTROL if token.get("special") else TokenKind.USER_DEFINED
        table.put(token["id"], token["content"], kind)
    return table
