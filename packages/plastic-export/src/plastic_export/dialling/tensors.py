"""The tensors of a folder before and after it is turned: copied, or of its matrices. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from plastic_core.files import TensorInfo, TensorSpec

from plastic_export.checkpoint.tensors import module_path
from plastic_export.format.layout import Contents


@dataclass(frozen=True)
class Turn:
    """A folder before and after.

    Attributes:
        tensors: The tensors of its model files, in their order.
        before: What became of its matrices.
        after: What is to become of them.
    """

    tensors: Mapping[str, TensorInfo]
    before: Contents
    after: Contents

    def items(self) -> Iterator[tuple[str, str | None]]:
        """Yield, in the order of the files, tensors to copy and matrices to write.

        Yields:
            The new name of a tensor and its old one; the name of a matrix and None.
        """
        owners = {
            spec.name: name
            for name, parts in self.before.parts.items()
            for part in parts.in_model
            for spec in part.specs
        }
        renamed, done = self._renamed(), set[str]()
        for name in self.tensors:
            owner = owners.get(name)
            if owner is None:
                yield renamed.get(name, name), name
            elif owner not in done:
                done.add(owner)
                yield owner, None

    def specs(self) -> list[TensorSpec]:
        """Return the tensors of the new model files."""
        found = list[TensorSpec]()
        for name, copied in self.items():
            if copied is not None:
                info = self.tensors[copied]
                found.append(TensorSpec(name, info.dtype, info.shape))
            else:
                found += [s for part in self.after.parts[name].in_model for s in part.specs]
        return found

    def asleep_specs(self) -> list[TensorSpec]:
        """Return the tensors of what sleeps."""
        names = (name for name, copied in self.items() if copied is None)
        asleep = (part for name in names for part in self.after.parts[name].asleep)
        return [spec for part in asleep for spec in part.specs]

    def moved(self) -> dict[str, str]:
        """Return the tensors that have another name and the same bytes, and that name."""
        pairs = [(old, new) for new, old in self.items() if old is not None]
        for name in self.before.parts:
            pairs += [(was.name, spec.name) for was, spec in self.backbone_pairs(name)]
        return {old: new for old, new in pairs if old != new}

    def backbone_pairs(self, name: str) -> list[tuple[TensorSpec, TensorSpec]]:
        """Return the tensors of the backbone of a matrix, before and after; none without one."""
        old, new = self.before.parts[name].backbone, self.after.parts[name].backbone
        return [] if old is None or new is None else list(zip(old.specs, new.specs, strict=True))

    def _renamed(self) -> dict[str, str]:
        """Return the new names of biases, which lie where their layers are."""
        names = (f"{module_path(name)}.bias" for name in self.before.matrices)
        return {self.before.place_of(name): self.after.place_of(name) for name in names}
