"""The progress of a long loop: a wrapper around its items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Weighted(list[T]):
    """Items of a loop that take unlike time, with how much work each of them is.

    Args:
        items: The items.
        weights: One non-negative number per item, in any unit.

    Examples:
        >>> Weighted(["small", "large"], [1.0, 8.0]).weights
        [1.0, 8.0]
    """

    def __init__(self, items: Iterable[T], weights: Iterable[float]) -> None:
        super().__init__(items)
        self.weights = list(weights)


class Noted(list[T]):
    """Items of a loop, with what there is to say of it while they are worked on.

    Args:
        items: The items.
        note: Returns a few words about the present state, such as a loss.

    Examples:
        >>> Noted(range(2), lambda: "loss 2.31").note()
        'loss 2.31'
    """

    def __init__(self, items: Iterable[T], note: Callable[[], str]) -> None:
        super().__init__(items)
        self.note = note


class Track(Protocol):
    """``track(items, description)`` yields the items and may show how far it is.

    Items that take unlike time are `Weighted`; items that something may be said about are `Noted`.

    Examples:
        >>> def announced(items, description):
        ...     print(description)
        ...     yield from items
        >>> list(announced([1, 2], "counting"))
        counting
        [1, 2]
    """

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]:
        """Iterate over ``items``."""


def untracked(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate without showing anything: the ``track`` of who does not look.

    Examples:
        >>> list(untracked([1, 2], "counting"))
        [1, 2]
    """
    return items
