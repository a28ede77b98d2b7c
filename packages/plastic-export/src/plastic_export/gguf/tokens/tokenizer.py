"""The tokenizer of a checkpoint in the metadata of GGUF, special tokens and chat template too."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json

from plastic_export.gguf.package import gguf_package
from plastic_export.gguf.tokens.byte_level_tokens import byte_level_name, byte_level_tokens
from plastic_export.gguf.tokens.sentencepiece_tokens import check_pieces, open_pieces, piece_tokens
from plastic_export.gguf.tokens.token_kinds import TokenKind, TokenTable

PIECES, FAST, CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"


def add_tokenizer(writer: Any, folder: Path, size: int) -> str:
    """Add the tokenizer of a folder.

    Args:
        writer: The writer of ``gguf``.
        folder: The folder of the checkpoint.
        size: Rows of the embedding.

    Returns:
        What it is, in a few words.

    Raises:
        FormatError: If there is none, none that llama.cpp cuts alike, or more tokens than rows.
        ModuleNotFoundError: Naming the extra, if sentencepiece is not installed.
        OSError: If a file cannot be read.
    """
    content = open_pieces(folder / PIECES) if (folder / PIECES).is_file() else None
    if content is not None:
        table, said = _sentencepiece(writer, content, folder)
    elif (folder / FAST).is_file():
        table, said = _byte_level(writer, folder / FAST)
    else:
        reason = f"no tokenizer that GGUF could hold: neither {PIECES} nor {FAST}"
        raise FormatError.about(folder, reason, "put it beside the weights")
    if len(table.texts) > size:
        reason = f"its tokenizer has {len(table.texts)} tokens, and the embedding {size} rows"
        raise FormatError.about(folder, reason, "take the tokenizer that belongs to it")
    table.pad(size)
    table.add_to(writer)
    with _silenced():
        special = gguf_package().SpecialVocab(folder, load_merges=content is None, n_vocab=size)
        if content is not None:  # whose tokens it does not see
            _take_ids(special, folder, table)
        special.add_to_gguf(writer, quiet=True)
    return said


def tokenizer_refusal(folder: Path) -> str:
    """Say why the tokenizer of a folder cannot be written; empty where it can, or there is none.

    A sentencepiece model is not judged where the package for it is missing.

    Args:
        folder: The folder of the checkpoint.
    """
    try:
        content = open_pieces(folder / PIECES) if (folder / PIECES).is_file() else None
        if content is not None:
            check_pieces(content, folder / PIECES)
        elif (folder / FAST).is_file():
            byte_level_name(read_json(folder / FAST), folder / FAST)
    except FormatError as error:
        return str(error).partition(";")[0].removeprefix(f"{folder}/")
    except ModuleNotFoundError:
        pass
    return ""


def _sentencepiece(writer: Any, content: Any, folder: Path) -> tuple[TokenTable, str]:
    check_pieces(content, folder / PIECES)
    table = piece_tokens(content)
    for index, text, kind in _added(folder):
        table.put(index, text, kind)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(content.normalizer_spec.add_dummy_prefix)
    return table, "sentencepiece"


def _byte_level(writer: Any, file: Path) -> tuple[TokenTable, str]:
    tokenizer = read_json(file)
    name = byte_level_name(tokenizer, file)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    return byte_level_tokens(tokenizer), f"byte-level BPE ({name})"


def _added(folder: Path) -> Iterator[tuple[int, str, TokenKind]]:
    """Tokens that stand beside a sentencepiece model: index, text, kind."""
    config = _config(folder)
    decoder = config.get("added_tokens_decoder")
    for index, token in (decoder if isinstance(decoder, dict) else {}).items():
        special = token.get("special")
        yield int(index), token["content"], TokenKind.CONTROL if special else TokenKind.USER_DEFINED


def _take_ids(special: Any, folder: Path, table: TokenTable) -> None:
    """Give ids to the special tokens that the tokenizer's configuration names by text alone."""
    config, ids = _config(folder), {text: i for i, text in enumerate(table.texts)}
    for kind in ("bos", "eos", "unk", "pad"):
        token = config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str) and text in ids:
            special.special_token_ids[kind] = ids[text]


def _config(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}


@contextmanager
def _silenced() -> Iterator[None]:
    """Let ``gguf`` log nothing within the block."""
    logger = logging.getLogger("gguf")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
