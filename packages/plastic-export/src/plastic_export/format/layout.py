"""The place of every tensor of a source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from plastic_core.files import TensorSpec

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import COMPANIONS, module_path
from plastic_export.folder.manifest import Manifest, MatrixRecord
from plastic_export.folder.places import Place
from plastic_export.format.parts import Part, Parts
from plastic_export.format.protocol import Format
from plastic_export.format.table import format_named
from plastic_export.model.layers import Layer
from plastic_export.plan.offers import Candidate, Offer


@dataclass(frozen=True)
class Contents:
    """The offer of every chosen matrix.

    Attributes:
        format: The format of the output.
        matrices: The matrices, by tensor name.
        chosen: The offer that each takes.
        parts: What each is stored as.
    """

    format: Format
    matrices: Mapping[str, Candidate]
    chosen: Mapping[str, Offer]
    parts: Mapping[str, Parts]

    @classmethod
    def of(
        cls, format: Format, matrices: Iterable[Candidate], chosen: Mapping[str, Offer]
    ) -> Contents:
        """Decide the parts of every matrix under its offer. Pure."""
        by_name = {m.name: m for m in matrices}
        parts = {name: format.parts(m, chosen[name]) for name, m in by_name.items()}
        return cls(format, by_name, chosen, parts)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Contents:
        """Return what became of the matrices of an output, from its manifest."""
        records = manifest.matrices.values()
        chosen = {r.name: offer_of(r) for r in records}
        return cls.of(format_named(manifest.format), map(candidate_of, records), chosen)

    def place_of(self, name: str) -> str:
        """Return the new name of a tensor of the source that is copied: a bias may move."""
        path, _, leaf = name.rpartition(".")
        offer = self.chosen.get(f"{path}.weight")
        return name if leaf != "bias" or offer is None else self.format.bias_name(path, offer)


def candidate_of(record: MatrixRecord) -> Candidate:
    """Return the matrix that a record is of."""
    return Candidate(
        name=record.name,
        shape=record.shape,
        dtype=record.dtype,
        group_size=record.group_size,
        source_bytes=record.source_bytes,
        experts=record.experts,
    )


def offer_of(record: MatrixRecord) -> Offer:
    """Return the offer that a record says was taken."""
    bits, rank, factor_bits = record.bits, record.rank, record.factor_bits
    return Offer(bits, record.stored_bytes, record.predicted_kl, rank, factor_bits)


@dataclass
class Layout:
    """The tensors of an output in the order of its files, and where each comes from.

    Attributes:
        contents: What becomes of the chosen matrices.
        files: Specs of the tensors of every place.
        copied: Source name to new name, of the tensors whose bytes do not change.
        stacks: Stacks of experts that the source stores one by one: by the first of their tensors
            where they are written.
    """

    contents: Contents
    files: dict[Place, list[TensorSpec]] = field(
        default_factory=lambda: {"model": [], "adapter": [], "sleep": []}
    )
    copied: dict[str, str] = field(default_factory=dict)
    stacks: dict[str, Layer] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        contents: Contents,
        expert_stacks: Mapping[str, Layer] | None = None,
    ) -> Layout:
        """Decide it.

        Args:
            checkpoint: The source, of which only the headers are used.
            contents: What becomes of the chosen matrices.
            expert_stacks: The stacks to be made of tensors of experts, by the names of these.
        """
        layout, expert_stacks = cls(contents), expert_stacks or {}
        for name in checkpoint.tensors:
            if name in expert_stacks:
                layout._place_expert(name, expert_stacks[name], checkpoint)
            else:
                layout._place(name, checkpoint)
        return layout

    def layer_at(self, name: str) -> Layer:
        """Return the layer whose turn comes at a tensor of the source."""
        return self.stacks.get(name, Layer(name, tensors=(name,)))

    def steps(self, checkpoint: Checkpoint) -> list[str]:
        """Return the tensors of the source at which something is written, in its order."""
        names = self.copied.keys() | self.stacks.keys() | self.contents.matrices.keys()
        return [name for name in checkpoint.tensors if name in names]

    def _add(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self.files[part.place] += part.specs

    def _place_expert(self, name: str, stack: Layer, checkpoint: Checkpoint) -> None:
        """Add the specs of a stack where the first of its experts is met."""
        if stack in self.stacks.values():
            return
        self.stacks[name] = stack
        parts = self.contents.parts.get(stack.name, Parts()).present
        self._add(parts)
        if not parts:
            info = checkpoint.tensors[name]
            shape = (stack.experts, *info.shape)
            self.files["model"].append(TensorSpec(stack.name, info.dtype, shape))

    def _place(self, name: str, checkpoint: Checkpoint) -> None:
        """Add the specs of one tensor of the source, or of what it becomes."""
        path, _, leaf = name.rpartition(".")
        parts = self.contents.parts.get(f"{path}.weight", Parts())
        if name == f"{path}.weight" and parts.present:
            self._add(parts.present)
        elif leaf not in COMPANIONS or not parts.in_model:
            info = checkpoint.tensors[name]
            self.copied[name] = self.contents.place_of(name)
            self.files["model"].append(TensorSpec(self.copied[name], info.dtype, info.shape))


def stored_anew(contents: Contents) -> set[str]:
    """Return the paths of the layers whose weight in the model files is not that of the source."""
    return {module_path(name) for name, parts in contents.parts.items() if parts.in_model}
