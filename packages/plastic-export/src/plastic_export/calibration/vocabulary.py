"""The tokens that a model knows, and tokenizers that know more or fewer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from numpy.typing import ArrayLike
from plastic_core.files import FormatError

from plastic_export.checkpoint.warning import warn_about
from plastic_export.model.load import is_factored_format
from plastic_export.model.stock import stock_model

_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "wpos")
_REMEDY = "take the tokenizer that belongs to the weights, here or with --tokenizer"


def embedding_rows(config: Mapping[str, Any], file: str | Path = "config.json") -> int:
    """Return how many tokens mlx-lm's model of a configuration has an embedding for.

    Args:
        config: Content of config.json.
        file: Its place, for the message.

    Raises:
        FormatError: If mlx-lm has no such model, cannot build one from the configuration, or would
            run code of the folder.
    """
    is_factored_format(config, Path(file))  # or its own code is refused
    model = stock_model(dict(config), file).module
    modules = model.named_modules()  # type: ignore[no-untyped-call]
    rows = {path: m.weight.shape[0] for path, m in modules if isinstance(m, nn.Embedding)}
    tables = [n for path, n in rows.items() if path.rpartition(".")[2] not in _POSITIONS]
    return next((n for n in _declared(config) if n in tables), max(tables, default=2**31))


def _declared(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield every vocabulary size that a configuration states, its own first."""
    yield from (config[key] for key in ("vocab_size", "padded_vocab_size") if key in config)
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _declared(part)


def tokenizer_size(tokenizer: Any) -> int:
    """Return the number above every id of a tokenizer."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def check_size(tokenizer: Any, rows: int, folder: Path) -> None:
    """Warn of a tokenizer that has more tokens than the model: some texts cannot be read."""
    size = tokenizer_size(tokenizer)
    if size > rows:
        first = tokenizer.convert_ids_to_tokens(rows)
        reason = f"its tokenizer has {size} tokens, the embedding {rows}: {first!r} is the first"
        warn_about(folder, f"{reason} that the model does not know", "no text may hold them")


def check_tokens(ids: ArrayLike, rows: int, folder: Path, tokenizer: Any = None) -> None:
    """Refuse tokens that the model has no embedding for.

    Args:
        ids: All tokens of a text.
        rows: See `embedding_rows`.
        folder: The checkpoint.
        tokenizer: Where the tokens are from; None for ids from a file.

    Raises:
        FormatError: Naming the first such token.
    """
    above = np.flatnonzero(np.asarray(ids) >= rows)
    if not len(above):
        return
    token = int(np.asarray(ids).flat[above[0]])
    if tokenizer is None:
        reason = f"its embedding has {rows} tokens, and the text holds the id {token}"
        raise FormatError.about(folder, reason, "give ids of this model's tokens")
    size, name = tokenizer_size(tokenizer), tokenizer.convert_ids_to_tokens(token)
    reason = f"its embedding has {rows} tokens, the tokenizer {size}: the text holds {name!r}"
    raise FormatError.about(folder, f"{reason}, number {token}", _REMEDY)
