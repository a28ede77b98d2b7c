"""What a page shows of a compression: read from an output, from a plan, or from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from plastic_core.files import ITEM_BYTES, FormatError, sha256_file
from plastic_runtime.dialling import MANIFEST, Manifest, MatrixRecord, read_manifest

from plastic_export.compression.plan_file import LossPlan, is_plan, read_plan
from plastic_export.plan.offers import BitsPlan, Candidate, Offer


@dataclass(frozen=True)
class ShownMatrix:
    """A matrix, or a stack of them, and what became of it.

    Attributes:
        name: Tensor name in the source.
        shape: ``(out, in)``.
        experts: How many are stacked; 0 for a single one.
        bits: Bits of a code of its backbone; None where it has none.
        group_size: Neighbouring inputs that share a scale; 0 without a backbone.
        rank: Components awake; 0 where there are none.
        parked: Components asleep.
        factor_bits: Bits of an entry of the factors; 0 without factors.
        source_bytes: Bytes in the source.
        stored_bytes: Bytes of what is awake.
        predicted_kl: Predicted rise of the divergence, nats per token; None where none was
            predicted.
        relative_error: Relative Frobenius error of what is awake; None before it is written.
    """

    name: str
    shape: tuple[int, int]
    experts: int
    bits: int | None
    group_size: int
    rank: int
    parked: int
    factor_bits: int
    source_bytes: int
    stored_bytes: int
    predicted_kl: float | None
    relative_error: float | None

    @property
    def is_unchanged(self) -> bool:
        """Whether it is as it is in the source."""
        return self.bits is None and self.rank == 0

    @property
    def weights(self) -> int:
        """Entries of the dense weight."""
        return max(1, self.experts) * prod(self.shape)


@dataclass(frozen=True)
class Left:
    """A weight of two or more axes that no compression was to touch.

    Attributes:
        name: Tensor name in the source.
        nbytes: Its bytes.
        reason: Why it was left, where that is known.
    """

    name: str
    nbytes: int
    reason: str = ""


@dataclass(frozen=True)
class CompressionView:
    """A compression as a page shows it.

    Attributes:
        name: What it is called.
        format: Name of its format.
        source: Name of the source.
        matrices: The matrices under every budget; one entry, by the budget carried out, for an
            output.
        left: What stays beside them.
        plan: The plan; None where it is not at hand.
        made: The budget of the plan that was carried out; None for a plan alone.
        manifest: What the output says of itself; None for a plan alone.
    """

    name: str
    format: str
    source: str
    matrices: Mapping[str, tuple[ShownMatrix, ...]]
    left: tuple[Left, ...]
    plan: LossPlan | None = None
    made: str | None = None
    manifest: Manifest | None = None


def is_compression(place: Path) -> bool:
    """Tell whether a folder or a file is an output of ``plastic compress`` or a plan."""
    return (place / MANIFEST).is_file() if place.is_dir() else place.is_file() and is_plan(place)


def view_compression(place: Path, plan_file: Path | None = None) -> CompressionView:
    """Read an output, with the plan that it was made by where that is named, or a plan.

    Raises:
        FormatError: If one of them is damaged, or the output was made by another plan.
        ValueError: If a plan is named beside a plan.
        OSError: If a file cannot be read.
    """
    if place.is_dir():
        manifest = read_manifest(place)
        plan = None if plan_file is None else _plan_of(manifest, place, plan_file)
        return _of_output(place, manifest, plan)
    if plan_file is not None:
        raise ValueError(f"`plan` must be None beside a plan, got {plan_file}")
    return _of_plan(place, read_plan(place))


def _plan_of(manifest: Manifest, place: Path, file: Path) -> LossPlan:
    plan = read_plan(file)
    if manifest.options.get("plan_sha256") != sha256_file(file):
        reason = f"{place} was not made by this plan, or by another state of it"
        raise FormatError.about(file, reason, "name the plan that it was made by, or none")
    return plan


def _of_output(place: Path, manifest: Manifest, plan: LossPlan | None) -> CompressionView:
    by_plan = "plan_sha256" in manifest.options
    shown = tuple(_recorded(r, by_plan=by_plan) for r in manifest.matrices.values())
    compressed_to = manifest.options.get("budget", f"keep {manifest.options.get('keep', '')}")
    asked = str(manifest.options.get("dial", {}).get("budget", compressed_to))
    tensors = manifest.source["tensors"]
    left = () if plan is None else _left_of(plan, tensors)
    return CompressionView(
        name=place.resolve().name,
        format=manifest.format,
        source=str(manifest.source["name"]),
        matrices={asked: shown},
        left=left or _beside(manifest),
        plan=plan,
        made=asked,
        manifest=manifest,
    )


def _of_plan(file: Path, plan: LossPlan) -> CompressionView:
    by_name = {m.name: m.matrix for m in plan.matrices}
    budgets = {
        b.asked: tuple(_planned(by_name[name], offer, b) for name, offer in b.chosen.items())
        for b in plan.budgets
    }
    return CompressionView(
        name=file.name,
        format=plan.format,
        source=str(plan.source["name"]),
        matrices=budgets,
        left=_left_of(plan, plan.source["tensors"]),
        plan=plan,
    )


def _recorded(r: MatrixRecord, *, by_plan: bool) -> ShownMatrix:
    return ShownMatrix(
        name=r.name,
        shape=r.shape,
        experts=r.experts,
        bits=r.bits,
        group_size=r.group_size,
        rank=r.rank,
        parked=r.parked,
        factor_bits=r.factor_bits,
        source_bytes=r.source_bytes,
        stored_bytes=r.stored_bytes,
        predicted_kl=r.predicted_kl if by_plan else None,
        relative_error=r.relative_error,
    )


def _planned(m: Candidate, offer: Offer, budget: BitsPlan) -> ShownMatrix:
    return ShownMatrix(
        name=m.name,
        shape=m.shape,
        experts=m.experts,
        bits=offer.bits,
        group_size=offer.group_size,
        rank=offer.rank,
        parked=0,
        factor_bits=offer.factor_bits,
        source_bytes=m.source_bytes,
        stored_bytes=offer.nbytes,
        predicted_kl=offer.cost,
        relative_error=None,
    )


def _left_of(plan: LossPlan, tensors: Mapping[str, Any]) -> tuple[Left, ...]:
    """Return what the plan leaves, first what it could not plan."""
    skipped = {m.name: m.reason for m in plan.skipped}
    sizes = {m.name: m.nbytes for m in plan.skipped}
    names = dict.fromkeys([*skipped, *plan.left])
    return tuple(
        Left(name, sizes.get(name, _nbytes(tensors.get(name))), skipped.get(name, ""))
        for name in names
    )


def _beside(manifest: Manifest) -> tuple[Left, ...]:
    """Return the tensors of the model with two or more axes that are no matrix of the manifest."""
    return tuple(
        Left(name, _nbytes(tensor))
        for name, tensor in manifest.arranged.items()
        if len(tensor[1]) > 1 and name not in manifest.matrices
    )


def _nbytes(tensor: Any) -> int:
    """Return the bytes of a tensor of a type and a shape; 0 of one that is not known."""
    return 0 if tensor is None else ITEM_BYTES[tensor[0]] * prod(tensor[1])
