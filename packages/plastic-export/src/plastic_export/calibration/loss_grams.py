"""From a calibration text to a file with both Grams of every matrix."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from plastic_core.layer import is_stack, linear_shape
from plastic_runtime import GramFile, Track, measure_grams, untracked
from plastic_runtime.distributed import Team
from plastic_runtime.measure import (
    LONGEST_DENSE_SIDE,
    block_of,
    model_blocks,
    modules_by_path,
)

from plastic_export.calibration.overflow import overflows
from plastic_export.calibration.reloading import Reloading
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.load import load_model
from plastic_export.model.numpy_functions import use_numpy_functions

_TOKENS = 2048  # at most so many in one pass, unless one window has more
_VALUES = 2**21  # and so many entries of the widest activation, of which a block holds a dozen
_PULLED = 0.5  # of this share of the tokens gradients are taken (measured: decision on gradients)


def measure_loss_grams(
    checkpoint: Checkpoint,
    calibration: Calibration,
    paths: Sequence[str],
    file: Path,
    *,
    widest: int = LONGEST_DENSE_SIDE,
    replace: bool = False,
    track: Track = untracked,
    team: Team | None = None,
) -> GramFile:
    """Run the text through the model, forwards and backwards, and keep the Grams in a file.

    Memory: what is outside the blocks of the model, one block, and its Grams (``measure_grams``).

    Args:
        checkpoint: The open source. Its blocks are read one at a time, about five times; all
            activations are float32.
        calibration: The text and how much of it. Inputs are of all its tokens, gradients of
            `pulled_tokens`, spread evenly.
        paths: Module paths of the linear layers, embeddings and stacks of experts to measure.
        file: File for the Grams: a run that was cut goes on from what is in its folder
            ``<file>.parts``, one that was finished is not repeated.
        widest: The longest side of a dense Gram.
        replace: Whether a file of another run, or a damaged one, is replaced and not refused.
        track: Wraps the loops over the batches of windows and over the blocks.
        team: The processes that measure together; see ``measure_grams``.

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
    model = _float32_model(checkpoint.folder)
    read = _read_weights(model, paths, tokens)
    paths = [path for path in paths if path not in read]
    batches = in_batches(tokens, max([1, *_sides(model, checkpoint.config, paths)]))
    modules = modules_by_path(model)
    pulled = pulled_tokens(tokens.size, *_outputs([modules[path] for path in paths], widest))
    with use_numpy_functions():
        return measure_grams(
            model,
            batches,
            file,
            paths=paths,
            widest=widest,
            gradients=-(-len(batches) * pulled // tokens.size),
            configuration=checkpoint.config,
            replace=replace,
            needed=False,
            release=Reloading(model, lambda: _float32_model(checkpoint.folder)),
            track=track,
            team=team,
        )


def pulled_tokens(tokens: int, longest: int, routed: bool) -> int:
    """Return how many tokens gradients are taken of.

    Half of them, and no fewer than the entries of the longest gradient with a dense Gram, which
    would have no full rank. All, where experts see few of them each.

    Args:
        tokens: Tokens of the text.
        longest: Entries of that gradient.
        routed: Whether there are experts.

    Examples:
        >>> pulled_tokens(32_768, 1536, False), pulled_tokens(32_768, 28_672, False)
        (16384, 28672)
        >>> pulled_tokens(1024, 1536, False), pulled_tokens(32_768, 1536, True)
        (1024, 32768)
    """
    return tokens if routed else min(tokens, max(ceil(_PULLED * tokens), longest))


def _outputs(modules: Sequence[nn.Module], widest: int) -> tuple[int, bool]:
    """Return the longest output side with a dense Gram, and whether there are experts."""
    linears = [m for m in modules if isinstance(m, nn.Linear | nn.QuantizedLinear)]
    sides = [linear_shape(m)[0] for m in linears]
    dense = (side for side in sides if side <= widest)
    return max(dense, default=0), any(is_stack(m) for m in modules)


def _float32_model(folder: Path) -> nn.Module:
    """Load a model whose activations are float32; none of its weights are read yet."""
    model = load_model(folder)
    use_float32(model)
    return model


def _sides(model: nn.Module, config: Mapping[str, Any], paths: Sequence[str]) -> list[int]:
    """Entries per token of what enters and leaves the layers in blocks, or all where none are."""
    modules, sides, blocks = modules_by_path(model), list[int](), model_blocks(model)
    for path in paths:
        if blocks and block_of(path, blocks) is None:
            continue
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
        widest: Entries per token of the widest activation.

    Examples:
        >>> windows = mx.zeros((6, 1024), mx.int32)
        >>> [batch.shape for batch in in_batches(windows, widest=1000)]
        [(2, 1024), (2, 1024), (2, 1024)]
    """
    rows = rows_at_a_time(tokens.shape[1], widest)
    return [tokens[i : i + rows] for i in range(0, len(tokens), rows)]


def rows_at_a_time(length: int, widest: int) -> int:
    """Return how many windows of ``length`` tokens one pass takes; see `in_batches`."""
    return max(1, min(_TOKENS, _VALUES // widest) // length)


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


def _read_weights(model: nn.Module, paths: Sequence[str], tokens: mx.array) -> set[str]:
    """Build a pass of one token; return the layers whose weights were read.

    Layers read their own as ``self["weight"]``. The model reads ``layer.weight`` where it computes
    with it by itself, as mlx-lm's Seed-OSS does with tied embeddings.
    """
    modules, read = modules_by_path(model), set[str]()
    kinds = {path: type(modules[path]) for path in paths}
    try:
        for path, kind in kinds.items():
            modules[path].__class__ = _watched(kind, path, read)
        model(tokens[:1, :1])
    finally:
        for path, kind in kinds.items():
            modules[path].__class__ = kind
    return read


def _watched(kind: type[nn.Module], path: str, read: set[str]) -> type[nn.Module]:
    """Return a subclass that notes where its weight is asked for by code other than MLX's."""

    def __getattr__(self: nn.Module, name: str) -> Any:
        reader = str(sys._getframe(1).f_globals.get("__name__"))
        if name == "weight" and not reader.startswith("mlx."):  # MLX's embeddings read their own
            read.add(path)
        return kind.__getattr__(self, name)

    return type(kind.__name__, (kind,), {"__getattr__": __getattr__, "__module__": kind.__module__})
