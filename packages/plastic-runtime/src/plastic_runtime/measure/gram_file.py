"""Grams in a file, one layer at a time: `GramFile` reads it, `append_grams` makes it grow."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from math import isqrt, prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    Closing,
    FormatError,
    check_memory,
    naming,
    open_regular,
    parse_object,
    sync,
)

from plastic_runtime.measure.grams import Gram, LossGrams, mirror

GRAM_FILE_VERSION = 3
ROWS = 64  # of a triangle, written at a time
HEADER = "header"
_REMEDY = "delete it or name another file"


class GramFile(Closing, Mapping[str, LossGrams]):
    """The Grams in a file that ``measure_grams`` wrote, read when they are asked for.

    A context manager. Iteration goes over the layers so that those with one input Gram follow each
    other; read in a row they get one and the same object, read once. Nothing but the latest input
    Gram is kept.

    The file is an archive of NumPy arrays (``np.load`` opens it): for every layer the lower
    triangle of each mean, row by row, in float32 (of a block-diagonal one, a row for each block),
    and under ``header`` a JSON text in bytes. The experts of a stack at ``P`` are the layers
    ``P.0``, ``P.1``, ... or, where they share their Grams, ``P``.

    Args:
        file: The file.

    Attributes:
        file: Where it is.
        made_for: What the Grams are of: digests of model and text, seed, layers.
        sites: The first layer with the same input Gram, for every layer.
        tokens: Number of tokens whose gradients were taken.

    Raises:
        FormatError: If it is damaged, no file of Grams, or has the layout of another version.
        OSError: If it cannot be read.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> measure_grams(model, [mx.array([[1, 2, 3]])], "grams").close()
        >>> with GramFile("grams") as grams:
        ...     grams.tokens, grams["layers.1"].input.matrix.shape
        (3, (4, 4))
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._latest: tuple[str, Gram] | None = None
        self._stream = open_regular(self.file)
        try:
            self._archive = self._opened()
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, path: str) -> LossGrams:
        """Return both Grams of a layer, float64; the rounding of float32 is in them."""
        return LossGrams(self.input(path), self.output(path))

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, path: object) -> bool:
        return path in self.sites  # Mapping's own would read the Grams

    def input(self, path: str) -> Gram:
        """Return the mean of ``x x^T`` over the inputs of a layer, shape (in, in), float64."""
        site = self.sites[path]
        if self._latest is None or self._latest[0] != site:
            self._latest = None  # two at a time would be too many
            self._latest = site, self._gram(f"input.{site}", self._counts[site])
        return self._latest[1]

    def output(self, path: str) -> Gram:
        """Return ``g g^T`` per token, summed over all outputs of a layer, (out, out), float64."""
        return self._gram(f"output.{path}", self.tokens)

    def count(self, path: str) -> int:
        """Return the number of inputs that a layer had; its Grams are not read."""
        return self._counts[self.sites[path]]

    def check(self) -> None:
        """Read every entry once, and compare it with its checksum.

        Raises:
            FormatError: If one is damaged.
        """
        try:
            damaged = self._archive.testzip()
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise self._damaged() from error
        if damaged is not None:
            raise self._damaged()

    def close(self) -> None:
        """Close the file and let the latest Gram go; a second call does nothing."""
        self._latest = None
        self._stream.close()

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._stream)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise self._damaged() from error

    def _read_header(self) -> None:
        try:
            header = parse_object(self._array(HEADER, "|u1").tobytes(), self.file, _REMEDY)
            version = header["version"]
            if version == GRAM_FILE_VERSION:
                self.made_for: dict[str, Any] = header["made_for"]
                self.sites: dict[str, str] = header["sites"]
                self._counts: dict[str, int] = header["counts"]
                self.tokens: int = header["tokens"]
                return
        except (zipfile.BadZipFile, AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged() from error
        reason = f"Grams in the layout of version {version}, not {GRAM_FILE_VERSION}"
        raise FormatError.about(self.file, reason, "delete it and calibrate again")

    def _gram(self, name: str, tokens: int) -> Gram:
        try:
            return Gram(_square(self._array(name, "<f4")), tokens)
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
            raise self._damaged() from error

    def _array(self, name: str, kind: str) -> NDArray[Any]:
        """Read one entry: an array of this kind with one or two axes. Its header is not trusted."""
        entry = self._archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError("a compressed or encrypted entry")
        check_memory(3 * entry.file_size, self.file, name)
        with self._archive.open(entry) as stream:
            np.lib.format.read_magic(stream)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            data = stream.read()
        fits = prod(shape) * dtype.itemsize == len(data) and len(shape) in (1, 2)
        if dtype != np.dtype(kind) or fortran or not fits:
            raise ValueError(f"{dtype} {shape} in {len(data)} bytes")
        return np.frombuffer(data, kind).reshape(shape)

    def _damaged(self) -> FormatError:
        return FormatError.about(self.file, "damaged or no file of Grams", _REMEDY)


class GramSum(NamedTuple):
    """An entry to write: the mean ``total / tokens``, of whose total the lower triangle counts.

    A stack of blocks is written block by block.

    Examples:
        >>> GramSum("input.up", np.eye(2), tokens=7).name
        'input.up'
    """

    name: str
    total: NDArray[np.float64]
    tokens: int


class Mark(NamedTuple):
    """The state of an archive: where its list of entries begins, and that list in hexadecimal."""

    end: int
    directory: str


def append_grams(file: Path, entries: Iterable[GramSum | bytes], mark: Mark | None) -> Mark:
    """Add entries to an archive as it was at ``mark``, whatever was added to it since.

    Equal entries give equal bytes, however many calls they are added in.

    Args:
        file: The archive; begun anew without a mark.
        entries: One at a time is in memory. Bytes are a header.
        mark: What the call before returned.

    Returns:
        Where it is now, synced to disk.

    Raises:
        OSError: If it cannot be written.

    Examples:
        >>> entry = GramSum("input.up", np.eye(2), tokens=7)
        >>> mark = append_grams(Path("grams"), [entry], None)
        >>> sorted(np.load("grams"))
        ['input.up']
    """
    with naming(file):
        _rewind(file, mark)
        with zipfile.ZipFile(file, "a") as archive:
            for entry in entries:
                name = HEADER if isinstance(entry, bytes) else entry.name
                # ZipInfo's own date is that of 1980, for the bytes to be the same at any time.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                    _write(stream, entry)
    end = archive.start_dir
    with file.open("rb") as stream:
        sync(stream.fileno())
        stream.seek(end)
        return Mark(end, stream.read().hex())


def _rewind(file: Path, mark: Mark | None) -> None:
    if mark is None:
        file.unlink(missing_ok=True)
        return
    with file.open("r+b") as stream:
        stream.truncate(mark.end)
        stream.seek(mark.end)
        stream.write(bytes.fromhex(mark.directory))


def _write(stream: IO[bytes], entry: GramSum | bytes) -> None:
    if isinstance(entry, bytes):
        np.lib.format.write_array(stream, np.frombuffer(entry, np.uint8))
        return
    size, tokens = entry.total.shape[-1], max(entry.tokens, 1)
    if entry.total.ndim == 3:
        triangles = entry.total[:, *np.tril_indices(size)] / tokens
        np.lib.format.write_array(stream, triangles.astype("<f4", order="C"))
        return
    kind = {"descr": "<f4", "fortran_order": False, "shape": (size * (size + 1) // 2,)}
    np.lib.format.write_array_header_1_0(stream, kind)
    for start in range(0, size, ROWS):
        rows = (entry.total[start : start + ROWS] / tokens).astype("<f4")
        lower = np.tri(len(rows), size, start, dtype=bool)
        stream.write(rows[lower].data)


def _square(triangles: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the symmetric matrix of a lower triangle, or those of a stack of them."""
    values = triangles.shape[-1]
    size = (isqrt(8 * values + 1) - 1) // 2
    if size * (size + 1) // 2 != values:
        raise ValueError(f"{values} values are no triangle")
    A = np.empty((*triangles.shape[:-1], size, size))
    start = 0
    for i in range(size):
        A[..., i, : i + 1] = triangles[..., start : start + i + 1]
        start += i + 1
    mirror(A)
    return A
