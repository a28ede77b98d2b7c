"""The tensors of the files that a lazy array is computed from, read off MLX's own graph."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx

_PRIMITIVE = re.compile(r'\{ (\d+) \[label ="([^"]*)"')
_ARRAY = re.compile(r'\{ (?:rank=(?:source|sink); )?"([^"]*)"')
_INPUT = re.compile(r'"([^"]*)" -> (\d+)')
_OUTPUT = re.compile(r'(\d+) -> "([^"]*)"')
_COPIES = {"StopGradient", "Copy", "Contiguous"}
"""Primitives with one input whose output has the same values."""


class Origin(NamedTuple):
    """What an array is computed from.

    Attributes:
        tensors: The leaves that it depends on, in the order in which they are first used.
        is_copy: Whether it holds exactly what its one leaf does.
        is_stack: Whether it is its leaves, as they are, along an axis that was inserted.
        formula: Digest of the operations and leaves that it is computed by. The parameters of an
            operation, such as axes, are not part of it.

    Examples:
        >>> a = mx.array([1.0, 2.0])
        >>> origins({"a": a}, {"again": a})["again"]
        Origin(tensors=('a',), is_copy=True, is_stack=False, formula='a')
    """

    tensors: tuple[str, ...]
    is_copy: bool
    is_stack: bool
    formula: str


def origins(leaves: Mapping[str, mx.array], arrays: Mapping[str, mx.array]) -> dict[str, Origin]:
    """Trace lazy arrays back to what they are computed from; nothing is evaluated.

    Args:
        leaves: The arrays to stop at, by name, each read from a file or evaluated.
        arrays: The arrays to trace, by name.

    Returns:
        The origin of each of ``arrays``. What was evaluated already has no leaves.

    Cost:
        Linear in the number of operations: 0.5 s for 20,000.

    Examples:
        >>> a, b = mx.array([[1.0, 2.0]]), mx.array([[3.0, 4.0]])
        >>> found = origins({"a": a, "b": b}, {"sum": a + b, "a": a, "pair": mx.stack([b, a])})
        >>> found["sum"].tensors, found["a"].is_copy, found["pair"].is_stack
        (('a', 'b'), True, True)
    """
    graph = _Graph(list(leaves))
    # An operation of its own for each, so that every one is an end of the graph, in this order.
    ends = [mx.stop_gradient(array) for array in arrays.values()]
    for line in _exported([*leaves.values(), *ends]):
        graph.read(line)
    return dict(zip(arrays, graph.ends(len(ends)), strict=True))


def _exported(arrays: Sequence[mx.array]) -> Iterator[str]:
    """Yield the lines of the graph of these arrays as MLX writes it for Graphviz."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    text.seek(0)
    yield from text


@dataclass
class _Graph:
    """The graph as far as it was read: leaves come first, then inputs before what uses them."""

    leaves: list[str]
    primitives: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, list[str]] = field(default_factory=dict)
    arrays: dict[str, Origin] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    sinks: list[str] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)

    def read(self, line: str) -> None:
        """Read one line."""
        if match := _PRIMITIVE.match(line):
            self.primitives[match[1]] = match[2]
            self.inputs[match[1]] = []
        elif match := _ARRAY.match(line):
            self._add_array(match[1], is_end="rank=sink" in line)
        elif match := _OUTPUT.match(line):
            self._add_output(match[1], match[2])
        elif match := _INPUT.match(line):
            self.inputs[match[2]].append(match[1])

    def ends(self, count: int) -> list[Origin]:
        """Return the origins of the arrays that were traced."""
        return [self.arrays[label] for label in self.sinks[len(self.sinks) - count :]]

    def _add_array(self, label: str, *, is_end: bool) -> None:
        place = len(self.order)
        self.order.append(label)
        if place < len(self.leaves):
            name = self.leaves[place]
            self.arrays[label] = Origin((name,), True, False, name)
            return
        self.arrays[label] = Origin((), False, False, "constant")
        if is_end:
            self.sinks.append(label)

    def _add_output(self, primitive: str, label: str) -> None:
        """Combine the origins of the inputs of an operation into that of an output."""
        number = self.outputs.get(primitive, 0)
        self.outputs[primitive] = number + 1
        if len(self.arrays[label].tensors) == 1 and self.arrays[label].is_copy:
            return  # a leaf: what it is read from is not asked
        kind = self.primitives[primitive]
        inputs = [self.arrays[name] for name in self.inputs[primitive]]
        self.arrays[label] = _combined(kind, inputs, number)


def _combined(kind: str, inputs: Sequence[Origin], number: int) -> Origin:
    """Return the origin of an output, given those of the inputs of its operation."""
    if kind in _COPIES and len(inputs) == 1:
        return inputs[0]
    tensors = tuple(dict.fromkeys(name for origin in inputs for name in origin.tensors))
    text = "\0".join([kind, str(number), *(origin.formula for origin in inputs)])
    formula = hashlib.sha256(text.encode()).hexdigest()
    lifted = kind == "ExpandDims" and inputs[0].is_copy
    joined = kind == "Concatenate" and all(origin.is_stack for origin in inputs)
    is_stack = lifted or (joined and len(tensors) == len(inputs))
    return Origin(tensors, False, is_stack, formula)
