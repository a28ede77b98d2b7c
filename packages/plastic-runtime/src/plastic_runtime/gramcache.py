"""Sums over the batches of a text, kept in one file: a run that was cut goes on from there."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from plastic_runtime.atomic import replacing

VERSION = 1
HEADER = "header"

Arrays = Mapping[str, NDArray[np.float64]]


class GramCache:
    """One file of sums, and which batches of which text are in them.

    Args:
        file: Where; read if it exists, in a folder that does.
        model: Whose sums; all its parameters are digested, names, types and shapes included.
        settings: What else the sums depend on, as JSON holds it.

    Attributes:
        arrays: The sums in the file, by name; none if there is no file.
        meta: What was saved with them.

    Raises:
        ValueError: If the file is damaged, or of another model or other settings.
        OSError: If the file cannot be read.
    """

    def __init__(self, file: Path, model: nn.Module, settings: Mapping[str, Any]) -> None:
        self.file = Path(file)
        self.arrays: Arrays = {}
        self.meta: dict[str, Any] = {}
        self._made_for = {"version": VERSION, "model": _model_digest(model), **settings}
        self._text = hashlib.sha256()
        self._batches = 0
        self._saved = (0, self._text.hexdigest())
        if self.file.exists():
            self._load()

    def rest(
        self, draws: Iterable[tuple[mx.array, mx.array]]
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """Yield the batches that are not in the file yet, each with what is paired with it.

        Raises:
            ValueError: If those in the file are not the first ones; before any is yielded.
        """
        count, text = self._saved
        for batch, paired in draws:
            _add(self._text, "batch", batch)
            self._batches += 1
            if self._batches == count and self._text.hexdigest() != text:
                raise self._refusal("text")
            if self._batches > count:
                yield batch, paired
        if self._batches < count:
            raise self._refusal("text")

    def save(self, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Replace the file: the sums over all batches yielded so far.

        It appears complete and synced to disk, or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        done = {"batches": self._batches, "text": self._text.hexdigest()}
        header = json.dumps({"made_for": self._made_for, "done": done, "meta": meta})
        content: dict[str, Any] = {HEADER: np.frombuffer(header.encode(), np.uint8), **arrays}
        with replacing(self.file) as stream:
            np.savez(stream, **content)

    def _load(self) -> None:
        try:
            with self.file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                header = json.loads(content[HEADER].tobytes())
                self.arrays = {name: content[name] for name in content.files if name != HEADER}
            made_for, done, self.meta = header["made_for"], header["done"], header["meta"]
            self._saved = (done["batches"], done["text"])
        except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
            reason = "damaged or no cache of Grams; delete it or name another file."
            raise ValueError(f"{os.fspath(self.file)}: {reason}") from error
        for name, wanted in self._made_for.items():
            if made_for.get(name) != wanted:
                raise self._refusal(name)

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"{os.fspath(self.file)}: `cache` must be of the same model, seed, layers and text, "
            f"but its {what} differs; delete it or name another file."
        )


def _model_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    parameters = model.parameters()  # type: ignore[no-untyped-call]
    for name, array in sorted(dict(tree_flatten(parameters)).items()):
        _add(digest, name, array)
    return digest.hexdigest()


def _add(digest: Any, name: str, array: mx.array) -> None:
    digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
    digest.update(np.asarray(array.reshape(-1).view(mx.uint8)))
