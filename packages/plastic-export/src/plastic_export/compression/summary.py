"""A summary of a checkpoint: its tensors, and what its spectra say about compressing it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from plastic_core import weighted_spectrum
from plastic_runtime import Track, untracked
from plastic_select import (
    break_even_rank,
    effective_rank_of_spectrum,
    energy_rank,
    optimal_threshold_rank,
    stable_rank_of_spectrum,
)

from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.checkpoint.tensors import (
    COMPANIONS,
    compressible,
    is_inside,
    is_packed,
    module_path,
    stored_parts,
)
from plastic_export.process.in_worker import in_worker
from plastic_export.source.by_headers import open_headers
from plastic_export.source.source import Source

Sizes = dict[tuple[str, tuple[int, int]], list[int]]
"""The bytes of matrices of one short name and shape."""


@dataclass(frozen=True)
class Spectrum:
    """The ranks that one spectrum names.

    Attributes:
        stable: Stable rank.
        effective: Effective rank.
        energy_90: Least rank that keeps 90 % of the energy.
        energy_99: Least rank that keeps 99 % of the energy.
        threshold: Rank at the hard threshold of Gavish and Donoho.
    """

    stable: float
    effective: float
    energy_90: int
    energy_99: int
    threshold: int

    @classmethod
    def of(cls, s: NDArray[np.float64], shape: tuple[int, int]) -> Spectrum:
        """Return the numbers of the singular values ``s`` of a matrix of this shape."""
        return cls(
            stable=stable_rank_of_spectrum(s),
            effective=effective_rank_of_spectrum(s),
            energy_90=energy_rank(s, 0.90),
            energy_99=energy_rank(s, 0.99),
            threshold=optimal_threshold_rank(s, shape),
        )


@dataclass(frozen=True)
class Group:
    """Matrices of one name and shape, over all blocks.

    Attributes:
        name: Last two parts of the path, such as ``"mlp.up_proj"``.
        shape: ``(out, in)`` of the dense weight, packed or not.
        count: How many there are.
        nbytes: Bytes of all of them.
        break_even: Rank from which factors are as large as the dense matrix.
    """

    name: str
    shape: tuple[int, int]
    count: int
    nbytes: int
    break_even: int


@dataclass(frozen=True)
class Summary:
    """What a checkpoint holds.

    Attributes:
        name: Folder name or Hub id.
        model_type: The model type of its configuration.
        tensors: How many tensors.
        parameters: How many entries all weights have; scales and offsets of packed ones are none.
        nbytes: Bytes of all tensors.
        dtypes: How many tensors of each type.
        groups: The matrices that ``compress`` would take.
        spectra: Per matrix, if they were asked for.

    Examples:
        >>> summary = summarize("SRC")
        >>> print(summary.model_type, summary.tensors, summary.dtypes)
        llama 21 {'BF16': 21}
    """

    name: str
    model_type: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: dict[str, int]
    groups: tuple[Group, ...]
    spectra: dict[str, Spectrum]


def summarize(
    source: str,
    *,
    revision: str | None = None,
    spectra: bool = False,
    track: Track = untracked,
) -> Summary:
    """Read the headers of a checkpoint and, if asked, decompose its matrices.

    Of a Hub id no weights are downloaded, unless they are decomposed.

    Args:
        source: Folder or Hub id.
        revision: Commit or branch, for a Hub id.
        spectra: Whether to compute the singular values of every matrix; one at a time.
        track: Wraps the loop over the matrices.

    Raises:
        FormatError: If a file is damaged, or a weight is not finite.

    Examples:
        >>> summary = summarize("SRC", spectra=True)
        >>> summary.spectra["model.layers.0.mlp.up_proj"].energy_99 <= 64
        True
    """
    opened = open_checkpoint if spectra else open_headers
    with opened(source, revision=revision) as checkpoint:
        return (_of_codes if checkpoint.holds_codes else _of_files)(checkpoint, spectra, track)


def _of_files(checkpoint: Checkpoint, spectra: bool, track: Track) -> Summary:
    """Summarise the matrices of the files."""
    names = compressible(checkpoint.tensors)
    sizes: Sizes = defaultdict(list)
    for name in names:
        out, in_ = checkpoint.shape(name)
        nbytes = sum(t.nbytes for t in stored_parts(name, checkpoint.tensors))
        sizes[_short(name), (out, in_)].append(nbytes)
    chosen = track(names if spectra else [], "reading spectra")
    found = {module_path(name): _spectrum(checkpoint.matrix(name), name) for name in chosen}
    return _summary(
        checkpoint, sum(_entries(checkpoint, n) for n in checkpoint.tensors), sizes, found
    )


def _of_codes(checkpoint: Checkpoint, spectra: bool, track: Track) -> Summary:
    """Summarise the matrices that are loaded from the codes of another tool."""
    source = Source.of(checkpoint)
    layers = [m for m in source.layers.values() if m.kind == "linear" and is_inside(m.name)]
    sizes: Sizes = defaultdict(list)
    for m in layers:
        nbytes = sum(checkpoint.tensors[part].nbytes for part in m.tensors)
        sizes[_short(m.name), m.shape].append(nbytes)
    chosen = track(layers if spectra else [], "reading spectra")
    found = {}
    for m in chosen:
        (weight,) = source.matrices(m)
        found[module_path(m.name)] = _spectrum(weight, m.name)
    return _summary(checkpoint, _loaded_entries(source), sizes, found)


def _summary(
    checkpoint: Checkpoint, parameters: int, sizes: Sizes, spectra: dict[str, Spectrum]
) -> Summary:
    tensors = checkpoint.tensors
    return Summary(
        name=checkpoint.name,
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        tensors=len(tensors),
        parameters=parameters,
        nbytes=sum(t.nbytes for t in tensors.values()),
        dtypes=dict(Counter(t.dtype for t in tensors.values())),
        groups=tuple(
            Group(name, shape, len(nbytes), sum(nbytes), break_even_rank(shape))
            for (name, shape), nbytes in sizes.items()
        ),
        spectra=spectra,
    )


def _loaded_entries(source: Source) -> int:
    """Entries of the weights of the loaded model, packed ones counted as dense."""
    beside = {f"{path}.{leaf}" for path in source.packings for leaf in COMPANIONS}
    others = source.specs.keys() - source.layers.keys() - beside
    layers = sum(math.prod(m.shape) * max(1, m.experts) for m in source.layers.values())
    return layers + sum(math.prod(source.specs[name].shape) for name in others)


def _entries(checkpoint: Checkpoint, name: str) -> int:
    """Entries of the weight that a tensor holds; none for what is beside a packed one."""
    path, _, leaf = name.rpartition(".")
    weight = f"{path}.weight"
    is_beside = leaf in COMPANIONS and weight in checkpoint.tensors
    if is_beside and is_packed(weight, checkpoint.tensors):
        return 0
    return math.prod(checkpoint.shape(name))


def _spectrum(weight: NDArray[np.float32], name: str) -> Spectrum:
    return Spectrum.of(
        in_worker(weighted_spectrum, weight, name=name, shape=weight.shape),
        (weight.shape[0], weight.shape[1]),
    )


def _short(name: str) -> str:
    return ".".join(module_path(name).split(".")[-2:])
