"""The output that a row leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from plastic_core.files import read_header


class Written(NamedTuple):
    """A checkpoint to measure.

    Attributes:
        folder: Where it is.
        nbytes: Bytes of its model files, and of its adapter.
        tensor_bytes: The same without headers.
        predicted: Its predicted KL in nats per token, where there is a prediction.
        versions: Of packages that made it and are not installed here.
    """

    folder: Path
    nbytes: int
    tensor_bytes: int
    predicted: float | None = None
    versions: Mapping[str, str] = MappingProxyType({})


def weigh(folder: Path, predicted: float | None = None) -> Written:
    """Return a finished checkpoint with the bytes of its model files and of its adapter."""
    files = [*folder.glob("model*.safetensors"), *folder.glob("adapters/*.safetensors")]
    tensors = [info.nbytes for file in files for info in read_header(file).tensors.values()]
    return Written(folder, sum(file.stat().st_size for file in files), sum(tensors), predicted)
