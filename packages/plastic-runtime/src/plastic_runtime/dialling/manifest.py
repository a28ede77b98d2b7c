"""The manifest of a compressed folder, ``plastic.json``, as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, json_digest, read_json

from plastic_runtime.dialling.component_curve import ComponentCurve

MANIFEST = "plastic.json"
SLEEP = "sleep.safetensors"
SCHEMA = 4
READS = (3, 4)  # schema 3 has neither curves nor spectra


@dataclass(frozen=True)
class MatrixRecord:
    """The record of one matrix. Without bits and rank it was copied bit for bit.

    Attributes:
        name: Tensor name in the source.
        shape: ``(out, in)`` of the dense weight.
        dtype: Storage type of scales, and of factors that are not packed.
        source_bytes: Bytes in the source.
        stored_bytes: Bytes of what is awake.
        relative_error: ``||W - W'||_F / ||W||_F`` of what is awake, the sum of all its parts.
        spectral_error: ``||W - W'||_2 / ||W||_2`` of the same.
        restored_error: Relative Frobenius error with everything awake, after the cast to the
            storage type; 0 means bit-exact. Where nothing sleeps, ``relative_error``.
        bits: Bits of a code of its backbone; None where it has none.
        group_size: Neighbouring inputs that share a scale of the backbone; 0 where it has none.
        rank: Components awake: of a correction, or of the matrix where it has no backbone.
        parked: Components asleep.
        factor_bits: Bits of an entry of the factors; 16: in ``dtype``.
        factor_group_sizes: Neighbouring entries of a factor that share a scale, along the outputs
            and along the inputs; 0 where the factors are not packed.
        experts: How many matrices of this shape are stacked; 0 for a single one. The relative error
            is that of the stack as one matrix, the spectral error that of the worst expert.
        predicted_kl: Predicted rise of the KL divergence to the source, nats per token; 0 where
            none was predicted.
        retained_energy: Fraction of the squared spectrum that is awake, as ranks were chosen.
        why: Why this rank, in one line for people.
        curve: What is left to pay with fewer components; None where there are none, or where ranks
            were not chosen by prices.
        spectrum: Singular values as they chose the rank, largest first, in base64 of float64;
            empty where ranks were chosen by prices.

    Examples:
        >>> record = read_manifest(Path("FACTORED")).matrices["block.0.up.weight"]
        >>> record.bits, record.rank + record.parked
        (None, 8)
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    source_bytes: int
    stored_bytes: int
    relative_error: float
    spectral_error: float
    restored_error: float
    bits: int | None = None
    group_size: int = 0
    rank: int = 0
    parked: int = 0
    factor_bits: int = 0
    factor_group_sizes: tuple[int, int] = (0, 0)
    experts: int = 0
    predicted_kl: float = 0.0
    retained_energy: float = 1.0
    why: str = ""
    curve: ComponentCurve | None = None
    spectrum: str = ""

    @property
    def components(self) -> int:
        """How many components are stored, awake and asleep."""
        return self.rank + self.parked

    @property
    def is_unchanged(self) -> bool:
        """Whether it was copied bit for bit."""
        return self.bits is None and self.rank == 0


@dataclass(frozen=True)
class Manifest:
    """A manifest as read back.

    Attributes:
        format: Name of the format that was written.
        options: The options of the run.
        source: Name, revision, files and tensors of the source.
        matrices: The records, by tensor name.
        tensors: SHA-256 of every tensor, by name.
        files: Size in bytes and SHA-256 of every file, by its path in the folder.
        arranged: Types and shapes of the tensors of the model if none were stored anew: those of
            the source, unless mlx-lm has other names and values for them.
        renamed: The tensors of the source that have another name, and that name.
        rows: Checksums of the rows of every tensor that holds components asleep, one each.

    Examples:
        >>> manifest = read_manifest(Path("FACTORED"))
        >>> sorted(manifest.files)
        ['model.safetensors', 'sleep.safetensors']
    """

    format: str
    options: dict[str, Any]
    source: dict[str, Any]
    matrices: dict[str, MatrixRecord]
    tensors: dict[str, str]
    files: dict[str, dict[str, Any]]
    rows: dict[str, str]
    arranged: dict[str, Any]
    renamed: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``plastic.json``.

    Raises:
        FormatError: If it is missing, damaged, or of a schema this version does not know.

    Examples:
        >>> read_manifest(Path("FACTORED")).format
        'factored'
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FormatError.about(path, "missing", "name a folder that `plastic compress` wrote")
    raw = read_json(path)
    if raw.get("schema") not in READS:
        known = " and ".join(map(str, READS))
        reason = f"schema {raw.get('schema')!r} is unknown, this version reads {known}"
        raise FormatError.about(path, reason, "use the version of plastic-export that wrote it")
    if raw != sealed(raw):
        reason = "its content is not what was written"
        raise FormatError.about(path, reason, "copy it again, or compress the source again")
    try:
        return Manifest(
            format=str(raw["options"]["format"]),
            options=dict(raw["options"]),
            source={k: raw["source"][k] for k in ("name", "revision", "files", "tensors")},
            matrices={r["name"]: _record(r) for r in raw["matrices"]},
            tensors=dict(raw["tensors"]),
            files={
                k: {"bytes": v["bytes"], "sha256": v["sha256"]} for k, v in raw["files"].items()
            },
            rows=dict(raw["rows"]),
            arranged=dict(raw.get("arranged", {}).get("tensors", raw["source"]["tensors"])),
            renamed=dict(raw.get("arranged", {}).get("renamed", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError.about(path, f"damaged ({error!r})", "compress again") from error


def _record(raw: Mapping[str, Any]) -> MatrixRecord:
    pairs = {name: tuple(map(int, raw[name])) for name in ("shape", "factor_group_sizes")}
    curve = raw.get("curve")
    read = {} if curve is None else {"curve": ComponentCurve.of(curve)}
    return MatrixRecord(**{**raw, **pairs, **read})


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the digest of all that is in it, whatever the layout of the text.

    Examples:
        >>> sorted(sealed({"schema": 4}))
        ['schema', 'sha256']
    """
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return rest | {"sha256": json_digest(rest)}
