"""Files that are often given in place of safetensors, known by their first bytes or name."""

from __future__ import annotations

import re
from typing import NamedTuple


class Foreign(NamedTuple):
    """A file that is not safetensors: what it is, and what to do about it.

    Examples:
        >>> recognise(b"PK").what
        'a zip archive, such as a PyTorch or .npz file'
    """

    what: str
    remedy: str


_CONVERT = "convert it to safetensors first, where you trust it"
_DOWNLOAD = "download the real file again"
_PICKLE = Foreign("a pickle, which can run code when it is loaded", _CONVERT)
_GGUF = Foreign("a GGUF file", "start from the original safetensors checkpoint")
_NUMPY = Foreign("a NumPy file", _CONVERT)

_BEGINNINGS: tuple[tuple[bytes, Foreign], ...] = (
    (b"PK", Foreign("a zip archive, such as a PyTorch or .npz file", _CONVERT)),
    (b"GGUF", _GGUF),
    (b"\x93NUMPY", _NUMPY),
    (b"\x89HDF", Foreign("an HDF5 file", _CONVERT)),
    (b"\x1f\x8b", Foreign("a gzip archive", "unpack it first")),
    (b"version https://git-lfs", Foreign("a Git LFS pointer", "run `git lfs pull`")),
    (b"\x80", _PICKLE),
)
_MARKUP = re.compile(rb"\s*<[!?A-Za-z]")
_SUFFIXES = {
    ".bin": _PICKLE,
    ".pt": _PICKLE,
    ".pth": _PICKLE,
    ".ckpt": _PICKLE,
    ".pkl": _PICKLE,
    ".npz": _NUMPY,
    ".npy": _NUMPY,
    ".gguf": _GGUF,
    ".h5": Foreign("an HDF5 file", _CONVERT),
}


def recognise(start: bytes) -> Foreign | None:
    """Return what a file is whose first bytes cannot begin a safetensors file, if known."""
    if not start:
        return Foreign("an empty file", _DOWNLOAD)
    if _MARKUP.match(start):
        return Foreign("a web page (HTML or XML)", _DOWNLOAD)
    return next((what for magic, what in _BEGINNINGS if start.startswith(magic)), None)


def recognise_name(suffix: str) -> Foreign | None:
    """Return what a file with this suffix is meant to be, if it is known not to be safetensors.

    Examples:
        >>> recognise_name(".gguf").what, recognise_name(".safetensors")
        ('a GGUF file', None)
    """
    return _SUFFIXES.get(suffix.lower())
