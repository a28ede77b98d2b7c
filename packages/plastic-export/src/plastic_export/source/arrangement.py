"""The tensors of an output, in the order of its source: what each is, and where it comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from plastic_export.checkpoint.tensors import COMPANIONS, module_path
from plastic_export.source.source import Source


class Item(NamedTuple):
    """A tensor of an output, or a layer that is stored anew.

    Attributes:
        name: Its name before a format changes it; of a layer, that of its weight.
        tensor: The tensor of the source that it is a copy of; None for none.
        is_computed: Whether it is the parameter ``name`` of the loaded model.
    """

    name: str
    tensor: str | None = None
    is_computed: bool = False

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer that is stored anew."""
        return self.tensor is None and not self.is_computed


@dataclass(frozen=True)
class Arrangement:
    """An order of the tensors of an output.

    Attributes:
        steps: The items by the tensor of the source at which their turn comes, in its order.
        as_loaded: The names of the parameters that are written as the loaded model holds them.
        is_whole: Whether these are all of them.
    """

    steps: dict[str, list[Item]]
    as_loaded: frozenset[str] = frozenset()
    is_whole: bool = False

    def items(self) -> Iterator[Item]:
        """All of them, in order."""
        for items in self.steps.values():
            yield from items


def arrangements(source: Source, anew: Collection[str]) -> Iterator[Arrangement]:
    """Yield the ways of arranging an output, the most like its source first.

    The layers that are stored anew have the names of the loaded model in all of them. The other
    tensors stay as they are in the files, unless these are codes of another tool than MLX; or they
    are written as the loaded model holds them, what it drops beside them; or without that.

    Args:
        source: The source.
        anew: The layers that are stored anew, by the names of their weights.
    """
    if source.trace is None:
        yield plain_arrangement(source, anew)
        return
    if source.checkpoint.quantizer.method is None:
        yield stored_arrangement(source, anew)
    yield loaded_arrangement(source, anew, dropped=True)
    yield loaded_arrangement(source, anew, dropped=False)


def plain_arrangement(source: Source, anew: Collection[str]) -> Arrangement:
    """Every tensor of the files under its name, and layers where their weights are."""
    companions = {f"{module_path(n)}.{leaf}" for n in anew for leaf in COMPANIONS}
    steps = {
        name: [Item(name) if name in anew else Item(name, name)]
        for name in source.checkpoint.tensors
        if name not in companions
    }
    return Arrangement(steps)


def stored_arrangement(source: Source, anew: Collection[str]) -> Arrangement:
    """Keep every tensor of the files as it is that no layer stored anew is made from."""
    return _arranged(source, anew, _entangled(source, anew), dropped=True)


def loaded_arrangement(source: Source, anew: Collection[str], *, dropped: bool) -> Arrangement:
    """Write every parameter as the loaded model holds it.

    Args:
        source: The source.
        anew: The layers that are stored anew.
        dropped: Whether the tensors that the model drops are copied too.
    """
    return _arranged(source, anew, frozenset(source.origins), dropped=dropped)


def _entangled(source: Source, anew: Collection[str]) -> frozenset[str]:
    """Return the parameters that share a tensor with layers stored anew, directly or not."""
    paths = {module_path(name) for name in anew}
    found = {name for name in source.origins if name.rpartition(".")[0] in paths}
    users, waiting, seen = source.users(), list(found), set[str]()
    while waiting:
        for tensor in source.origins[waiting.pop()].tensors:
            if tensor not in seen:
                seen.add(tensor)
                new = [name for name in users[tensor] if name not in found]
                found.update(new)
                waiting += new
    return frozenset(found)


def _arranged(
    source: Source, anew: Collection[str], loaded: frozenset[str], *, dropped: bool
) -> Arrangement:
    """Arrange the parameters ``loaded`` as the model holds them, and the rest as it is stored."""
    users, placed = source.users(), _Placed(source, anew)
    steps: dict[str, list[Item]] = {}
    for tensor in source.checkpoint.tensors:
        used = [name for name in users[tensor] if name in loaded]
        if used:
            items = [item for name in used for item in placed.items(name)]
        elif tensor in source.dead or not (users[tensor] or dropped):
            items = []
        else:
            items = [Item(tensor, tensor)]
        if items:
            steps[tensor] = items
    return Arrangement(steps, loaded, len(loaded) == len(source.origins))


@dataclass
class _Placed:
    """The parameters and layers that have a place already."""

    source: Source
    anew: Collection[str]
    names: set[str] = field(default_factory=set)

    def items(self, parameter: str) -> Iterable[Item]:
        """Yield the item of a parameter, unless it has its place, or its layer has."""
        path, _, leaf = parameter.rpartition(".")
        weight = f"{path}.weight"
        is_part = weight in self.anew and leaf in ("weight", *COMPANIONS)
        name = weight if is_part else parameter
        if name in self.names:
            return
        self.names.add(name)
        origin = self.source.origins[parameter]
        if is_part:
            yield Item(weight)
        elif origin.is_copy and self._is_alike(parameter, origin.tensors[0]):
            yield Item(parameter, origin.tensors[0])
        else:
            yield Item(parameter, is_computed=True)

    def _is_alike(self, parameter: str, tensor: str) -> bool:
        """Tell whether a copy has the type and shape of its tensor in the files too."""
        spec, info = self.source.specs[parameter], self.source.checkpoint.tensors[tensor]
        return (spec.dtype, spec.shape) == (info.dtype, info.shape)
