"""Training data in mlx-lm's formats, read and turned into tokens before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from plastic_core.files import FormatError, parse_object, sha256_file

NAMES = {"train": "train.jsonl", "valid": "valid.jsonl"}
_FORMATS = '{"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]}'


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
    """
    if not folder.is_dir():
        raise FormatError.about(folder, "there is no such folder", "name one with train.jsonl")
    config = SimpleNamespace(mask_prompt=mask_prompt)
    least = {"train": batch, "valid": 1}
    sets = {
        kind: _read(folder / name, tokenizer, config, least[kind], window)
        for kind, name in NAMES.items()
    }
    lengths = {kind: [len(rows[i][0]) for i in range(len(rows))] for kind, rows in sets.items()}
    return TrainingData(
        **sets,
        tokens=sum(lengths["train"]),
        longest=max(max(own) for own in lengths.values()),
        digests={kind: sha256_file(folder / name) for kind, name in NAMES.items()},
    )


def _read(file: Path, tokenizer: Any, config: SimpleNamespace, least: int, window: int) -> Any:
    from mlx_lm.tuner.datasets import CacheDataset, create_dataset

    if not file.is_file():
        raise FormatError.about(file, "there is no such file", f"give one line per row: {_FORMATS}")
    lines = enumerate(file.read_bytes().splitlines(), start=1)
    numbered = {number: line for number, line in lines if line.strip()}
    rows = [
        parse_object(line, Path(f"{file}: line {number}"), "correct it")
        for number, line in numbered.items()
    ]
    if len(rows) < least:
        reason = f"{len(rows)} rows, and a batch takes {least}"
        raise FormatError.about(file, reason, "give more rows or a smaller --batch")
    try:
        dataset = CacheDataset(create_dataset(rows, tokenizer, config))
    except ValueError as error:
        reason = f"line {min(numbered)}: {str(error).splitlines()[0].rstrip(':')}"
        raise FormatError.about(file, reason, f"each line is one of {_FORMATS}") from None
    for i, number in enumerate(numbered):
        _check_row(f"{file}: line {number}", i, dataset, window)
    return dataset


def _check_row(where: str, index: int, dataset: Any, window: int) -> None:
    """Turn one row into tokens; mlx-lm and the tokenizers raise what they like."""
    try:
        tokens, offset = dataset[index]
    except Exception as error:
        named = isinstance(error, KeyError)
        what = f"no {error}" if named else " ".join(str(error).split())
        reason = f"cannot be read: {what or type(error).__name__}"
        raise FormatError.about(where, reason, f"each line is one of {_FORMATS}") from error
    if len(tokens) - max(1, offset) < 1:
        remedy = "remove the row or give it some text"
        raise FormatError.about(where, "no token is left to learn", remedy)
    if window <= offset:
        reason = f"its prompt has {offset} tokens, and a window of {window} leaves none to learn"
        raise FormatError.about(where, reason, "remove the row or give a longer --window")
