"""Pairs of the standard library: what a function is called and says of itself, and its body.

Every function with a docstring is asked for in chat form, through the model's own template: its
signature and its docstring are the question, its body is the answer, and the answer alone is
learnt. One module in ``HELD_OUT`` is held out with all its functions.
"""

from __future__ import annotations

import ast
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import numpy as np

ASK = "Write the body of this Python function.\n\n"
APART = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "encodings"}
HELD_OUT = 8
LONGEST = 5  # characters per token of what may fit into a window
SEED = 0  # of the order that windows of many modules stand in


class FunctionPair(NamedTuple):
    """A question and its answer."""

    asked: str
    body: str

    @property
    def characters(self) -> int:
        """How long it is."""
        return len(self.asked) + len(self.body)


def pair_windows(
    tokenizer: Any, length: int, limit: int, held_out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return so many windows to train on and held-out ones, in a drawn order: see `Texts`.

    Pairs that are longer than a window are left out; shorter ones are filled up with the last
    token, which is not learnt.
    """
    pairs = list(library_pairs())
    train: list[np.ndarray] = []
    valid: list[np.ndarray] = []
    for i in np.random.default_rng(SEED).permutation(len(pairs)):
        module, pair = pairs[i]
        is_held_out = zlib.crc32(module.encode()) % HELD_OUT == 0
        kept, most = (valid, held_out) if is_held_out else (train, limit)
        if len(kept) < most and pair.characters < LONGEST * length:
            window = chat_window(tokenizer, pair, length)
            kept.extend([] if window is None else [window])
    return np.array(train), np.array(valid)


def library_pairs() -> Iterator[tuple[str, FunctionPair]]:
    """Yield the module and the pair of every function with a docstring and a body."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if APART.isdisjoint(inside.parts[:-1]):
            source = file.read_text(encoding="utf-8", errors="replace")
            lines = source.splitlines()
            for node in ast.walk(ast.parse(source)):
                pair = function_pair(lines, node)
                if pair is not None:
                    yield inside.as_posix(), pair


def function_pair(lines: list[str], node: ast.AST) -> FunctionPair | None:
    """Return the pair of a function; None if it has no docstring or nothing behind it."""
    if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None:
        return None
    said, *rest = node.body
    if not rest:
        return None
    asked = "\n".join(lines[node.lineno - 1 : said.end_lineno])
    body = "\n".join(lines[rest[0].lineno - 1 : node.end_lineno])
    return FunctionPair(dedent(asked), dedent(body))


def chat_window(tokenizer: Any, pair: FunctionPair, length: int) -> np.ndarray | None:
    """Return a pair through the template, the question not learnt; None if it is too long."""
    question = {"role": "user", "content": ASK + pair.asked}
    answer = {"role": "assistant", "content": pair.body}
    as_list = {"return_dict": False}
    tokens = tokenizer.apply_chat_template([question, answer], **as_list)
    offset = len(tokenizer.apply_chat_template([question], add_generation_prompt=True, **as_list))
    if len(tokens) > length:
        return None
    window = np.full(length, ~tokens[-1], np.int32)
    window[: len(tokens)] = tokens
    window[:offset] = ~window[:offset]
    return window
