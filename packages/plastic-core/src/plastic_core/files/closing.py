"""A base class for what has to be closed: a context manager."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
