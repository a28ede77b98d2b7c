"""``resize``: an adapter at fewer bytes, its best approximation layer by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from plastic_core.files import files_under
from plastic_runtime import Track, untracked

from plastic_export.adapters.adapter import Adapter, Form, LoraPair
from plastic_export.adapters.reading import read_adapter
from plastic_export.adapters.sizes import count_adapter_bytes, fullest
from plastic_export.adapters.writing import adapter_files, write_adapter
from plastic_export.reshaping.components import Components, components, distance
from plastic_export.reshaping.rank_choice import RankGoal, choose_adapter_ranks


@dataclass(frozen=True)
class Reshaped:
    """An adapter that was written with other ranks.

    Attributes:
        out: Its folder.
        nbytes: Bytes of the file of tensors.
        ranks: The rank of every layer, by path; 0 where it was left out.
        ranks_before: The rank of every layer in what it was made from.
        relative_error: Frobenius norm of what was lost over that of what it was made from, over
            all layers, the rounding to the type of the file included.

    Examples:
        >>> resized = resize("RUN", "SMALLER", RankGoal(rank=1))
        >>> set(resized.ranks.values()), 0 < resized.relative_error < 1
        ({1}, True)
    """

    out: Path
    nbytes: int
    ranks: dict[str, int]
    ranks_before: dict[str, int]
    relative_error: float


def resize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    goal: RankGoal,
    *,
    form: Form | None = None,
    uniform: bool = False,
    track: Track = untracked,
) -> Reshaped:
    """Cut an adapter down to bytes, to an energy or to a rank.

    The update of a layer is brought to its singular components, exactly and without forming it; of
    all adapters of the ranks that are chosen, what is written is nearest to it.

    Args:
        source: An adapter, see `read_adapter`.
        out: Folder to make.
        goal: What it is cut down to.
        form: The form to write; by default that of the source. In mlx-lm's form all layers have
            one rank.
        uniform: One rank for all layers in the form of PEFT, see `write_adapter`.
        track: Wraps the loop over the layers.

    Raises:
        FormatError: If the adapter is damaged or none, or the place is taken.
        ValueError: If the goal leaves nothing, or a factor is not finite.
        OSError: If the system refuses.

    Examples:
        >>> resize("RUN", "SMALL", RankGoal(max_bytes=8000)).nbytes <= 8000
        True
    """
    adapter = read_adapter(source)
    return reshape(adapter, Path(out), goal, form or adapter.form, uniform=uniform, track=track)


def reshape(
    adapter: Adapter,
    out: Path,
    goal: RankGoal | None,
    form: Form,
    *,
    uniform: bool = False,
    track: Track = untracked,
) -> Reshaped:
    """Write an adapter at the ranks that a goal leaves it; at its own where there is none."""
    made = adapter if goal is None else _cut(adapter, goal, form, uniform, track)
    write_adapter(made, out, form, uniform=uniform)
    return Reshaped(
        out,
        sum(p.stat().st_size for p in files_under(out) if p.suffix == ".safetensors"),
        {path: made.layers[path].rank for path in adapter.layers},
        adapter.ranks,
        0.0 if made is adapter else _relative_error(adapter.layers, made.layers),
    )


def _cut(adapter: Adapter, goal: RankGoal, form: Form, uniform: bool, track: Track) -> Adapter:
    found: dict[str, Components] = {}
    for path in track(list(adapter.layers), "decomposing"):
        found[path] = components(path, adapter.layers[path])
    if not any(c.S.any() for c in found.values()):
        raise ValueError("the adapter changes nothing: factors or scale of every layer are 0.")
    count = count_adapter_bytes(
        {path: (c.shape, c.dtype) for path, c in found.items()},
        goal.max_bytes or sum(pair.nbytes for pair in adapter.layers.values()),
        one_rank=form == "mlx" or uniform,
        form=form,
    )
    spectra = {path: c.S for path, c in found.items()}

    def at(ranks: Mapping[str, int]) -> Adapter:
        layers = {path: c.leading(ranks[path]) for path, c in found.items()}
        return replace(adapter, layers=layers)

    if goal.max_bytes is None:
        return at(choose_adapter_ranks(spectra, count, goal))
    ranks = fullest(
        lambda nbytes: choose_adapter_ranks(spectra, count, RankGoal(max_bytes=nbytes)),
        count,
        lambda ranks: adapter_files(at(ranks), form, uniform=uniform).nbytes,
        goal.max_bytes,
    )
    return at(ranks)


def _relative_error(before: Mapping[str, LoraPair], after: Mapping[str, LoraPair]) -> float:
    lost = math.hypot(*(distance(pair, after[path]) for path, pair in before.items()))
    whole = math.hypot(*(distance(pair, _nothing(pair)) for pair in before.values()))
    return lost / whole if whole else 0.0


def _nothing(pair: LoraPair) -> LoraPair:
    return LoraPair(pair.A[:0], pair.B[:, :0])
