"""The bytes of components, as the file that keeps them counts them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ByteCount:
    """A function from ranks to bytes: how many components take where they are written.

    Attributes:
        components: Bytes of one component of every layer, by path.
        layers: Bytes that a layer with a component takes besides, by path, such as for its name.
        fixed: Bytes that the whole takes besides.
        one_rank: Whether every layer with a component takes the room of the highest rank of all,
            as in a file that has one rank and fills the smaller ones up with zeros.

    Examples:
        >>> count = ByteCount({"a": 10, "b": 20}, fixed=100)
        >>> count({"a": 3, "b": 1})
        150
        >>> ByteCount({"a": 10, "b": 20}, fixed=100, one_rank=True)({"a": 3, "b": 1})
        190
    """

    components: Mapping[str, int]
    layers: Mapping[str, int] = field(default_factory=dict)
    fixed: int = 0
    one_rank: bool = False

    def __call__(self, ranks: Mapping[str, int]) -> int:
        """Return the bytes at these ranks, by path."""
        highest = max(ranks.values(), default=0)
        awake = {path: rank for path, rank in ranks.items() if rank}
        return self.fixed + sum(
            self.layer(path, highest if self.one_rank else rank) for path, rank in awake.items()
        )

    def layer(self, path: str, rank: int) -> int:
        """Return the bytes of a layer that takes the room of ``rank`` components, at least one."""
        return self.layers.get(path, 0) + rank * self.components[path]
