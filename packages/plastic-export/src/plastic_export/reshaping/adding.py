"""``merge``: several adapters as one, their weighted sum."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
from plastic_core.files import FormatError
from plastic_runtime import Track, untracked

from plastic_export.adapters.adapter import Adapter, Form, LoraPair
from plastic_export.adapters.one_scale import with_one_scale
from plastic_export.adapters.pairs import LARGEST
from plastic_export.adapters.reading import read_adapter
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.reshaping.rank_choice import RankGoal
from plastic_export.reshaping.resizing import Reshaped, reshape


def merge(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    goal: RankGoal | None = None,
    form: Form | None = None,
    uniform: bool = False,
    track: Track = untracked,
) -> Reshaped:
    """Write the weighted sum of adapters as one.

    The factors stand side by side in it, so the sum is exact and ranks add up; with a goal it is
    then cut down as `resize` does it.

    Args:
        sources: The adapters, see `read_adapter`.
        out: Folder to make.
        weights: A number for each of them, of any sign; by default 1.
        goal: What the sum is cut down to; None for all of it.
        form: The form to write; by default that of the first.
        uniform: One rank for all layers in the form of PEFT, see `write_adapter`.
        track: Wraps the loop over the layers.

    Raises:
        FormatError: If an adapter is damaged or none, two are for matrices of different shapes,
            or the place is taken.
        ValueError: If there are not as many weights as adapters, one of them is not finite, or
            nothing is left.
        OSError: If the system refuses.

    Examples:
        >>> merged = merge(["RUN", "RUN"], "SUM", weights=[0.5, 0.25])
        >>> [merged.ranks[path] / rank for path, rank in read_adapter("RUN").ranks.items()][:2]
        [2.0, 2.0]
    """
    summed = added(sources, weights)
    return reshape(summed, Path(out), goal, form or summed.form, uniform=uniform, track=track)


def added(
    sources: Sequence[str | os.PathLike[str]],
    weights: Sequence[float] | None,
    base: Checkpoint | None = None,
) -> Adapter:
    """Return the weighted sum of adapters, nothing cut off; see `merge`."""
    if weights is None:
        weights = [1.0] * len(sources)
    if len(weights) != len(sources):
        raise ValueError(
            f"`weights` must be {len(sources)}, one for each adapter, got {len(weights)}."
        )
    if not all(abs(weight) <= LARGEST for weight in weights):
        raise ValueError(
            f"`weights` must be finite in float32, got {', '.join(map(str, weights))}."
        )
    adapters = [read_adapter(source, base=base) for source in sources]
    _check_names(sources, adapters)
    first = adapters[0]
    paths = dict.fromkeys(path for adapter in adapters for path in adapter.layers)
    layers = {}
    for path in paths:
        own = [a.layers.get(path) for a in adapters]
        _check_shapes(sources, path, own)
        scaled = {
            str(i): pair._replace(scale=pair.scale * weight)
            for i, (pair, weight) in enumerate(zip(own, weights, strict=True))
            if pair is not None
        }
        layers[path] = _side_by_side(scaled)
    named = first if all(a.base == first.base for a in adapters) else Adapter({})
    return Adapter(layers, named.base, named.revision, first.form)


def _side_by_side(pairs: dict[str, LoraPair]) -> LoraPair:
    """Return the sum of updates of one matrix."""
    same, scale = with_one_scale(pairs)
    dtype = mx.result_type(*(side for pair in same.values() for side in (pair.A, pair.B)))
    A = mx.concatenate([pair.A.astype(dtype) for pair in same.values()], axis=0)
    B = mx.concatenate([pair.B.astype(dtype) for pair in same.values()], axis=1)
    return LoraPair(A, B, scale)


def _check_names(sources: Sequence[str | os.PathLike[str]], adapters: Sequence[Adapter]) -> None:
    """Refuse names of kohya's scripts beside paths: nobody knows which are the same."""
    with_paths = [i for i, adapter in enumerate(adapters) if adapter.form != "kohya"]
    without = [i for i, adapter in enumerate(adapters) if adapter.form == "kohya"]
    if with_paths and without:
        reason = f"its layers have other names than those of {os.fspath(sources[with_paths[0]])}"
        remedy = "export it --to peft --base BASE first"
        raise FormatError.about(os.fspath(sources[without[0]]), reason, remedy)


def _check_shapes(
    sources: Sequence[str | os.PathLike[str]], path: str, pairs: Sequence[LoraPair | None]
) -> None:
    known = [(source, p.shape) for source, p in zip(sources, pairs, strict=True) if p is not None]
    for source, shape in known[1:]:
        first, other = known[0]
        if shape != other:
            where = f"in {os.fspath(first)} for one of {other}"
            reason = f"layer '{path}' is for a matrix of shape {shape}, {where}"
            raise FormatError.about(os.fspath(source), reason, "merge adapters of one base")
