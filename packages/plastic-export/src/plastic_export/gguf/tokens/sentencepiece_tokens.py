"""The tokens of a sentencepiece model, ``tokenizer.model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plastic_core.files import FormatError

from plastic_export.gguf.package import HOW
from plastic_export.gguf.tokens.byte_level_tokens import REMEDY
from plastic_export.gguf.tokens.token_kinds import TokenKind, TokenTable

_BPE = 2  # of sentencepiece's model types


def open_pieces(file: Path) -> Any | None:
    """Return the content of a sentencepiece model; None where the file is of another kind.

    Raises:
        ModuleNotFoundError: Naming the extra, if sentencepiece is not installed.
        OSError: If the file cannot be read.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2 as format
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(HOW, name=error.name) from None
    content: Any = format.ModelProto()  # type: ignore[attr-defined]
    try:
        content.ParseFromString(file.read_bytes())
    except Exception:  # protobuf's own, which has another class in every release
        return None
    return content if content.pieces and content.HasField("trainer_spec") else None


def check_pieces(content: Any, file: Path) -> None:
    """Refuse a sentencepiece model that llama.cpp would cut otherwise.

    Raises:
        FormatError: If it is no BPE, or changes characters first.
    """
    if content.trainer_spec.model_type != _BPE:
        raise FormatError.about(file, "a sentencepiece model, but no BPE", REMEDY)
    if content.normalizer_spec.precompiled_charsmap:
        name = content.normalizer_spec.name
        reason = f"it normalises characters ({name}), which llama.cpp does not for a BPE"
        raise FormatError.about(file, reason, REMEDY)


def piece_tokens(content: Any) -> TokenTable:
    """Return the pieces with their scores and kinds, which sentencepiece numbers as GGUF does.

    A character that the user defined is a normal piece, which merges find as well: llama.cpp puts
    a space after pieces of a user.
    """
    pieces = content.pieces
    return TokenTable(
        [piece.piece for piece in pieces],
        [_kind(piece) for piece in pieces],
        [piece.score for piece in pieces],
    )


def _kind(piece: Any) -> TokenKind:
    kind = TokenKind(piece.type)
    is_character = kind is TokenKind.USER_DEFINED and len(piece.piece) == 1
    return TokenKind.NORMAL if is_character else kind
