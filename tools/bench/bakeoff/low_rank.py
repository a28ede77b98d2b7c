"""Low-rank peers beside the loss-aware budget, on one calibration and at equal bytes.

SVD-LLM (whitened truncation, one rank rule for all matrices) against ranks chosen by what each
component costs in nats; QERA-exact (whitened correction, one rank for all matrices) against the
same on the same quantised backbone. Factors have 16 bits per entry. Folders hold the dense result
in float32, to be measured; the bytes are those that backbone and factors would take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import (
    Factors,
    GramRoot,
    difference,
    linalg,
    loss_factors,
    loss_spectrum,
    predicted_cost,
)
from plastic_core.files import write_json
from plastic_export import Candidate, Checkpoint, export_safetensors
from plastic_export.checkpoint import module_path
from plastic_export.folder import as_float32, as_stored
from plastic_export.plan import DAMPING, gram_roots, packed_bytes, rounded
from plastic_runtime import LossGrams
from plastic_select import Option, allocate, rank_options

from bakeoff.written import Written

Array = NDArray[np.float32]
TINY = 1e-6  # damping where the peers have none: only for the Cholesky factor to exist
ENTRY = 2  # bytes of an entry of a factor


class Roots(TypedDict):
    """Both sides of the predicted loss of a matrix."""

    inputs: GramRoot
    outputs: GramRoot


@dataclass(frozen=True)
class Study:
    """An open checkpoint, its matrices, and the Grams that its plan left."""

    checkpoint: Checkpoint
    matrices: tuple[Candidate, ...]
    grams: Mapping[str, LossGrams]

    def activation_roots(self, m: Candidate) -> Roots:
        """C = I, and R as it is: what SVD-LLM and QERA know."""
        R = self.grams[module_path(m.name)].input.matrix
        return {"inputs": GramRoot.of(R, damping=TINY), "outputs": GramRoot(None)}

    def loss_roots(self, m: Candidate) -> Roots:
        """R and C, damped as in ``plastic plan``."""
        R, C = (g.matrix for g in self.grams[module_path(m.name)])
        return {
            "inputs": GramRoot.of(R, damping=DAMPING),
            "outputs": GramRoot.of(C, damping=DAMPING),
        }

    def backbone(self, m: Candidate, bits: int | None) -> Array:
        """The matrix in so many bits with error feedback; without bits, nothing."""
        if bits is None:
            return np.zeros(m.shape, np.float32)
        W, roots = self.checkpoint.matrix(m.name), gram_roots(self.grams[module_path(m.name)])
        return rounded(W, bits, roots, m, group_size=m.group_size).dequantized()


def svd_llm(study: Study, out: Path, keep: float) -> Written:
    """SVD-LLM v1: SVD of ``W R^(1/2)``, rank ``keep m n / (m + n)`` in every matrix."""
    return _write(study, out, _svd_llm_ranks(study, keep), Study.activation_roots)


def loss_aware(study: Study, out: Path, keep: float) -> Written:
    """Ranks and bases by predicted KL, in the bytes that SVD-LLM takes."""
    budget = sum(_factor_bytes(m, r) for m, r in _svd_llm_ranks(study, keep).items())
    return _write(study, out, _allocated(study, budget), Study.loss_roots)


def qera(study: Study, out: Path, backbone: tuple[int, float]) -> Written:
    """QERA-exact: SVD of ``(W - Q) R^(1/2)``, one rank for all matrices."""
    bits, extra = backbone
    return _write(study, out, _qera_ranks(study, extra), Study.activation_roots, bits)


def loss_aware_correction(study: Study, out: Path, backbone: tuple[int, float]) -> Written:
    """Ranks and bases by predicted KL, on the backbone of QERA and in its bytes."""
    bits, extra = backbone
    budget = sum(_factor_bytes(m, r) for m, r in _qera_ranks(study, extra).items())
    return _write(study, out, _allocated(study, budget, bits), Study.loss_roots, bits)


Ranks = dict[Candidate, int]  # the rank of a matrix that stays dense is the lesser of its sides


def _svd_llm_ranks(study: Study, keep: float) -> Ranks:
    return {m: int(keep * m.weights / sum(m.shape)) for m in study.matrices}


def _qera_ranks(study: Study, extra: float) -> Ranks:
    """The largest rank whose factors take ``extra`` bits per weight of all matrices."""
    weights = sum(m.weights for m in study.matrices)
    per_rank = sum(_factor_bytes(m, 1) for m in study.matrices)
    rank = int(extra * weights / (8 * per_rank))
    return {m: min(rank, *m.shape) for m in study.matrices}


def _allocated(study: Study, budget: int, bits: int | None = None) -> Ranks:
    """The ranks that are predicted to cost least; without a backbone, dense is on offer too."""
    offers = dict[str, list[Option]]()
    for m in study.matrices:
        change = difference(study.checkpoint.matrix(m.name), study.backbone(m, bits))
        spectrum = loss_spectrum(change, **study.loss_roots(m))
        offers[m.name] = rank_options(spectrum, bytes_per_component=_factor_bytes(m, 1))
        if bits is None:
            offers[m.name].append(Option(m.source_bytes, 0.0, min(m.shape)))
    (found,) = allocate(offers, [budget])
    return {m: offers[m.name][found.chosen[m.name]].label for m in study.matrices}


def _factor_bytes(m: Candidate, rank: int) -> int:
    return ENTRY * rank * sum(m.shape)


def _write(
    study: Study,
    out: Path,
    ranks: Ranks,
    roots: Callable[[Study, Candidate], Roots],
    bits: int | None = None,
) -> Written:
    """Approximate every matrix, write the dense result, count the bytes, predict the KL."""
    source, changed = study.checkpoint, dict[str, mx.array]()
    nbytes, predicted = sum(info.nbytes for info in source.tensors.values()), 0.0
    headers = sum(p.stat().st_size for p in source.weight_files) - nbytes
    for m in study.matrices:
        if bits is None and _factor_bytes(m, ranks[m]) >= m.source_bytes:
            continue
        nbytes += _factor_bytes(m, ranks[m]) - m.source_bytes
        nbytes += packed_bytes(m.shape, bits, m.group_size, m.dtype) if bits else 0
        weight, base = source.matrix(m.name), study.backbone(m, bits)
        near = base
        if ranks[m]:
            found = loss_factors(difference(weight, base), ranks[m], **roots(study, m))
            near = base + _stored_product(found, m.dtype)
        predicted += predicted_cost(difference(weight, near), **study.loss_roots(m))
        changed[m.name] = mx.array(near)
    out.mkdir()
    tensors = {name: source.read(name) for name in source.tensors if name not in changed}
    export_safetensors(out / "model.safetensors", tensors | changed, metadata={"format": "pt"})
    write_json(out / "config.json", source.config)
    source.copy_side_files(out)
    return Written(out, headers + nbytes, nbytes, predicted)


def _stored_product(factors: Factors, dtype: str) -> Array:
    """``U S Vh`` from two factors rounded to the storage type, the values in halves in both."""
    U, S, Vh = (linalg.to_numpy(f) for f in factors)
    root = np.sqrt(S)
    halves = (as_float32(as_stored(h, dtype)) for h in (U * root, root[:, None] * Vh))
    left, right = halves
    return left @ right
