"""The parts that a matrix is stored as: their tensors, names, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
from plastic_core import Backbone, factor_group
from plastic_core.files import ITEM_BYTES, TensorSpec
from plastic_core.rounding import UNPACKED

from plastic_export.checkpoint.tensors import module_path
from plastic_export.folder.places import Place
from plastic_export.plan.offers import Candidate, Offer

_FINEST_GROUP = 16  # that MLX packs: no scales have longer shapes
Stored = Backbone | list[Backbone] | mx.array
"""What is written for a part: packed, packed expert by expert, or plain."""


@dataclass(frozen=True)
class Part:
    """A backbone or one factor as it is stored.

    Attributes:
        name: Tensor name: of its codes where it is packed.
        shape: Rows and columns of what it stands for.
        dtype: Its type, or that of its scales.
        bits: Bits of a code; None where it is a plain tensor.
        group_size: Neighbouring columns that share a scale; 0 where it is a plain tensor.
        transposed: Whether the plain tensor holds the columns as rows.
        place: The files it goes to.
        experts: How many of it are stacked along a first axis; 0 for a single one.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    bits: int | None = None
    group_size: int = 0
    transposed: bool = False
    place: Place = "model"
    experts: int = 0

    @property
    def path(self) -> str:
        """Path of the module that holds it."""
        return module_path(self.name)

    @property
    def specs(self) -> list[TensorSpec]:
        """Its tensors: one, or the codes (uint32, rows x columns * bits / 32), scales, biases."""
        rows, columns = self.shape
        stack = (self.experts,) if self.experts else ()
        if self.bits is None:
            shape = (columns, rows) if self.transposed else self.shape
            return [TensorSpec(self.name, self.dtype, (*stack, *shape))]
        groups = (*stack, rows, columns // self.group_size)
        return [
            TensorSpec(self.name, "U32", (*stack, rows, columns * self.bits // 32)),
            TensorSpec(f"{self.path}.scales", self.dtype, groups),
            TensorSpec(f"{self.path}.biases", self.dtype, groups),
        ]

    @property
    def packing(self) -> dict[str, int]:
        """What mlx-lm needs to know of it where it is packed."""
        return {"group_size": self.group_size, "bits": self.bits or 0}

    def tensors(self, stored: Stored) -> Iterator[tuple[str, mx.array]]:
        """Yield the arrays of ``specs``, by name; of a stack, from the backbones of its experts."""
        if isinstance(stored, list):
            leaves = [backbone.arrays() for backbone in stored]
            for leaf in list(leaves[0]):
                yield f"{self.path}.{leaf}", mx.stack([own.pop(leaf) for own in leaves])
        elif isinstance(stored, Backbone):
            yield from ((f"{self.path}.{leaf}", a) for leaf, a in stored.arrays().items())
        else:
            yield self.name, stored.T if self.transposed else stored


class Pieces(NamedTuple):
    """The pieces stored of a matrix ``W ~ B + U^T V``; None for what it does without.

    Attributes:
        backbone: B, shape (out, in).
        v: The input directions V awake, shape (rank, in).
        u: The output directions U awake, shape (rank, out).
        asleep_u: The output directions of what sleeps, the most important first.
        asleep_v: The input directions of the same.
    """

    backbone: Stored | None = None
    v: Stored | None = None
    u: Stored | None = None
    asleep_u: Stored | None = None
    asleep_v: Stored | None = None

    def evaluate(self) -> None:
        """Compute all arrays, in the thread whose streams they were to be computed by."""
        for stored in self:
            if isinstance(stored, mx.array):
                mx.eval(stored)
                continue
            backbones = stored if isinstance(stored, list) else [stored] if stored else []
            mx.eval([backbone.arrays() for backbone in backbones])


class Parts(NamedTuple):
    """The places of the `Pieces` of a matrix, field by field, in the order of the files."""

    backbone: Part | None = None
    v: Part | None = None
    u: Part | None = None
    asleep_u: Part | None = None
    asleep_v: Part | None = None

    @property
    def present(self) -> list[Part]:
        """Those that there are; none where the matrix is copied as it is."""
        return [part for part in self if part is not None]

    @property
    def in_model(self) -> list[Part]:
        """Those that go to the model files."""
        return [part for part in self.present if part.place == "model"]

    @property
    def asleep(self) -> list[Part]:
        """Those of what sleeps."""
        return [part for part in (self.asleep_u, self.asleep_v) if part is not None]

    @property
    def parked(self) -> int:
        """How many components sleep."""
        return 0 if self.asleep_u is None else self.asleep_u.shape[0]

    @property
    def factor_group_sizes(self) -> tuple[int, int]:
        """Of the output and of the input directions; 0 where they are plain or missing."""
        pairs = ((self.u, self.asleep_u), (self.v, self.asleep_v))
        u, v = (part.group_size if (part := awake or asleep) else 0 for awake, asleep in pairs)
        return u, v

    def paired(self, pieces: Pieces) -> list[tuple[Part, Stored]]:
        """Return every part with what is stored in it."""
        pairs = zip(self, pieces, strict=True)
        return [(p, stored) for p, stored in pairs if p is not None and stored is not None]


def is_bare(offer: Offer) -> bool:
    """Tell whether an offer is two plain factors and nothing else, as ``"factored"`` has them."""
    return offer.rank > 0 and offer.bits is None and offer.factor_bits == UNPACKED


def packed_backbone(m: Candidate, offer: Offer, path: str) -> Part | None:
    """Return the codes of a matrix at ``path``; None where the offer has none."""
    if offer.bits is None:
        return None
    name = f"{path}.weight"
    return Part(name, m.shape, m.dtype, offer.bits, offer.group_size, experts=m.experts)


def factor_parts(m: Candidate, offer: Offer) -> tuple[Part, Part]:
    """Return ``P.v.weight`` (rank, in) and ``P.u.weight``, (out, rank) if there is nothing else."""
    path, (out, in_) = module_path(m.name), m.shape
    bare = is_bare(offer)
    return (
        _factor(f"{path}.v", (offer.rank, in_), m.dtype, offer),
        _factor(f"{path}.u", (offer.rank, out), m.dtype, offer, transposed=bare),
    )


def asleep_parts(m: Candidate, offer: Offer) -> tuple[Part | None, Part | None]:
    """Return ``P.sleep.u`` and ``P.sleep.v``: a row per component asleep, or None.

    They are packed as those awake are, as ``P.sleep.u.weight`` with its scales and biases then.
    """
    if not offer.parked:
        return None, None
    u, v = (
        _asleep_part(m, side, length, offer) for side, length in zip("uv", m.shape, strict=True)
    )
    return u, v


def _asleep_part(m: Candidate, side: str, length: int, offer: Offer) -> Part:
    name, shape = f"{module_path(m.name)}.sleep.{side}", (offer.parked, length)
    if offer.factor_bits == UNPACKED:
        return Part(name, shape, m.dtype, place="sleep")
    return replace(_factor(name, shape, m.dtype, offer), place="sleep")


def whole_specs(m: Candidate) -> list[TensorSpec]:
    """Return the tensors of a matrix that stays as it is: one, or at most three of a packed one."""
    if m.source_bytes == m.weights * ITEM_BYTES[m.dtype]:
        return Part(m.name, m.shape, m.dtype, experts=m.experts).specs
    return Part(m.name, m.shape, m.dtype, 8, _FINEST_GROUP, experts=m.experts).specs


def _factor(
    path: str, shape: tuple[int, int], dtype: str, offer: Offer, *, transposed: bool = False
) -> Part:
    if offer.factor_bits == UNPACKED:
        return Part(f"{path}.weight", shape, dtype, transposed=transposed)
    group_size = factor_group(shape[1]) or 0  # which the offer was priced with
    return Part(f"{path}.weight", shape, dtype, offer.factor_bits, group_size)
