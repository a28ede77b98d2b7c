"""How a long loop tells its progress: a wrapper around its items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """``track(items, description)`` yields the items and may show how far it is."""

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]:
        """Iterate over ``items``."""


def untracked(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate without showing anything."""
    return items
