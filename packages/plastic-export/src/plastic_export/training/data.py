"""Training data in mlx-lm's formats, read and turned into tokens before the first step."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, sha256_file

from plastic_export.calibration.rows import at_line, check_row, fields_of, read_rows
from plastic_export.training.row_tokens import RowTokens, check_ended, check_learnable

NAMES = {"train": "train.jsonl", "valid": "valid.jsonl"}


@dataclass(frozen=True)
class TrainingData:
    """The data that a run learns from and is judged by.

    Attributes:
        train: mlx-lm's ``CacheDataset``, every row in tokens.
        valid: The same of the validation rows.
        tokens: Number of training tokens, whatever a window cuts off included.
        longest: Tokens of the longest row of either.
        digests: SHA-256 of the files, by ``"train"`` and ``"valid"``.
    """

    train: Any
    valid: Any
    tokens: int
    longest: int
    digests: dict[str, str]


def read_training_data(
    folder: Path, tokenizer: Any, *, batch: int, window: int, mask_prompt: bool = False
) -> TrainingData:
    """Read ``train.jsonl`` and ``valid.jsonl`` of a folder, one row per line.

    Rows are texts, prompts with completions, or chats, as ``mlx_lm.lora`` reads them. Every row
    becomes tokens here, so that none can fail later.

    Args:
        folder: Where the files are.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        batch: Rows that a step takes; there must be as many.
        window: Tokens that stay of a longer row; one of them at least must be learned.
        mask_prompt: Learn the completions alone.

    Raises:
        FormatError: If a file or enough rows are missing, a row is no row or has no token to
            learn from within the window: names the line.
        OSError: If a file cannot be read.

    Examples:
        >>> from mlx_lm.utils import load_tokenizer
        >>> rows = read_training_data(Path("data"), load_tokenizer("SRC"), batch=2, window=32)
        >>> len(rows.train) >= 2, len(rows.valid) >= 1
        (True, True)
    """
    if not folder.is_dir():
        raise FormatError.about(folder, "there is no such folder", _remedy(folder))
    least = {"train": batch, "valid": 1}
    read = {
        kind: _read(
            folder / name, tokenizer, least=least[kind], window=window, mask_prompt=mask_prompt
        )
        for kind, name in NAMES.items()
    }
    lengths = {kind: own for kind, (_, own) in read.items()}
    return TrainingData(
        **{kind: rows for kind, (rows, _) in read.items()},
        tokens=sum(lengths["train"]),
        longest=max(max(own) for own in lengths.values()),
        digests={kind: sha256_file(folder / name) for kind, name in NAMES.items()},
    )


def _remedy(folder: Path) -> str:
    """Say what to name instead; what looks like a data set of the Hub is fetched first."""
    remedy = f"name one with {' and '.join(NAMES.values())}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return remedy
    fetch = ("hf", "download", "--repo-type", "dataset", str(folder), "--local-dir", "DIR")
    return f"{remedy}; a data set of the Hub is fetched first: {shlex.join(fetch)}"


def _read(
    file: Path, tokenizer: Any, *, least: int, window: int, mask_prompt: bool
) -> tuple[Any, list[int]]:
    """Return mlx-lm's dataset of a file, every row in tokens, and how many each has."""
    numbered = read_rows(file)
    if len(numbered) < least:
        reason = f"{len(numbered)} rows, and a batch takes {least}"
        raise FormatError.about(file, reason, "give more rows or a smaller --batch")
    first, lengths = min(numbered), []
    with at_line(file, first):
        fields = fields_of(numbered[first])
    for line, row in numbered.items():
        with at_line(file, line):
            check_row(row, fields)
    with at_line(file, first):
        rows = RowTokens([*numbered.values()], tokenizer, mask_prompt)
    for index, line in enumerate(numbered):
        with at_line(file, line):
            tokens, offset = rows.read(index)
            check_learnable(len(tokens), offset, window)
            check_ended(tokens[:window])
            lengths.append(len(tokens))
    return rows.dataset, lengths
