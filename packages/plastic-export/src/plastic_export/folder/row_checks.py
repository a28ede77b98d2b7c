"""The rows of a damaged tensor that are damaged: a CRC-32 for every row beside the digest."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plastic_core.files import TensorInfo, open_safetensors


def row_checks(path: Path) -> dict[str, str]:
    """Return the checksums of all rows of a file, by tensor, in base64; none without a file."""
    if not path.is_file():
        return {}
    with open_safetensors(path) as file:
        return {
            name: base64.b64encode(_checks(file.read(info), info).tobytes()).decode()
            for name, info in file.header.tensors.items()
        }


def damaged_rows(data: NDArray[np.uint8], info: TensorInfo, checks: Mapping[str, str]) -> list[int]:
    """Return the rows of a tensor that are not as they were; none where that is not known."""
    stated = np.frombuffer(base64.b64decode(checks.get(info.name, "")), "<u4")
    found = _checks(data, info)
    if stated.size != found.size:
        return []
    return [int(row) for row in np.flatnonzero(stated != found)]


def _checks(data: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.uint32]:
    rows = info.shape[0] if info.shape else 1
    return np.array([zlib.crc32(row.data) for row in data.reshape(rows, -1)], "<u4")
