"""The sizes of a model that its work and its memory follow from, read from headers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import is_weight, stored_parts

_BLOCK = re.compile(r".*?\.\d+\.")  # "model.layers.3."
_EXPERTS = re.compile(r"\.experts\.|switch_mlp\.")


class WeightShape(NamedTuple):
    """A matrix, or a stack of them.

    Attributes:
        name: Its name.
        outputs: Rows of each matrix.
        inputs: Columns of each.
        matrices: How many there are.
        nbytes: Bytes as stored.

    Examples:
        >>> stack = WeightShape("model.layers.0.up.weight", 3, 2, matrices=4, nbytes=48)
        >>> stack.entries, stack.block
        (24, 'model.layers.0.')
    """

    name: str
    outputs: int
    inputs: int
    matrices: int
    nbytes: int

    @property
    def entries(self) -> int:
        """Entries of all of them."""
        return self.matrices * self.outputs * self.inputs

    @property
    def block(self) -> str | None:
        """The numbered block that it is in; None outside."""
        found = _BLOCK.match(self.name)
        return found[0] if found else None


@dataclass(frozen=True)
class ModelShape:
    """The weights of a model, and how many experts of it a token goes through.

    Attributes:
        weights: Every matrix and stack.
        active: Share of the experts that a token goes through.
        heads: Attention heads; 0 where it has none, or nobody says.

    Examples:
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     shape = ModelShape.of(checkpoint)
        >>> shape.vocabulary, len(shape.blocks)
        (80, 2)
    """

    weights: tuple[WeightShape, ...]
    active: float = 1.0
    heads: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelShape:
        """Read them from the headers; what is no weight of MLX or of floats has no part in it."""
        config = checkpoint.config
        used, among = (_number(config, key) for key in ("num_experts_per_tok", "num_experts"))
        among = among or _number(config, "num_local_experts")
        return cls(
            tuple(_weights(checkpoint)),
            min(1.0, used / among) if used and among else 1.0,
            _number(config, "num_attention_heads"),
        )

    @property
    def blocks(self) -> list[list[WeightShape]]:
        """The weights of every numbered block."""
        found = defaultdict[str, list[WeightShape]](list)
        for weight in self.weights:
            if weight.block is not None:
                found[weight.block].append(weight)
        return list(found.values())

    @property
    def outside(self) -> list[WeightShape]:
        """The weights outside the blocks: embeddings, the head."""
        return [weight for weight in self.weights if weight.block is None]

    @property
    def vocabulary(self) -> int:
        """Rows of the largest weight outside the blocks."""
        return max((w.outputs for w in self.outside), default=1)

    @property
    def width(self) -> int:
        """Entries of what goes from block to block."""
        largest = max(self.outside or self.weights, key=lambda w: w.entries, default=None)
        return largest.inputs if largest else 1

    @property
    def longest_activation(self) -> int:
        """Entries per token of the widest activation, logits included."""
        sides = (max(w.outputs, w.inputs) for w in self.weights)
        return max(self.vocabulary, *sides, 1)

    @property
    def longest_in_blocks(self) -> int:
        """Entries per token of the widest activation within the blocks, of all experts used."""
        inside = [w for w in self.weights if w.block is not None] or self.weights
        used = (max(1, round(w.matrices * self.active)) for w in inside)
        return max([max(w.outputs, w.inputs) * n for w, n in zip(inside, used, strict=True)] or [1])

    @property
    def products_per_token(self) -> float:
        """Multiplications of one token's way through the blocks and the head, attention apart."""
        inside = self.products_in(w for w in self.weights if w.block is not None)
        return inside + self.vocabulary * self.width

    def products_in(self, weights: Iterable[WeightShape]) -> float:
        """Return the multiplications of one token with weights that lie in its way."""
        return sum(w.entries * self._share(w) for w in weights)

    @property
    def entries(self) -> int:
        """Entries of all weights."""
        return entries_of(self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def largest_block(self) -> list[WeightShape]:
        """The block with most entries; the whole model where there are no blocks."""
        return max(self.blocks, key=entries_of, default=list(self.weights))

    def _share(self, weight: WeightShape) -> float:
        return self.active if weight.matrices > 1 or _EXPERTS.search(weight.name) else 1.0


def entries_of(weights: Iterable[WeightShape]) -> int:
    """Return the entries of weights together.

    Examples:
        >>> entries_of([WeightShape("a", 2, 3, 1, 12), WeightShape("b", 2, 2, 4, 32)])
        22
    """
    return sum(weight.entries for weight in weights)


def _weights(checkpoint: Checkpoint) -> Iterable[WeightShape]:
    tensors = checkpoint.tensors
    for name in tensors:
        if is_weight(name, tensors):
            *stack, outputs, inputs = checkpoint.shape(name)
            nbytes = sum(part.nbytes for part in stored_parts(name, tensors))
            yield WeightShape(name, outputs, inputs, math.prod(stack), nbytes)


def _number(config: dict[str, object], key: str) -> int:
    """Return a number of the configuration or of the text's part of it; 0 where there is none."""
    nested = config.get("text_config")
    for part in (config, nested):
        value = part.get(key) if isinstance(part, dict) else None
        if isinstance(value, int):
            return value
    return 0
