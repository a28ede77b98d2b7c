"""``merge_into``: adapters added to the weights of their base, one matrix in memory at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import FormatError, TensorSpec, files_under, write_json
from plastic_core.linalg import as_matrix
from plastic_runtime import Track, untracked

from plastic_export.adapters.adapter import Adapter, LoraPair
from plastic_export.checkpoint.packing import Packing, unpacked, without_quantization
from plastic_export.checkpoint.reader import CONFIG, Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import FLOATS, module_path, stored_parts
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.shards import Shards, as_float32, as_stored
from plastic_export.reshaping.adding import added

Values = NDArray[np.float32]


@dataclass(frozen=True)
class MergedBase:
    """A base with adapters merged in.

    Attributes:
        out: Its folder.
        nbytes: Bytes of all files.
        errors: What rounding to the stored type, or to the bits of the base, lost of every matrix
            that was changed, by path: relative to the Frobenius norm of the exact sum.
        update_error: The same over all of them, relative to the norm of what was added: above 1
            the rounding is larger than the adapter.
        quantized: Whether matrices that were changed are quantised.

    Examples:
        >>> merged = merge_into(["RUN"], "SRC", "MERGED")
        >>> merged.quantized, max(merged.errors.values()) < 0.01  # bfloat16
        (False, True)
    """

    out: Path
    nbytes: int
    errors: dict[str, float]
    update_error: float
    quantized: bool


def merge_into(
    sources: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    track: Track = untracked,
) -> MergedBase:
    """Add adapters to the weights of their base; the output runs in stock mlx-lm.

    A matrix that an adapter changes is stored as the base stores it, rounded anew; all else keeps
    its bits.

    Args:
        sources: The adapters, see `read_adapter`.
        base: Folder or Hub id; dense, or quantised by MLX.
        out: Folder to make.
        weights: A number for each adapter; by default 1.
        dequantize: Store changed matrices of a quantised base dense, in the type of their scales.
        revision: Commit, tag or branch of a Hub id.
        track: Wraps the loop over the tensors.

    Returns:
        What was written, and what its rounding lost.

    Raises:
        FormatError: If an adapter does not fit the base, either is damaged or of a kind that
            nothing can be added to, or the place is taken.
        ValueError: If there are not as many weights as adapters, or a sum is beyond its type.
        OSError: If the system refuses. Nothing is left behind.

    Examples:
        >>> merge_into(["RUN"], "SRC", "WHOLE", weights=[0.5]).out.name
        'WHOLE'
    """
    opened = open_checkpoint(base, revision=revision)
    with opened as checkpoint, OutputFolder(out, source=checkpoint.folder) as folder:
        _check_base(checkpoint)
        adapter = added(sources, weights, checkpoint)
        _check_plain(checkpoint, adapter)
        work = _Merging(checkpoint, adapter, dequantize)
        with Shards(folder, work.specs, {"format": "mlx"}) as shards:
            for name in track(work.names, "merging"):
                for written, data in work.tensors(name):
                    shards.write(written, data)
        checkpoint.check_unchanged()
        dense = {path for path in work.errors if dequantize}
        write_json(folder / CONFIG, without_quantization(checkpoint.config, dense))
        checkpoint.copy_side_files(folder)
        nbytes = sum(path.stat().st_size for path in files_under(folder))
    return MergedBase(
        Path(out), nbytes, work.errors, work.update_error, work.packs and not dequantize
    )


class _Merging:
    """The tensors of the output, in an order in which all parts of a matrix follow each other."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, dequantize: bool) -> None:
        self.checkpoint, self.adapter, self.dequantize = checkpoint, adapter, dequantize
        changed = {f"{path}.weight" for path, pair in adapter.layers.items() if pair.rank}
        parts = {p.name for n in changed for p in stored_parts(n, checkpoint.tensors)}
        self.names = [n for n in checkpoint.tensors if n in changed or n not in parts]
        self.changed = changed
        self.specs = [spec for name in self.names for spec in self._specs(name)]
        self.packs = any(checkpoint.packing(name) is not None for name in changed)
        self.errors: dict[str, float] = {}
        self._lost, self._added = 0.0, 0.0

    @property
    def update_error(self) -> float:
        """What rounding lost over all matrices, relative to what was added."""
        return math.sqrt(self._lost / self._added) if self._added else 0.0

    def tensors(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield what is stored of a tensor, or of a matrix in all its parts."""
        if name not in self.changed:
            yield name, self.checkpoint.raw(name)
            return
        path, packing = module_path(name), self.checkpoint.packing(name)
        update = _dense(self.adapter.layers[path])
        exact = self.checkpoint.matrix(name) + update
        if packing is None or self.dequantize:
            stored = as_stored(exact, self._type(name))
            parts, back = {name: stored}, as_float32(stored)
        else:
            parts, back = self._packed(path, exact, packing)
        self._judge(path, exact, back, update)
        yield from parts.items()

    def _specs(self, name: str) -> Iterator[TensorSpec]:
        if name in self.changed and self.dequantize and self.checkpoint.packing(name):
            yield TensorSpec(name, self._type(name), self.checkpoint.shape(name))
            return
        tensors = self.checkpoint.tensors
        infos = stored_parts(name, tensors) if name in self.changed else [tensors[name]]
        yield from (TensorSpec(info.name, info.dtype, info.shape) for info in infos)

    def _type(self, name: str) -> str:
        """Return the type of a dense matrix: its own, or that of the scales of a packed one."""
        scales = f"{module_path(name)}.scales"
        packed = self.checkpoint.packing(name) is not None
        dtype = self.checkpoint.tensors[scales if packed else name].dtype
        return dtype if dtype in FLOATS else "BF16"

    def _packed(
        self, path: str, exact: Values, packing: Packing
    ) -> tuple[dict[str, mx.array], Values]:
        """Return a matrix in the bits of the base, and the matrix that these stand for."""
        like = self.checkpoint.read(f"{path}.scales").dtype
        weight = mx.array(exact)
        if mx.issubdtype(like, mx.floating):
            weight = weight.astype(like)
        words, scales, *biases = mx.quantize(
            weight, group_size=packing.group_size, bits=packing.bits, mode=packing.mode
        )
        back = unpacked(words, scales, biases[0] if biases else None, packing)
        parts = {f"{path}.weight": words, f"{path}.scales": scales}
        return parts | {f"{path}.biases": array for array in biases}, back

    def _judge(self, path: str, exact: Values, back: Values, update: Values) -> None:
        lost = float(np.square(exact - back, dtype=np.float64).sum())
        whole = float(np.square(exact, dtype=np.float64).sum())
        self.errors[path] = math.sqrt(lost / whole) if whole else 0.0
        self._lost += lost
        self._added += float(np.square(update, dtype=np.float64).sum())


def _dense(pair: LoraPair) -> Values:
    update: Values = np.float32(pair.scale) * (as_matrix(pair.B) @ as_matrix(pair.A))
    return update


def _check_base(base: Checkpoint) -> None:
    if "model_file" in base.config:
        reason = "it needs a model file; nothing can be added to its factors"
        raise FormatError.about(base.folder, reason, "`plastic export --to mlx` makes it dense")
    if base.holds_codes:
        reason = f"its weights are codes of {base.quantizer.method!r}"
        raise FormatError.about(base.folder, reason, base.quantizer.remedy(base.folder))


def _check_plain(base: Checkpoint, adapter: Adapter) -> None:
    """Refuse a layer that mlx-lm makes of other tensors while it loads, and a second scale."""
    for path in adapter.layers:
        if f"{path}.weight" not in base.tensors:
            reason = f"mlx-lm makes the layer '{path}' of tensors of other names"
            remedy = "convert it by mlx_lm.convert first"
            raise FormatError.about(base.folder, reason, remedy)
        if f"{path}.global_scale" in base.tensors:
            reason = f"layer '{path}' has a scale of the whole matrix (nvfp4)"
            raise FormatError.about(base.folder, reason, "name the dense original")
