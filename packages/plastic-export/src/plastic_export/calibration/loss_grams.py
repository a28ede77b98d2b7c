"""From a calibration text to a file with both Grams of every matrix."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from plastic_core.layer import is_stack, linear_shape
from plastic_runtime import GramFile, Track, measure_grams, untracked
from plastic_runtime.measure import LONGEST_DENSE_SIDE, modules_by_path

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.load import load_model

_TOKENS = 2048  # at most so many in one pass, unless one window has more
_VALUES = 2**21  # and so many entries of the widest activation, of which a block holds a dozen


def measure_loss_grams(
    checkpoint: Checkpoint,
    calibration: Calibration,
    paths: Sequence[str],
    file: Path,
    *,
    widest: int = LONGEST_DENSE_SIDE,
    replace: bool = False,
    track: Track = untracked,
) -> GramFile:
    """Run the text through the model, forwards and backwards, and keep the Grams in a file.

    Memory: the model as it is stored, and the Grams of one of its blocks (``measure_grams``).

    Args:
        checkpoint: The open source. Its whole model is loaded for this step; all activations are
            float32.
        calibration: The text and how much of it.
        paths: Module paths of the linear layers, embeddings and stacks of experts to measure.
        file: File for the Grams: a run that was cut goes on from what is in its folder
            ``<file>.parts``, one that was finished is not repeated.
        widest: The longest side of a dense Gram.
        replace: Whether a file of another run, or a damaged one, is replaced and not refused.
        track: Wraps the loops over the batches of windows and over the blocks.

    Returns:
        The Grams of every layer that was run, by module path: the open file, to be closed. There
        are none of layers whose weights the model's own code reads past the layer, since packed
        they would be taken for other numbers.

    Raises:
        FormatError: If the model or the text cannot be read.
        ValueError: If the text holds fewer tokens than one window, an activation or a gradient is
            not finite (the layer is named), or ``file`` is of another run: of another text, other
            weights or another configuration.
    """
    tokens = calibration.tokens(checkpoint)
    overflows(checkpoint.folder, tokens)
    model = load_model(checkpoint.folder)
    use_float32(model)
    vocabulary, read = _first_pass(model, paths, tokens)
    paths = [path for path in paths if path not in read]
    batches = in_batches(tokens, max([vocabulary, *_sides(model, checkpoint.config, paths)]))
    return measure_grams(
        model,
        batches,
        file,
        paths=paths,
        widest=widest,
        configuration=checkpoint.config,
        replace=replace,
        needed=False,
        track=track,
    )


def _sides(model: nn.Module, config: Mapping[str, Any], paths: Sequence[str]) -> list[int]:
    """Entries per token of what enters and leaves the layers."""
    modules, sides = modules_by_path(model), list[int]()
    for path in paths:
        module = modules[path]
        if is_stack(module):
            widest = max(module.input_dims, module.output_dims)
            sides.append(widest * int(config.get("num_experts_per_tok", 1)))
        elif isinstance(module, nn.Linear | nn.QuantizedLinear):
            sides += linear_shape(module)
    return sides


def in_batches(tokens: mx.array, widest: int) -> list[mx.array]:
    """Cut windows, shape (windows, length), into what one pass takes.

    Args:
        tokens: The windows.
        widest: Entries per token of the widest activation, logits included.

    Examples:
        >>> windows = mx.zeros((6, 1024), mx.int32)
        >>> [batch.shape for batch in in_batches(windows, widest=1000)]
        [(2, 1024), (2, 1024), (2, 1024)]
    """
    rows = max(1, min(_TOKENS, _VALUES // widest) // tokens.shape[1])
    return [tokens[i : i + rows] for i in range(0, len(tokens), rows)]


def use_float32(model: nn.Module) -> None:
    """Make all activations float32, without a copy of the large weights.

    The product of a float32 input with a weight of any type is that with the weight widened, so
    dense linear layers and experts keep theirs; all other parameters are widened.

    Examples:
        >>> model = load_model("SRC")
        >>> use_float32(model)
        >>> model(mx.array([[3, 4]])).dtype
        mlx.core.float32
    """
    for module in model.modules():  # type: ignore[no-untyped-call]
        is_large = isinstance(module, nn.Linear) or is_stack(module)
        kept = ("weight",) if is_large else ()
        floats = {n: a for n, a in module.items() if n not in kept and _is_float(a)}
        module.update({n: a.astype(mx.float32) for n, a in floats.items()})


def _is_float(value: object) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)


def _first_pass(model: nn.Module, paths: Sequence[str], tokens: mx.array) -> tuple[int, set[str]]:
    """Run one token; return the size of the vocabulary, and the layers whose weights were read.

    Layers read their own as ``self["weight"]``. The model reads ``layer.weight`` where it computes
    with it by itself, as mlx-lm's Seed-OSS does with tied embeddings.
    """
    modules, read = modules_by_path(model), set[str]()
    kinds = {path: type(modules[path]) for path in paths}
    try:
        for path, kind in kinds.items():
            modules[path].__class__ = _watched(kind, path, read)
        size: int = model(tokens[:1, :1]).shape[-1]
    finally:
        for path, kind in kinds.items():
            modules[path].__class__ = kind
    return size, read


def _watched(kind: type[nn.Module], path: str, read: set[str]) -> type[nn.Module]:
    """Return a subclass that notes where its weight is asked for by code other than MLX's."""

    def __getattr__(self: nn.Module, name: str) -> Any:
        reader = str(sys._getframe(1).f_globals.get("__name__"))
        if name == "weight" and not reader.startswith("mlx."):  # MLX's embeddings read their own
            read.add(path)
        return kind.__getattr__(self, name)

    return type(kind.__name__, (kind,), {"__getattr__": __getattr__, "__module__": kind.__module__})
