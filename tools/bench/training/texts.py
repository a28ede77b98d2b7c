"""The windows of tokens that a run trains and is measured on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data import topics
from typing import Any

import mlx.core as mx
import numpy as np
from plastic_export import load_tokenizer, text_windows

from training.pairs import pair_windows

DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
BOARD = DATA.with_name("board")
PAIRS = "pairs"
PAIRS_LEARNT = 1024


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, int32, shape ``(windows, length + 1)``.

    A token that is read and not learnt stands there as its complement, ``~token``, below zero.
    """

    train: np.ndarray
    valid: np.ndarray
    old: list[np.ndarray]

    def save(self, file: Path) -> None:
        """Write the windows, for a process of another run or of another library."""
        old: dict[str, Any] = {f"old{i}": windows for i, windows in enumerate(self.old)}
        np.savez(file, train=self.train, valid=self.valid, **old)

    @classmethod
    def load(cls, file: Path) -> Texts:
        """Return what `save` wrote."""
        with np.load(file) as found:
            old = [found[f"old{i}"] for i in range(len(found) - 2)]
            return cls(found["train"], found["valid"], old)


def tokens_of(batch: mx.array) -> mx.array:
    """Return the tokens, learnt or not."""
    return mx.where(batch < 0, ~batch, batch)


def learnt(batch: mx.array) -> mx.array:
    """Tell which tokens are to be learnt, of all but the first of every window."""
    return batch[:, 1:] >= 0


def read_texts(options: argparse.Namespace) -> Texts:
    """Return what a run trains on, is validated on, and what its base knows."""
    tokenizer = load_tokenizer(options.source)
    cut = partial(text_windows, tokenizer, length=options.length + 1)
    if options.task == PAIRS:
        train, valid = pair_windows(tokenizer, options.length + 1, PAIRS_LEARNT, options.windows)
    else:
        learn, judge = task_text(options)
        train, valid = np.array(cut(learn)), np.array(cut(judge, limit=options.windows))
    old = [path.read_text() for path in options.old]
    return Texts(train, valid, [np.array(cut(text, limit=options.windows)) for text in old])


def task_text(options: argparse.Namespace) -> tuple[str, str]:
    """Return text to train on and to validate on; Python's help topics where none is named."""
    if options.train is not None:
        return options.train.read_text(), options.valid.read_text()
    text = "\n\n".join(topics.topics.values())
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]
