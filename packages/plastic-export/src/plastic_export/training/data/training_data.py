"""Training data in mlx-lm's formats, read and turned into tokens before the first step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from plastic_core.files import FormatError

from plastic_export.training.data.files import OF_MLX_LM, find_data_files
from plastic_export.training.data.held_out import hold_out
from plastic_export.training.data.row_tokens import RowTokens
from plastic_export.training.data.tables import read_table
from plastic_export.training.data.tokenized import TokenizedFile, tokenize

Places = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class TrainingData:
    """The data that a run learns from and is judged by.

    Attributes:
        train: mlx-lm's ``CacheDataset``: every row as its tokens, cut to the window, and how many
            of them begin it unlearned.
        valid: The same of the validation rows.
        tokens: Number of tokens of all rows read, whatever the window cuts off included.
        digests: SHA-256 of the rows in their order, by ``"train"`` and ``"valid"``: whatever file
            they came from.
        notes: Lines to say: what was read where names did not tell, what is left out and what is
            held out.
    """

    train: Any
    valid: Any
    tokens: int
    digests: dict[str, str]
    notes: tuple[str, ...]


def read_training_data(
    data: Places,
    tokenizer: Any,
    *,
    batch: int,
    window: int,
    mask_prompt: bool = False,
    validated: int | None = None,
    seed: int = 0,
) -> TrainingData:
    """Read rows to train on and to validate on: texts, prompts with completions, or chats.

    Every row becomes the tokens that ``mlx_lm.lora`` makes of it, here, so that none can fail
    later. Files may be of different formats. A row that teaches nothing is left out: a text or
    an answer that is empty, or an answer that the window cuts away, that is the last turn of a
    chat with ``mask_prompt``, and every turn of the assistant without.

    Args:
        data: A folder or file, or several, see `find_data_files`: JSONL with one row per line,
            parquet, arrow, or what ``datasets`` saved. Where nothing is for validation, a tenth
            of the rows is held out.
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        batch: Rows that a step takes; there must be as many.
        window: Tokens that stay of a longer row.
        mask_prompt: Learn the completions, or last answers, alone.
        validated: Rows that a validation reads at most; None for all. No more are held out.
        seed: Draws what is held out.

    Raises:
        FormatError: If a file or enough rows are missing, or a row is no row: names the line.
        ModuleNotFoundError: If there is a table and ``datasets`` is not installed.
        OSError: If a file cannot be read.

    Examples:
        >>> from mlx_lm.utils import load_tokenizer
        >>> rows = read_training_data("data", load_tokenizer("SRC"), batch=2, window=32)
        >>> len(rows.train) >= 2, len(rows.valid) >= 1
        (True, True)
    """
    places = [Path(one) for one in ([data] if isinstance(data, str | os.PathLike) else data)]
    files = find_data_files(places)
    train, valid = (
        [
            tokenize(read_table(file), tokenizer, window=window, mask_prompt=mask_prompt)
            for file in paths
        ]
        for paths in files
    )
    least = batch if valid else batch + 1
    rows = _rows(train, least, f"a batch takes {batch}" + ("" if valid else ", validation one"))
    notes = [*_chosen(places, files.train), *_notes(train), *_notes(valid)]
    if valid:
        judged = _rows(valid, 1, "a batch takes 1")
    else:
        total = len(rows)
        most = total - batch if validated is None else min(validated, total - batch)
        rows, judged = hold_out(rows, most=most, seed=seed)
        notes.append(
            f"no file of rows to validate on: {len(judged)} of {total} rows, drawn by the seed "
            f"{seed}, are held out of training"
        )
    return TrainingData(
        train=_mlx_lm_dataset(rows),
        valid=_mlx_lm_dataset(judged),
        tokens=sum(file.tokens for file in (*train, *valid)),
        digests={"train": _digest(rows), "valid": _digest(judged)},
        notes=tuple(notes),
    )


class _Tokenized:
    """Rows in tokens as a data set of mlx-lm, which batches them in their own order."""

    def __init__(self, rows: Sequence[RowTokens]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RowTokens:
        return self._rows[index]

    def process(self, row: RowTokens) -> RowTokens:
        return row


def _mlx_lm_dataset(rows: Sequence[RowTokens]) -> Any:
    from mlx_lm.tuner.datasets import CacheDataset

    return CacheDataset(_Tokenized(rows))


def _rows(files: Sequence[TokenizedFile], least: int, takes: str) -> list[RowTokens]:
    """Return the rows of all files, if they are enough."""
    rows = [row for file in files for row in file.rows]
    if len(rows) >= least:
        return rows
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    notes = [note for file in files for note in file.notes]
    reason = f"{len(rows)} rows{' are left' if notes else ''}, and {takes}"
    told = "".join(f" ({note})" for note in notes[:1])
    remedy = "give more rows, a smaller --batch" + (" or a longer --window" if notes else "")
    raise FormatError.about(f"{files[0].file}{more}", reason + told, remedy)


def _chosen(places: Sequence[Path], files: Sequence[Path]) -> list[str]:
    """Say which files of a folder are read, where mlx-lm's names do not tell."""
    if not any(place.is_dir() for place in places):
        return []
    if all(file in places or file.name == OF_MLX_LM["train"] for file in files):
        return []
    named = ", ".join(file.name for file in files[:3])
    return [f"rows to train on: {named}" + (f" and {len(files) - 3} more" * (len(files) > 3))]


def _notes(files: Sequence[TokenizedFile]) -> list[str]:
    return [f"{file.file}: {note}" for file in files for note in file.notes]


def _digest(rows: Sequence[RowTokens]) -> str:
    digest = hashlib.sha256()
    for ids, offset in rows:
        digest.update(np.array([len(ids), offset], np.int64).tobytes())
        digest.update(ids.tobytes())
    return digest.hexdigest()
