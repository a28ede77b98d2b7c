"""A forward pass of a checkpoint as it is stored, one of its blocks in memory at a time."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core.layer import is_stack, linear_from
from plastic_core.linalg import on_cpu
from plastic_runtime.measure import (
    AS_LINEAR,
    BoundCall,
    intercepted,
    linear_layers,
    modules_by_path,
    numpy_product,
    using_numpy,
)

from plastic_export.calibration.loss_grams import use_float32
from plastic_export.model.load import load_model
from plastic_export.process.interruption import notice_interruption

_FILES = 10240  # open at once: macOS grants so many, but 256 unless it is asked to


def logits_by_blocks(folder: str | Path, tokens: mx.array) -> mx.array:
    """Load a checkpoint as mlx-lm does and run it, in the types in which it is stored.

    Every item of ``model.layers`` is read when it is called and given back when it has returned.
    Where MLX computes on the CPU, products of linear layers run in NumPy and are rounded to the
    type of their input. Stacks of experts run there in float32 alone, so a model that has some has
    float32 activations.

    Memory: the largest block and what is outside the blocks, embeddings and head. A model without
    ``layers`` is held as a whole.

    Args:
        folder: Folder in any format that `load_model` loads.
        tokens: Token ids, shape (batch, length).

    Returns:
        Logits, float32, evaluated, shape (batch, length, vocabulary).

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_model` does.
    """
    with many_files():
        return _run(_loaded(folder), modules_by_path(_loaded(folder)), tokens)


def _run(model: nn.Module, unread: Mapping[str, nn.Module], tokens: mx.array) -> mx.array:
    """Run a model whose blocks take back what ``unread`` has when they have returned."""
    blocks = blocks_of(model)

    def around(path: str, call: BoundCall, x: mx.array) -> Any:
        """Let go of what a block has read."""
        notice_interruption()
        y = call(x)
        mx.eval(y)
        blocks[path].update(unread[path].parameters())  # type: ignore[no-untyped-call]
        return y

    quiet = np.errstate(invalid="ignore", over="ignore")  # the caller looks at the logits
    with quiet, _numpy_products(model), intercepted(blocks, around):
        logits: mx.array = model(tokens).astype(mx.float32)
        mx.eval(logits)
    return logits


def _loaded(folder: str | Path) -> nn.Module:
    """Load it with activations that MLX can compute with here."""
    model = load_model(folder)
    if on_cpu() and any(is_stack(m) for m in modules_by_path(model).values()):
        use_float32(model)
    return model


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the items of ``model.layers`` by path; none where there is no such list."""
    items = getattr(model, "layers", None)
    wanted = {id(item) for item in items} if isinstance(items, list | tuple) else set()
    return {path: m for path, m in modules_by_path(model).items() if id(m) in wanted}


@contextmanager
def many_files() -> Iterator[None]:
    """Raise the limit of open files within the block: every weight file is open, twice."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _numpy_products(model: nn.Module) -> Iterator[None]:
    """Let products run in NumPy where MLX computes on the CPU, that of a packed head as well."""
    layers, _ = linear_layers(model, None)
    packed = {path: m for path, m in layers.items() if type(m) is nn.QuantizedEmbedding}

    def around(path: str, call: BoundCall, x: mx.array) -> mx.array:
        if not path.endswith(AS_LINEAR):
            return call(x)  # type: ignore[no-any-return]
        embedding = packed[path.removesuffix(f".{AS_LINEAR}")]
        rows = embedding(mx.arange(len(embedding.weight)))
        return numpy_product(x, linear_from(rows, None))

    with using_numpy(layers), intercepted(packed if on_cpu() else {}, around):
        yield
