"""The results of training: the plastic parts as an adapter, in the forms that clients load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
from plastic_core import RankLayer
from plastic_core.files import noting
from plastic_runtime import ByteCount

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.adapters.files import AdapterFiles
from plastic_export.adapters.half_precision import STORED, in_half
from plastic_export.adapters.mlx_form import mlx_files
from plastic_export.adapters.peft_form import peft_files
from plastic_export.adapters.sizes import count_adapter_bytes
from plastic_export.folder.adapter_files import FOLDER, PEFT_FOLDER


def count_run_bytes(shapes: Mapping[str, tuple[int, int]], largest: int) -> ByteCount:
    """Return the bytes that the larger adapter of a run takes, at any ranks.

    Args:
        shapes: Shape ``(out, in)`` of the layers by their path in mlx-lm's model.
        largest: Bytes that no adapter goes beyond.
    """
    return count_adapter_bytes({path: (s, STORED) for path, s in shapes.items()}, largest)


def round_as_stored(layers: Mapping[str, RankLayer]) -> dict[str, LoraPair]:
    """Round the plastic parts to what the adapters hold, in place, and return that.

    Args:
        layers: The layers by their path in mlx-lm's model; each keeps its rank.

    Raises:
        ValueError: If a factor does not fit into float16: names the layer.

    Examples:
        >>> from plastic_export.training import round_as_stored
        >>> layer = RankLayer(mx.array([[0.1]]), mx.array([2.0]), mx.array([[1.0]]))
        >>> pair = round_as_stored({"layers.0": layer})["layers.0"]
        >>> pair.A.dtype, round((layer(mx.ones(1)) - 0.2).item(), 5)
        (mlx.core.float16, -5e-05)
    """
    pairs = {}
    for path, layer in layers.items():
        with noting(f"in layer {path!r}"):
            pairs[path] = pair = in_half(LoraPair(layer.S[:, None] * layer.Vh, layer.U))
        set_pair(layer, pair)
    return pairs


def set_pair(layer: RankLayer, pair: LoraPair) -> None:
    """Give a layer the components that an adapter holds, at their rank."""
    ones = mx.ones(pair.rank, layer.S.dtype)
    layer.set_factors(pair.B.astype(layer.U.dtype), ones, pair.A.astype(layer.Vh.dtype))


def least_run_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the least ceiling that one component for each layer obeys.

    The header of a file counts as if it named as many bytes as the ceiling, so a higher ceiling may
    take some bytes more.
    """
    least, ones = 0, dict.fromkeys(shapes, 1)
    while (needed := count_run_bytes(shapes, least)(ones)) > least:
        least = needed
    return least


def run_files(adapter: Adapter) -> tuple[AdapterFiles, AdapterFiles]:
    """Return an adapter as mlx-lm and as PEFT load it, both with one rank for all.

    That costs PEFT's form the zeros that fill smaller ranks up, and is right in every client:
    vLLM and SGLang know no ranks of single layers.

    Raises:
        ValueError: If every rank is 0.
    """
    return mlx_files(adapter), peft_files(adapter, uniform=True)


def stored_bytes(adapter: Adapter) -> int:
    """Return the bytes of the larger file of tensors that an adapter is stored as."""
    return max(files.nbytes for files in run_files(adapter))


def write_adapters(out: Path, adapter: Adapter) -> tuple[Path, Path]:
    """Write the results of a run for mlx-lm and for PEFT.

    Args:
        out: Where the folders ``adapters`` and ``peft`` are put.
        adapter: The updates by path in mlx-lm's model; at least one component among them.

    Returns:
        Both folders.

    Raises:
        ValueError: If every rank is 0.
        FormatError: If an adapter there is not what this run wrote.
        OSError: If the system refuses.
    """
    stock, peft = run_files(adapter)
    return stock.rewrite(out / FOLDER), peft.rewrite(out / PEFT_FOLDER)
