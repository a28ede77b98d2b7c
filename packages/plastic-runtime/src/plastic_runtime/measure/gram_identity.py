"""The identity of a file of Grams: what it was measured of."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from plastic_core.files import check_same

from plastic_runtime.measure.block_chain import Release, block_of, keep, model_blocks


def calibration_identity(
    model: nn.Module,
    batches: Sequence[mx.array],
    seed: int,
    layers: Sequence[str],
    widest: int,
    gradients: int,
    configuration: Mapping[str, Any] | None = None,
    release: Release = keep,
) -> dict[str, Any]:
    """Return what the Grams depend on, in JSON's types: parameters with their types and shapes.

    A model computes with more than its parameters, such as the base of its rotations: the
    configuration that it was built from tells these, entry by entry. Blocks are released as they
    are read.
    """
    text = (("batch", batch) for batch in batches)
    return {
        "model": _digest(_parameters(model, release)),
        "seed": seed,
        "layers": list(layers),
        "text": _digest(text),
        "widest": widest,
        "gradients": gradients,
        **({} if configuration is None else {"configuration": dict(configuration)}),
    }


def check_measurement(where: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse Grams that were measured of something else.

    Args:
        where: Their file or folder, for the message.
        there: Their identity.
        here: The identity of what is to be measured.

    Raises:
        FormatError: Naming the first difference.
    """
    remedy = "delete it or name another file"
    check_same(where, there, here, remedy=remedy, what="the measurement in it")


def _parameters(model: nn.Module, release: Release) -> Iterator[tuple[str, mx.array]]:
    """Yield all parameters in the order of their names, and release blocks that are through."""
    parameters = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    blocks = model_blocks(model)
    for block, names in groupby(sorted(parameters), key=lambda name: block_of(name, blocks)):
        for name in names:
            yield name, parameters.pop(name)
        if block is not None:
            release(block)


def _digest(arrays: Iterable[tuple[str, mx.array]]) -> str:
    digest: Any = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.asarray(array.reshape(-1).view(mx.uint8)))
    text: str = digest.hexdigest()
    return text
