"""The place of every tensor of a source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from plastic_core.files import TensorSpec
from plastic_runtime.dialling import Manifest, MatrixRecord

from plastic_export.checkpoint.tensors import module_path
from plastic_export.folder.places import Place
from plastic_export.format.parts import Parts
from plastic_export.format.protocol import Format
from plastic_export.format.table import format_named
from plastic_export.plan.offers import Candidate, Offer
from plastic_export.source.arrangement import Arrangement, Item
from plastic_export.source.layers import Layer
from plastic_export.source.source import Source


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

    @property
    def anew(self) -> set[str]:
        """The names of the matrices that are not left as they are."""
        return {name for name, parts in self.parts.items() if parts.present}

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
    return Offer(
        bits=record.bits,
        nbytes=record.stored_bytes,
        cost=record.predicted_kl,
        rank=record.rank,
        factor_bits=record.factor_bits,
        group_size=record.group_size,
        parked=record.parked,
    )


@dataclass
class Layout:
    """The tensors of an output in the order of its files, and where each comes from.

    Attributes:
        contents: What becomes of the chosen matrices.
        arrangement: The order, and where every tensor comes from.
        files: Specs of the tensors of every place.
        as_they_are: Types and shapes of the tensors of the model if no matrix were stored anew.
    """

    contents: Contents
    arrangement: Arrangement
    files: dict[Place, list[TensorSpec]] = field(
        default_factory=lambda: {"model": [], "adapter": [], "sleep": []}
    )
    as_they_are: list[TensorSpec] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source, contents: Contents, arrangement: Arrangement) -> Layout:
        """Lay out the tensors; only the headers of the source are used."""
        layout = cls(contents, arrangement)
        for item in arrangement.items():
            if item.is_layer:
                layout._place_layer(source.layers[item.name])
            else:
                layout._place_tensor(_spec(source, item))
        return layout

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(spec.nbytes for specs in self.files.values() for spec in specs)

    @property
    def renamed(self) -> dict[str, str]:
        """The tensors of the source whose bytes or matrix have another name now, and that name."""
        pairs = ((item.tensor, item.name) for item in self.arrangement.items())
        return {tensor: name for tensor, name in pairs if tensor not in (None, name)}

    def _place_layer(self, layer: Layer) -> None:
        for part in self.contents.parts[layer.name].present:
            self.files[part.place] += part.specs
        stack = (layer.experts,) if layer.experts else ()
        self.as_they_are.append(TensorSpec(layer.name, layer.dtype, (*stack, *layer.shape)))

    def _place_tensor(self, spec: TensorSpec) -> None:
        name = self.contents.place_of(spec.name)
        self.files["model"].append(TensorSpec(name, spec.dtype, spec.shape))
        self.as_they_are.append(spec)


def _spec(source: Source, item: Item) -> TensorSpec:
    """Return the type and shape of what is not stored anew, under its name before the format."""
    if item.tensor is None:
        return source.specs[item.name]
    info = source.checkpoint.tensors[item.tensor]
    return TensorSpec(item.name, info.dtype, info.shape)


def stored_anew(contents: Contents) -> set[str]:
    """Return the paths of the layers whose weight in the model files is not that of the source."""
    return {module_path(name) for name, parts in contents.parts.items() if parts.in_model}
