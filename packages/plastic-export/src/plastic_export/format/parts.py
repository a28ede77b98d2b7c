"""How a matrix lies in the files under each offer: its tensors, their names, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
from plastic_core import Backbone, Correction, factor_group
from plastic_core.files import ITEM_BYTES, TensorSpec
from plastic_core.rounding import UNPACKED

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import COMPANIONS, module_path
from plastic_export.model.layers import Layer, layers_of, stored_apart
from plastic_export.plan.offers import BitsPlan, Candidate, Format, Offer
from plastic_export.plan.plan_file import LossPlan

Stored = Backbone | list[Backbone] | mx.array


@dataclass(frozen=True)
class Part:
    """A backbone or one factor as it is stored.

    Attributes:
        name: Tensor name: of its codes where it is packed.
        shape: Rows and columns of what it stands for.
        dtype: Its type, or that of its scales.
        bits: Of the codes; None where it is a plain tensor.
        group_size: Neighbouring columns that share a scale; 0 where it is a plain tensor.
        transposed: Whether the plain tensor holds the columns as rows.
        in_adapter: Whether it goes to the adapter and not to the model files.
        experts: How many of it are stacked along a first axis; 0 for a single one.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    bits: int | None = None
    group_size: int = 0
    transposed: bool = False
    in_adapter: bool = False
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
            return [TensorSpec(self.name, self.dtype, shape)]
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
        """The arrays of ``specs``, by name; of a stack, from the backbones of its experts."""
        if isinstance(stored, list):
            leaves = [backbone.arrays() for backbone in stored]
            for leaf in list(leaves[0]):
                yield f"{self.path}.{leaf}", mx.stack([own.pop(leaf) for own in leaves])
        elif isinstance(stored, Backbone):
            yield from ((f"{self.path}.{leaf}", a) for leaf, a in stored.arrays().items())
        else:
            yield self.name, stored.T if self.transposed else stored


class Parts(NamedTuple):
    """What a matrix becomes; None for what its offer does without.

    Attributes:
        backbone: In the model files.
        v: The input directions, in the model files or in the adapter.
        u: The output directions, beside ``v``.
    """

    backbone: Part | None
    v: Part | None
    u: Part | None

    @property
    def in_model(self) -> list[Part]:
        """Those that go to the model files."""
        return [part for part in self if part is not None and not part.in_adapter]

    @property
    def factor_group_sizes(self) -> tuple[int, int]:
        """Of the output and of the input directions; 0 where they are plain or missing."""
        u, v = (0 if part is None else part.group_size for part in (self.u, self.v))
        return u, v

    def paired(
        self, backbone: Backbone | list[Backbone] | None, correction: Correction | None
    ) -> list[tuple[Part, Stored]]:
        """Every part with what is stored in it."""
        factors = (None, None) if correction is None else (correction.V, correction.Ut)
        pairs = zip(self, (backbone, *factors), strict=True)
        return [(p, stored) for p, stored in pairs if p is not None and stored is not None]


def parts_of(m: Candidate, offer: Offer, format: Format) -> Parts:
    """Decide the tensors of a matrix under an offer. Pure.

    Args:
        m: The matrix.
        offer: How it is stored.
        format: Of the plan; corrections go to an adapter, or into the model files.

    Returns:
        The parts; none of them where the matrix is copied as it is.
    """
    path = module_path(m.name)
    beside = offer.rank > 0 and format != "adapter"
    backbone = _backbone(m, offer, f"{path}.base" if beside else path)
    if offer.rank == 0:
        return Parts(backbone, None, None)
    v, u = (offer.rank, m.shape[1]), (offer.rank, m.shape[0])
    if format == "adapter":
        return Parts(
            backbone,
            Part(f"{path}.lora_a", v, m.dtype, transposed=True, in_adapter=True),
            Part(f"{path}.lora_b", u, m.dtype, in_adapter=True),
        )
    return Parts(
        backbone,
        _factor(f"{path}.v", v, m.dtype, offer),
        _factor(f"{path}.u", u, m.dtype, offer, transposed=is_bare(offer)),
    )


def is_bare(offer: Offer) -> bool:
    """Whether it is two plain factors and nothing else, as the factored format has them."""
    return offer.rank > 0 and offer.bits is None and offer.factor_bits == UNPACKED


def bias_name(name: str, offer: Offer, format: Format) -> str:
    """The new name of the bias of a layer whose weight ``name`` is stored under an offer."""
    path = module_path(name)
    if offer.rank == 0 or format == "adapter":
        return f"{path}.bias"
    if offer.bits is not None:
        return f"{path}.base.bias"
    return f"{path}.u.bias" if is_bare(offer) else f"{path}.bias"


def _backbone(m: Candidate, offer: Offer, path: str) -> Part | None:
    if offer.bits is None:
        return None
    name = f"{path}.weight"
    return Part(name, m.shape, m.dtype, offer.bits, m.group_size, experts=m.experts)


def whole_specs(m: Candidate) -> list[TensorSpec]:
    """The tensors of a matrix that stays as it is: one, or three where it is packed."""
    if m.source_bytes == m.weights * ITEM_BYTES[m.dtype]:
        stack = (m.experts,) if m.experts else ()
        return [TensorSpec(m.name, m.dtype, (*stack, *m.shape))]
    return Part(m.name, m.shape, m.dtype, 8, m.group_size, experts=m.experts).specs


def _factor(
    path: str, shape: tuple[int, int], dtype: str, offer: Offer, *, transposed: bool = False
) -> Part:
    if offer.factor_bits == UNPACKED:
        return Part(f"{path}.weight", shape, dtype, transposed=transposed)
    group_size = factor_group(shape[1]) or 0  # which the offer was priced with
    return Part(f"{path}.weight", shape, dtype, offer.factor_bits, group_size)


@dataclass
class Layout:
    """Where every tensor of the source goes under one budget of a plan.

    Attributes:
        format: Of the plan.
        chosen: The offer of each matrix of the plan, by tensor name.
        parts: What becomes of each.
        model: Specs of the model files, in the order of the source.
        adapter: Specs of the adapter; none without one.
        copied: Source name to new name, of the tensors whose bytes do not change.
        stacks: Stacks of experts that the source stores one by one: by the first of their tensors
            where they are written.
    """

    format: Format
    chosen: Mapping[str, Offer]
    parts: Mapping[str, Parts]
    model: list[TensorSpec] = field(default_factory=list)
    adapter: list[TensorSpec] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    stacks: dict[str, Layer] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, whole: LossPlan, plan: BitsPlan) -> Layout:
        """Decide it, from the headers alone."""
        parts = {m.name: parts_of(m, plan.chosen[m.name], whole.format) for m in whole.matrices}
        result = cls(whole.format, plan.chosen, parts)
        apart = stored_apart(layers_of(checkpoint))
        for name in checkpoint.tensors:
            if name in apart:
                result._place_expert(name, apart[name], checkpoint)
            else:
                result._place(name, checkpoint)
        return result

    def _place_expert(self, name: str, stack: Layer, checkpoint: Checkpoint) -> None:
        """Add the specs of a stack where the first of its experts is met."""
        if stack in self.stacks.values():
            return
        self.stacks[name] = stack
        there = [part for part in self.parts.get(stack.name, ()) if part is not None]
        for part in there:
            self.model.extend(part.specs)
        if not there:
            info = checkpoint.tensors[name]
            self.model.append(TensorSpec(stack.name, info.dtype, (stack.experts, *info.shape)))

    def _place(self, name: str, checkpoint: Checkpoint) -> None:
        """Add the specs of one tensor of the source, or of what it becomes."""
        path, _, leaf = name.rpartition(".")
        weight, info = f"{path}.weight", checkpoint.tensors[name]
        there = self.parts.get(weight, Parts(None, None, None))
        if name == weight and any(there):
            for part in filter(None, there):
                (self.adapter if part.in_adapter else self.model).extend(part.specs)
        elif leaf not in COMPANIONS or not there.in_model:
            moved = leaf == "bias" and weight in self.parts
            self.copied[name] = (
                bias_name(weight, self.chosen[weight], self.format) if moved else name
            )
            self.model.append(TensorSpec(self.copied[name], info.dtype, info.shape))
