"""Carry out a plan: every tensor of the source is read once and streamed to its new place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import Certificate, certify, output_basis
from plastic_core.files import Journal, TensorSpec
from plastic_core.linalg import blocks, frobenius_norm, spectral_norm
from plastic_runtime import Track, untracked

from plastic_export.calibration.input_grams import Grams
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import COMPANIONS, module_path
from plastic_export.compression.ranks import MatrixPlan, Plan
from plastic_export.folder.manifest import MatrixRecord, record_of
from plastic_export.folder.shards import Shards, as_float32, as_stored
from plastic_export.folder.steps import Steps
from plastic_export.process.in_worker import in_worker

Format = Literal["factored", "dense"]
METADATA = {"format": "pt"}  # what transformers looks for


@dataclass
class Layout:
    """Where every tensor of the source goes.

    Attributes:
        awake: Specs of the model files, in the order of the source.
        asleep: Specs of ``sleep.safetensors``.
        copied: Source name to new name, of the tensors whose bytes do not change.
        factored: The plan of each matrix that is factored.
    """

    awake: list[TensorSpec] = field(default_factory=list)
    asleep: list[TensorSpec] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    factored: dict[str, MatrixPlan] = field(default_factory=dict)


def layout(checkpoint: Checkpoint, plan: Plan, format: Format) -> Layout:
    """Decide the name, type and shape of every tensor that will be written. Pure."""
    result = Layout(factored={p.name: p for p in plan.matrices if p.choice == "factored"})
    paths = {module_path(name) for name in result.factored}
    for name, info in checkpoint.tensors.items():
        path, _, leaf = name.rpartition(".")
        if name in result.factored:
            p = result.factored[name]
            result.awake += factor_specs(p) if format == "factored" else [_dense_spec(p)]
            result.asleep += sleep_specs(p)
        elif path in paths and leaf in COMPANIONS:
            continue  # of a packed weight that is packed no longer
        else:
            moved = path in paths and leaf == "bias" and format == "factored"
            result.copied[name] = f"{path}.u.bias" if moved else name
            result.awake.append(TensorSpec(result.copied[name], info.dtype, info.shape))
    return result


def factor_specs(p: MatrixPlan) -> list[TensorSpec]:
    """``P.v.weight`` (rank, in), whose rows carry the singular values, and ``P.u.weight``."""
    path, (out, in_) = module_path(p.name), p.shape
    return [
        TensorSpec(f"{path}.v.weight", p.dtype, (p.rank, in_)),
        TensorSpec(f"{path}.u.weight", p.dtype, (out, p.rank)),
    ]


def sleep_specs(p: MatrixPlan) -> list[TensorSpec]:
    """One row per parked component in both tensors, the most important first."""
    path, (out, in_) = module_path(p.name), p.shape
    if not p.parked:
        return []
    return [
        TensorSpec(f"{path}.sleep.u", p.dtype, (p.parked, out)),
        TensorSpec(f"{path}.sleep.v", p.dtype, (p.parked, in_)),
    ]


def _dense_spec(p: MatrixPlan) -> TensorSpec:
    return TensorSpec(p.name, p.dtype, p.shape)


def execute(
    checkpoint: Checkpoint,
    plan: Plan,
    grams: Grams,
    format: Format,
    folder: Path,
    journal: Journal,
    *,
    track: Track = untracked,
) -> tuple[tuple[MatrixRecord, ...], dict[str, str]]:
    """Write the model files and ``sleep.safetensors`` into ``folder``.

    Args:
        checkpoint: The open source.
        plan: What becomes of each matrix.
        grams: Input Gram by module path, for the matrices that have one.
        format: ``"factored"`` or ``"dense"``.
        folder: Existing folder; tensors that a run which was cut wrote there are passed over.
        journal: Of the run.
        track: Wraps the loop over the tensors.

    Returns:
        The records of all matrices in the order of the plan, and the SHA-256 of every tensor
        written, by name.

    Cost:
        One eigendecomposition and two products per matrix; memory: about three times the largest
        matrix in float32.
    """
    records: dict[str, MatrixRecord] = {}
    there = layout(checkpoint, plan, format)
    with (
        Shards(folder, there.awake, METADATA, keep=True) as model,
        Shards(folder, there.asleep, METADATA, stem="sleep", limit=2**63, keep=True) as sleep,
    ):
        steps = Steps(journal, model, sleep)
        taken = [n for n in checkpoint.tensors if n in there.copied or n in there.factored]
        for name in track(taken, "factoring"):
            if (found := steps.finished(name)) is None:
                found = _step(name, checkpoint, there, grams, format, model, sleep)
                steps.add(name, found)
            if name in there.factored:
                records[name] = record_of(MatrixRecord, found)
    everything = tuple(
        records.get(p.name, _record(p, Certificate(0.0, 0.0), 0.0)) for p in plan.matrices
    )
    return everything, model.digests | sleep.digests


def _step(
    name: str,
    checkpoint: Checkpoint,
    there: Layout,
    grams: Grams,
    format: Format,
    model: Shards,
    sleep: Shards,
) -> Mapping[str, Any]:
    """Write what becomes of one tensor of the source; the record of a matrix, else nothing."""
    if name in there.copied:
        model.write(there.copied[name], checkpoint.raw(name))
        return {}
    p, gram = there.factored[name], grams.get(module_path(name))
    weight = checkpoint.matrix(name)
    parts = in_worker(_factor, weight, p, gram, format, name=name, shape=p.shape)
    return asdict(_stream(parts, p, model, sleep))


@dataclass(frozen=True)
class _Parts:
    """All components of one matrix as they are stored, and the record of their errors."""

    u: mx.array
    v: mx.array
    dense: mx.array | None
    record: MatrixRecord

    def awake(self, p: MatrixPlan) -> Iterator[tuple[str, mx.array]]:
        if self.dense is not None:
            yield p.name, self.dense
            return
        v, u = factor_specs(p)
        yield v.name, self.v[: p.rank]
        yield u.name, self.u[:, : p.rank]

    def asleep(self, p: MatrixPlan) -> Iterator[tuple[str, mx.array]]:
        if p.parked:
            u, v = sleep_specs(p)
            yield u.name, self.u[:, p.rank :].T
            yield v.name, self.v[p.rank :]


def _stream(parts: _Parts, p: MatrixPlan, model: Shards, sleep: Shards) -> MatrixRecord:
    """Write the components of one matrix and let go of them."""
    for name, array in parts.awake(p):
        model.write(name, array)
    for name, array in parts.asleep(p):
        sleep.write(name, array)
    return parts.record


def _factor(
    weight: NDArray[np.float32], p: MatrixPlan, gram: NDArray[np.float64] | None, format: Format
) -> _Parts:
    """All components of ``W = U (U^T W)``, cast to the storage type, with the true errors."""
    try:
        basis = output_basis(weight, gram=gram)
        u, v = as_stored(basis.U, p.dtype), stored_product(basis.U.T, weight, p.dtype)
        del basis  # one matrix of its size is worth the line
        U, V = as_float32(u), as_float32(v)
        if format == "factored":
            dense = None
            certificate = certify(weight, U[:, : p.rank], V[: p.rank])
        else:
            dense = stored_product(U[:, : p.rank], V[: p.rank], p.dtype)
            certificate = dense_certificate(weight, as_float32(dense))
    except ValueError as error:
        error.add_note(f"while factoring {p.name!r}")
        raise
    restored_error = _restored_error(weight, U, V, p, dense)
    return _Parts(u, v, dense, _record(p, certificate, restored_error))


def stored_product(A: NDArray[np.float32], B: NDArray[np.float32], dtype: str) -> mx.array:
    """``A B``, cast to a storage type; in float32 only one block of rows exists at a time."""
    parts = [as_stored(A[rows] @ B, dtype) for rows in blocks(A.shape[0], B.shape[1])]
    product = mx.concatenate(parts)
    mx.eval(product)
    return product


def _restored_error(
    weight: NDArray[np.float32],
    U: NDArray[np.float32],
    V: NDArray[np.float32],
    p: MatrixPlan,
    dense: mx.array | None,
) -> float:
    """Relative Frobenius error of all components together, after the cast, by blocks of rows."""
    total = 0.0
    for rows in blocks(*weight.shape):
        awake = U[rows, : p.rank] @ V[: p.rank] if dense is None else as_float32(dense[rows])
        restored = as_stored(wake(awake, U[rows, p.rank :], V[p.rank :]), p.dtype)
        total += frobenius_norm(weight[rows] - as_float32(restored)) ** 2
    return math.sqrt(total) / frobenius_norm(weight) if total else 0.0


def _record(p: MatrixPlan, certificate: Certificate, restored_error: float) -> MatrixRecord:
    """What became of a matrix; without an error, it was left as it is."""
    return MatrixRecord(
        name=p.name,
        shape=p.shape,
        dtype=p.dtype,
        choice=p.choice,
        rank=p.rank,
        parked=p.parked,
        source_bytes=p.source_bytes,
        awake_bytes=p.awake_bytes,
        retained_energy=p.retained_energy,
        relative_error=certificate.relative_error,
        spectral_error=certificate.spectral_error,
        restored_error=restored_error,
        why=p.why,
    )


def wake(
    awake: NDArray[np.float32], U: NDArray[np.float32], V: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``awake + U V``: the matrix with its parked components back, float32."""
    return awake + U @ V


def dense_certificate(A: NDArray[np.float32], B: NDArray[np.float32]) -> Certificate:
    """The errors of a dense approximation, relative to the norms of A."""
    difference = A - B
    if not difference.any():
        return Certificate(0.0, 0.0)
    return Certificate(
        frobenius_norm(difference) / frobenius_norm(A), spectral_norm(difference) / spectral_norm(A)
    )
