"""Context managers by one method: what has to be closed, or completed unless something failed."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Leaving:
    """A context manager that ends by calling ``leave``.

    Examples:
        >>> from plastic_core.files import Leaving
        >>> class Door(Leaving):
        ...     def leave(self, error):
        ...         print("slammed" if error else "shut")
        >>> with Door():
        ...     pass
        shut
    """

    def leave(self, error: BaseException | None) -> None:
        """End the block: completed, or given up where an ``error`` ended it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(error)


class Closing(Leaving):
    """A context manager that ends by calling ``close``, whatever happened inside.

    Examples:
        >>> class Lamp(Closing):
        ...     def close(self) -> None:
        ...         print("off")
        >>> with Lamp():
        ...     print("on")
        on
        off
    """

    def close(self) -> None:
        """Give back what is held; a second call does nothing."""
        raise NotImplementedError

    def leave(self, error: BaseException | None) -> None:
        """Close, whatever happened in the block."""
        self.close()
