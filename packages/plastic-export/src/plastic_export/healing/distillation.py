"""The divergence of a model from a reference, as the task of a healing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from plastic_core.files import Closing
from plastic_core.linalg import on_cpu
from plastic_runtime import Track, untracked

from plastic_export.healing.loop import Arrays, Rows
from plastic_export.healing.trainable import use_trainable_host_layers
from plastic_export.model.divergence import divergences, log_softmax
from plastic_export.model.numpy_functions import use_numpy_functions
from plastic_export.process.interruption import between

_LOGITS = 2**22  # of one model at a time, unless one window has more; several copies are held
ROOM = 2**31
"""Bytes of the reference's log-probabilities that a file may take."""
_HELD_OUT = 8  # one window in so many


class Split(NamedTuple):
    """Windows of a text by their numbers: those to learn from, those to judge by."""

    training: Rows
    held_out: Rows

    @classmethod
    def of(cls, windows: int) -> Split:
        """Hold out every eighth window.

        Raises:
            ValueError: If there are fewer than eight.
        """
        if windows < _HELD_OUT:
            raise ValueError(
                f"healing needs {_HELD_OUT} windows of text, of which it learns from "
                f"{_HELD_OUT - 1}, and there are {windows}; "
                "take a longer text, more windows or shorter ones"
            )
        numbers = np.arange(windows)
        held = numbers % _HELD_OUT == _HELD_OUT - 1
        return cls(numbers[~held], numbers[held])


class Teacher(Closing):
    """The log-probabilities of a model on windows of tokens, kept in a file if that is cheaper.

    It is where every window is asked for more often than once and the file, half precision, takes
    at most 2 GiB. It has no name, so that nothing is left of it whatever happens. Rounding moves
    a probability by less than 0.1 %, and they are normalised again. A context manager.

    Args:
        model: The model, for forward passes.
        tokens: Shape (windows, length).
        vocabulary: How many tokens take part, the rest being padding; by default all.
        uses: How many windows will be asked for in all.
        folder: Where the file goes.
        track: Wraps the loop that fills the file.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: mx.array,
        *,
        vocabulary: int | None = None,
        uses: int,
        folder: Path,
        track: Track = untracked,
    ) -> None:
        self._model = model
        self._tokens = tokens
        width: int = model(tokens[:1, :1]).shape[-1]
        self.vocabulary = width if vocabulary is None else min(width, vocabulary)
        self._bytes = 2 * tokens.shape[1] * self.vocabulary  # of one window
        self._file: IO[bytes] | None = None
        if uses > len(tokens) and self._bytes * len(tokens) <= ROOM:
            with ExitStack() as stack:
                self._file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                self._fill(self._file, track)
                stack.pop_all()  # close() does it
            del self._model  # and the caller may let it go as well

    def __call__(self, rows: Rows) -> mx.array:
        """Return log-probabilities, float32, shape ``(len(rows), length, vocabulary)``."""
        if self._file is None:
            return self._computed(rows)
        content = [os.pread(self._file.fileno(), self._bytes, i * self._bytes) for i in rows]
        kept = np.frombuffer(b"".join(content), np.float16).astype(np.float32)
        return log_softmax(mx.array(kept).reshape(len(rows), -1, self.vocabulary))

    def _fill(self, file: IO[bytes], track: Track) -> None:
        everything = parts(np.arange(len(self._tokens)), self._tokens, self.vocabulary)
        for rows in track(everything, "reading the reference"):
            file.write(np.asarray(self._computed(rows).astype(mx.float16)).tobytes())
        file.flush()

    def _computed(self, rows: Rows) -> mx.array:
        with use_numpy_functions():
            logits = self._model(self._tokens[mx.array(rows)])[..., : self.vocabulary]
            logits = logits.astype(mx.float32)
            mx.eval(logits)
        return log_softmax(logits)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()


class Distillation:
    """A ``Task``: the mean of KL(reference || model) over all positions, nats per token.

    Args:
        model: The one to heal. Where MLX computes on the CPU it is changed to float32 and NumPy.
        names: The parameters to train, by their names in the model.
        teacher: What to come near to.
        tokens: The windows that ``teacher`` has.
        split: Which of them are for what.

    Raises:
        ValueError: If the reference predicts more tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        teacher: Teacher,
        tokens: mx.array,
        split: Split,
    ) -> None:
        size = model(tokens[:1, :1]).shape[-1]
        if size < teacher.vocabulary:
            raise ValueError(
                f"`reference` must predict {size} tokens, as the checkpoint does, and predicts "
                f"{teacher.vocabulary}; name the checkpoint that it was made from"
            )
        self._host = on_cpu()
        if self._host:
            use_trainable_host_layers(model, set(names))
        self._model = model.train()  # some layers can be differentiated in this mode alone
        self._teacher = teacher
        self._tokens = tokens
        self._split = split
        self._sum = mx.grad(self._total)

    def gradient(self, values: Mapping[str, mx.array], rows: Rows) -> Arrays:
        """Return the gradient of the mean divergence over these training windows, by name."""
        numbers, total = self._split.training[rows], None
        with use_numpy_functions():
            for part in parts(numbers, self._tokens, self._teacher.vocabulary):
                new = self._sum(self._typed(values), part, self._teacher(part))
                total = new if total is None else {n: total[n] + g for n, g in new.items()}
                mx.eval(total)
        count = len(rows) * self._tokens.shape[1]
        return {name: g.astype(mx.float32) / count for name, g in (total or {}).items()}

    def divergence(self, values: Mapping[str, mx.array]) -> float:
        """Return the mean divergence over the held-out windows, summed in float64."""
        total, numbers = 0.0, self._split.held_out
        with use_numpy_functions():
            self._model.update(tree_unflatten(list(self._typed(values).items())))
            for part in between(parts(numbers, self._tokens, self._teacher.vocabulary)):
                log_q = self._teacher(part)
                kl = divergences(self._logits(part), log_q)
                mx.eval(kl)
                total += float(np.asarray(kl, np.float64).sum())
        return total / (len(numbers) * self._tokens.shape[1])

    def _total(self, values: Arrays, rows: Rows, log_q: mx.array) -> mx.array:
        self._model.update(tree_unflatten(list(values.items())))
        return divergences(self._logits(rows), log_q).sum()

    def _logits(self, rows: Rows) -> mx.array:
        """Return the logits of the tokens that take part."""
        logits: mx.array = self._model(self._tokens[mx.array(rows)])
        return logits[..., : self._teacher.vocabulary]

    def _typed(self, values: Mapping[str, mx.array]) -> Arrays:
        """Return it in the type that the model computes in."""
        return {n: v.astype(mx.float32) if self._host else v for n, v in values.items()}


def parts(rows: Rows, tokens: mx.array, vocabulary: int) -> list[Rows]:
    """The rows in batches of as many logits as may be held."""
    size = max(1, _LOGITS // (tokens.shape[1] * vocabulary))
    return [rows[i : i + size] for i in range(0, len(rows), size)]
