"""The bytes that adapters take as files, at any ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import mlx.core as mx
from plastic_core.files import dtype_name
from plastic_runtime import ByteCount

from plastic_export.adapters.adapter import Form
from plastic_export.adapters.kohya_form import KOHYA_NAMES, kohya_name
from plastic_export.adapters.peft_form import PREFIX

_HEADER = 8 + len('{"__metadata__":{"format":"mlx"}}') + 7  # its length, its own, its padding

PADDING = 64
"""Bytes by which headers of other ranks differ: their digits, their padding."""

Ranks = Mapping[str, int]


def fullest(
    choose: Callable[[int], dict[str, int]],
    count: ByteCount,
    nbytes: Callable[[Ranks], int],
    max_bytes: int,
) -> dict[str, int]:
    """Return the ranks that a choice finds for a file that may be full.

    `count_adapter_bytes` is a bound: what the file of the ranks that it leads to does not take is
    spent once more.

    Args:
        choose: Ranks by path within bytes as ``count`` has them.
        count: The bound.
        nbytes: Bytes of the file at ranks.
        max_bytes: Bytes that the file may take.
    """
    ranks = choose(max_bytes)
    spare = count(ranks) - nbytes(ranks)
    for more in (spare + PADDING, spare):
        fuller = choose(max_bytes + more)
        if nbytes(fuller) <= max_bytes:
            return fuller
    return ranks


def count_adapter_bytes(
    layers: Mapping[str, tuple[tuple[int, int], mx.Dtype]],
    largest: int,
    *,
    one_rank: bool = True,
    form: Form = "peft",
) -> ByteCount:
    """Return the bytes that the adapters of these layers take as files, at any ranks.

    Args:
        layers: Shape ``(out, in)`` and dtype of the factors, by path.
        largest: Bytes that no adapter goes beyond: a header writes the place of every tensor.
        one_rank: Whether the smaller ranks are filled up with zeros.
        form: The form of the file. That of PEFT has the longer names, and is counted for mlx-lm's.

    Returns:
        Ranks to bytes: those of the file, or a few tens of bytes per layer more.
    """
    return ByteCount(
        components={path: sum(shape) * dtype.size for path, (shape, dtype) in layers.items()},
        layers={path: _name_bytes(path, *layer, largest, form) for path, layer in layers.items()},
        fixed=_HEADER,
        one_rank=one_rank,
    )


def _name_bytes(
    path: str, shape: tuple[int, int], dtype: mx.Dtype, largest: int, form: Form
) -> int:
    """Return the bytes that the tensors of a layer take in the header, and a number of kohya's."""
    entry = {
        "dtype": dtype_name(mx.zeros(0, dtype)),
        "shape": [max(shape), max(shape)],
        "data_offsets": [largest, largest],
    }
    if form == "kohya":
        names, extra = [f"{kohya_name(path)}.{last}" for last in KOHYA_NAMES], mx.float32.size
    else:
        names, extra = [f"{PREFIX}{path}.lora_{side}.weight" for side in "AB"], 0
    text = json.dumps(dict.fromkeys(names, entry), ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) - 1 + extra  # its braces are one too many, and a comma goes before
