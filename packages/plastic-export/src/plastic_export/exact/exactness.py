"""The file ``exact.safetensors``: what an output lacks to give back every tensor of its source."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    ITEM_BYTES,
    Closing,
    FormatError,
    SafetensorsWriter,
    TensorInfo,
    TensorSpec,
    open_safetensors,
)
from plastic_runtime import Track, untracked
from plastic_runtime.dialling import read_manifest

from plastic_export.checkpoint.reader import CONFIG, Checkpoint
from plastic_export.exact.byte_planes import (
    CHUNK,
    Inflater,
    as_words,
    compressed_words,
    packed_words,
    unpacked_words,
)
from plastic_export.exact.prediction import WIDTHS, Guess
from plastic_export.format.layout import Contents
from plastic_export.format.parts import Parts
from plastic_export.format.stored import StoredMatrices

EXACT = "exact.safetensors"
KEY = "plastic_exact"
"""The entry of its header that says how every tensor comes back, as JSON."""
_VERSION = 1

Bytes = NDArray[np.uint8]


class Kept(NamedTuple):
    """The way in which a tensor of the source comes back.

    Attributes:
        dtype: The dtype of the source.
        shape: The shape of the source.
        sha256: The digest of its bytes.
        copied: Name of the tensor of the output that holds the same bytes; None for none.
        guessed: Whether the words kept are differences from what the factors sum to.
        block: Words in a block of planes.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    copied: str | None
    guessed: bool = False
    block: int = 0


class _Output(StoredMatrices):
    """The folder of a compressed checkpoint, and what its matrices stand for."""

    def __init__(self, folder: Path, contents: Contents, renamed: Mapping[str, str]) -> None:
        super().__init__(folder)
        self._contents = contents
        self._renamed = renamed

    def copy_of(self, info: TensorInfo, data: Bytes) -> str | None:
        """The tensor that holds exactly these bytes, where a copy of ``info`` would stand."""
        new = self._renamed.get(info.name, info.name)
        for name in dict.fromkeys((new, self._contents.place_of(new))):
            copy = self.model.tensors.get(name)
            alike = copy is not None and (copy.dtype, copy.shape) == (info.dtype, info.shape)
            if alike and np.array_equal(self.model.raw(name), data):
                return name
        return None

    def guess(self, name: str, dtype: str, shape: tuple[int, ...]) -> Guess | None:
        """Return what is stored of a matrix, awake and asleep; None where nothing plain is near."""
        parts = self._contents.parts.get(self._renamed.get(name, name), Parts())
        plain = all(self.has(part, dtype) for part in parts.present)
        if dtype not in WIDTHS or not parts.present or not plain:
            return None
        backbone, products = self.terms(parts, asleep=True)
        if not products:
            return Guess(dtype, (shape[0], shape[1]), backbone, None, None)
        U = np.concatenate([U for U, _ in products], axis=1)
        V = np.concatenate([V for _, V in products], axis=0)
        return Guess(dtype, (shape[0], shape[1]), backbone, U, V)


def write_exact(
    checkpoint: Checkpoint,
    folder: Path,
    contents: Contents,
    renamed: Mapping[str, str],
    *,
    track: Track = untracked,
) -> dict[str, str]:
    """Write ``exact.safetensors`` into a folder that holds everything but its manifest.

    A tensor that the folder holds bit for bit is only named. Of the others every word is kept: as
    its difference from the sum of the stored components where there are any (computed so that it
    is the same on every machine, see `Guess`), else as it is; in planes of bytes, compressed.

    Args:
        checkpoint: The source.
        folder: The output, its model files, ``sleep.safetensors`` and ``config.json`` written.
        contents: What became of the matrices.
        renamed: The tensors of the source that have another name in the output, and that name.
        track: Wraps the loop over the tensors.

    Returns:
        SHA-256 of every tensor written, by name.

    Cost:
        Reads source and output once more; one product per factored matrix. Three times the
        largest matrix in float64 is in memory; on the disk, for a while, the file twice.
    """
    kept: dict[str, Kept] = {}
    sizes: dict[str, int] = {}
    with _Output(folder, contents, renamed) as output, tempfile.TemporaryFile(dir=folder) as spool:
        for name in track(list(checkpoint.tensors), "keeping the source"):
            info, data = checkpoint.tensors[name], checkpoint.raw(name)
            kept[name], blocks = _keep(info, data, output)
            start = spool.tell()
            for part in blocks:
                spool.write(part)
            if kept[name].copied is None:
                sizes[name] = spool.tell() - start
        return _write(checkpoint, folder / EXACT, kept, sizes, spool)


class Exact(Closing):
    """The source of a compressed folder, tensor by tensor. A context manager.

    Attributes:
        kept: How each tensor comes back, by name, in the order of the source.
        config: Text of the source's ``config.json``.
        output: The compressed checkpoint.

    Raises:
        FormatError: If ``exact.safetensors`` is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / EXACT
        with ExitStack() as stack:
            self._file = stack.enter_context(open_safetensors(path))
            try:
                content = json.loads(self._file.header.metadata[KEY])
                if content["version"] != _VERSION:
                    reason = f"version {content['version']!r}, this is {_VERSION}"
                    raise FormatError.about(path, reason, "use the version that wrote it")
                self.config = str(content["config"])
                self.kept = {n: _kept(raw) for n, raw in content["tensors"].items()}
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                reason = f"damaged ({error!r})"
                raise FormatError.about(path, reason, "compress again") from error
            manifest = read_manifest(folder)
            output = _Output(folder, Contents.of_manifest(manifest), manifest.renamed)
            self._output = stack.enter_context(output)
            self.output = self._output.model
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every file."""
        self._stack.close()

    def specs(self) -> list[TensorSpec]:
        """Return the tensors of the source."""
        return [TensorSpec(name, k.dtype, k.shape) for name, k in self.kept.items()]

    def raw(self, name: str) -> Bytes:
        """Return the bytes of a tensor of the source, once they have its digest.

        Raises:
            FormatError: If they have not: the folder was changed since it was compressed.
        """
        kept = self.kept[name]
        data = self._decoded(name, kept) if kept.copied is None else self._copied(kept.copied)
        if data is None or hashlib.sha256(data.data).hexdigest() != kept.sha256:
            reason = "what comes back is not what the source held"
            remedy = "the folder was changed since; compress the source again"
            raise FormatError.about(self._file.path, reason, remedy, tensor=name)
        return data

    def _copied(self, name: str) -> Bytes | None:
        return self.output.raw(name) if name in self.output.tensors else None

    def _decoded(self, name: str, kept: Kept) -> Bytes | None:
        size = _word_size(kept.dtype)
        words = np.empty(math.prod(kept.shape) * ITEM_BYTES[kept.dtype] // size, f"<u{size}")
        guess = self._output.guess(name, kept.dtype, kept.shape) if kept.guessed else None
        if kept.guessed and guess is None:
            return None
        inflater = Inflater(self._file.read(self._file.header.tensors[_label(name)]).data)
        try:
            for block in _blocks(words.size, kept.block):
                stored = inflater.take(size * words[block].size)
                near = None if guess is None else guess.words(_rows(block, guess.shape))
                words[block] = unpacked_words(stored, size, near)
        except (zlib.error, ValueError):
            return None
        return words.view(np.uint8)


def _keep(info: TensorInfo, data: Bytes, output: _Output) -> tuple[Kept, Iterator[bytes]]:
    """Decide how a tensor is kept; and what is to be stored of it."""
    digest = hashlib.sha256(data.data).hexdigest()
    kept = Kept(info.dtype, info.shape, digest, output.copy_of(info, data))
    if kept.copied is not None:
        return kept, iter(())
    words = as_words(data, _word_size(info.dtype))
    guess = output.guess(info.name, info.dtype, info.shape)
    columns = 1 if guess is None else guess.shape[1]
    block = max(1, CHUNK // columns) * columns

    def planes(near: Guess | None) -> Iterator[bytes]:
        for place in _blocks(words.size, block):
            guessed = None if near is None else near.words(_rows(place, near.shape))
            yield packed_words(words[place], guessed)

    if guess is not None:  # unless the factors say nothing of it
        with_it, without = (_size(next(planes(near), b"")) for near in (guess, None))
        guess = guess if with_it < without else None
    return kept._replace(guessed=guess is not None, block=block), compressed_words(planes(guess))


def _size(block: bytes) -> int:
    """Return the bytes of a block once it is compressed."""
    return sum(map(len, compressed_words([block])))


def _write(
    checkpoint: Checkpoint,
    path: Path,
    kept: dict[str, Kept],
    sizes: dict[str, int],
    spool: IO[bytes],
) -> dict[str, str]:
    content = {
        "version": _VERSION,
        "config": (checkpoint.folder / CONFIG).read_text("utf-8"),
        "tensors": {name: k._asdict() for name, k in kept.items()},
    }
    specs = [TensorSpec(_label(name), "U8", (size,)) for name, size in sizes.items()]
    digests = {}
    spool.seek(0)
    with SafetensorsWriter(path, specs, {KEY: json.dumps(content)}) as writer:
        for spec in specs:
            data = spool.read(spec.nbytes)
            digests[spec.name] = hashlib.sha256(data).hexdigest()
            writer.write(spec.name, data)
    return digests


def _kept(raw: dict[str, Any]) -> Kept:
    return Kept(**{**raw, "shape": tuple(raw["shape"])})


def _label(name: str) -> str:
    """Return the name of a tensor's words, apart from every tensor of the model."""
    return f"exact.{name}"


def _word_size(dtype: str) -> int:
    return WIDTHS.get(dtype, min(4, ITEM_BYTES[dtype]))


def _blocks(count: int, block: int) -> Iterator[slice]:
    for start in range(0, count, block):
        yield slice(start, min(start + block, count))


def _rows(block: slice, shape: tuple[int, int]) -> slice:
    return slice(block.start // shape[1], block.stop // shape[1])
