"""Words of a tensor as differences from a guess, in planes of bytes, compressed; every bit back."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]

CHUNK = 2**20


def as_words(data: NDArray[np.uint8], size: int) -> Words:
    """Return the bytes as unsigned integers of ``size`` bytes, little-endian."""
    words: Words = data.view(f"<u{size}")
    return words


def packed_words(words: Words, guess: Words | None) -> bytes:
    """Return one block, ready to be compressed: the lowest bytes of all words, then the next.

    Args:
        words: Flat.
        guess: Words near them, whose differences are kept instead; None for the words themselves.
    """
    if guess is not None:
        words = _zigzag(_ordered(words) - _ordered(guess))
    planes = words.view(np.uint8).reshape(words.size, words.itemsize).T
    return planes.tobytes()


def unpacked_words(block: bytes, size: int, guess: Words | None) -> Words:
    """Return the words of a block that `packed` made with the same guess."""
    planes = np.frombuffer(block, np.uint8).reshape(size, len(block) // size)
    words = as_words(np.ascontiguousarray(planes.T).reshape(-1), size)
    if guess is not None:
        words = _ordered(_unzigzag(words) + _ordered(guess))
    return words


def compressed_words(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks as one zlib stream (RFC 1950), which every zlib reads alike."""
    # Runs and Huffman codes: the planes hold nothing that a search for matches would find.
    deflate = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    for block in blocks:
        yield deflate.compress(block)
    yield deflate.flush()


class Inflater:
    """Reads a zlib stream block by block; never more than asked for is in memory.

    Args:
        data: The stream.
    """

    def __init__(self, data: memoryview) -> None:
        self._data, self._inflate = data, zlib.decompressobj()
        self._rest = b""

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes; fewer where the stream ends.

        Raises:
            zlib.error: If the stream is damaged.
        """
        parts, missing = [], count
        while missing:
            source = self._rest or bytes(self._next())
            part = self._inflate.decompress(source, missing)
            self._rest = self._inflate.unconsumed_tail
            if not part and not source:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _next(self) -> memoryview:
        chunk, self._data = self._data[:CHUNK], self._data[CHUNK:]
        return chunk


def _ordered(words: Words) -> Words:
    """Floating-point words as integers in the order of their values; its own inverse.

    Those of negative numbers have all bits but the sign inverted: neighbours in value, -0.0 and
    0.0 included, become neighbours as two's complement.
    """
    bits = 8 * words.itemsize
    magnitude = words.dtype.type(2 ** (bits - 1) - 1)
    return np.where(words >> words.dtype.type(bits - 1), words ^ magnitude, words)


def _zigzag(words: Words) -> Words:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    one = words.dtype.type(1)
    return (words << one) ^ _all_ones_where(words >> words.dtype.type(8 * words.itemsize - 1))


def _unzigzag(words: Words) -> Words:
    one = words.dtype.type(1)
    return (words >> one) ^ _all_ones_where(words & one)


def _all_ones_where(ones: Words) -> Words:
    return ones * ones.dtype.type(2 ** (8 * ones.itemsize) - 1)
