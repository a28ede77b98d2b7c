"""The tensors that hold the components of a matrix, awake and asleep: names and shapes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plastic_core.files import FormatError, TensorInfo
from plastic_core.rounding import UNPACKED

from plastic_runtime.dialling.manifest import SLEEP, MatrixRecord

_PACKED = ("weight", "scales", "biases")
_COPY = "copy the folder again"
Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Strip:
    """One tensor of all components of a matrix.

    Attributes:
        side: ``"u"`` for the output directions, ``"v"`` for the input directions.
        leaf: ``"weight"``, or also ``"scales"`` and ``"biases"`` where they are packed.
        dtype: Its type, as safetensors writes it.
        length: Entries of one component.
        across: Whether a component is a column of the tensor of the model, and not a row.
        awake: Where those awake lie, in the model files.
        asleep: Where the others lie, as rows; None for none.
    """

    side: str
    leaf: str
    dtype: str
    length: int
    across: bool
    awake: TensorInfo | None
    asleep: TensorInfo | None

    @property
    def axis(self) -> int:
        """The axis of the components in the model."""
        return int(self.across)

    def shape(self, count: int) -> tuple[int, int]:
        """Return the shape of so many components in the model."""
        return (self.length, count) if self.across else (count, self.length)


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix with components as its folder stores it.

    Attributes:
        record: What the manifest says of it.
        strips: The tensors of its components.
        components: How many there are, awake and asleep.
    """

    record: MatrixRecord
    strips: tuple[Strip, ...]
    components: int

    @property
    def path(self) -> str:
        """The path of its layer."""
        return self.record.name.removesuffix(".weight")

    @property
    def backbone_leaves(self) -> tuple[str, ...]:
        """The names of the tensors of its backbone, below the path of that."""
        return _PACKED if self.record.bits is not None else ()

    @property
    def is_packed(self) -> bool:
        """Whether its factors are."""
        return self.record.factor_bits != UNPACKED

    @property
    def component_bytes(self) -> int:
        """Bytes of one component."""
        infos = [(s.awake or s.asleep, s) for s in self.strips]
        return sum(s.length * i.nbytes // (i.shape[0] * i.shape[1]) for i, s in infos if i)


def stored_matrix(folder: Path, r: MatrixRecord, model: Tensors, sleeping: Tensors) -> StoredMatrix:
    """Return where the components of a matrix lie.

    Args:
        folder: The folder, for messages.
        r: What the manifest says of it; it has components.
        model: The tensors of the model files.
        sleeping: Those of the file that sleeps; without any the matrix has those awake alone.

    Raises:
        FormatError: If a tensor is missing or of another shape than the manifest says.
    """
    parked = r.parked if sleeping else 0
    found = (_strip(folder, r, side, leaf, model, sleeping) for side, leaf in _leaves(r))
    return StoredMatrix(r, tuple(found) if r.rank + parked else (), r.rank + parked)


def _leaves(r: MatrixRecord) -> Iterator[tuple[str, str]]:
    leaves = _PACKED if r.factor_bits != UNPACKED else _PACKED[:1]
    yield from ((side, leaf) for side in "vu" for leaf in leaves)


def _strip(
    folder: Path, r: MatrixRecord, side: str, leaf: str, model: Tensors, sleeping: Tensors
) -> Strip:
    path, is_packed = r.name.removesuffix(".weight"), r.factor_bits != UNPACKED
    across = side == "u" and r.bits is None and not is_packed
    place = f"{path}.sleep.{side}.{leaf}" if is_packed else f"{path}.sleep.{side}"
    awake = _tensor(folder, model, f"{path}.{side}.{leaf}", r.rank, across=across)
    asleep = None
    if sleeping:
        asleep = _tensor(folder / SLEEP, sleeping, place, r.parked, across=False)
    known = [
        (info.dtype, info.shape[1 - axis]) for info, axis in ((awake, across), (asleep, 0)) if info
    ]
    if len({*known}) > 1:
        raise FormatError.about(folder, f"{place!r} is not as long as what is awake", _COPY)
    (dtype, length), *_ = known
    return Strip(side, leaf, dtype, length, across, awake, asleep)


def _tensor(
    file: Path, tensors: Tensors, name: str, count: int, *, across: bool
) -> TensorInfo | None:
    """Return the tensor of so many components; None for no components."""
    if count == 0:
        return None
    if name not in tensors:
        raise FormatError.about(file, f"{name!r} is missing", _COPY)
    info = tensors[name]
    if len(info.shape) != 2 or info.shape[across] != count:
        reason = f"its shape {list(info.shape)} is not that of {count} components"
        raise FormatError.about(file, reason, _COPY, tensor=name)
    return info
