"""The size that a model is to have, as a person states it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KINDS = ("bytes", "fraction", "bits_per_weight", "keep")
"""The ways to state a size; see `AskedSize`."""


class AskedSize(NamedTuple):
    """One size.

    Attributes:
        kind: ``"bytes"`` of all weights, headers of files not counted; ``"fraction"`` of these
            with everything awake; ``"bits_per_weight"`` and ``"keep"`` of the matrices, as
            ``plastic dial`` counts them.
        value: The number.

    Examples:
        >>> AskedSize.of({"fraction": 0.5})
        AskedSize(kind='fraction', value=0.5)
    """

    kind: str
    value: float

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> AskedSize:
        """Read a size from one entry ``kind: number``.

        Raises:
            ValueError: If there is another number of entries than one, or of an unknown kind.
            TypeError: If it is no such entry, or the value is not a number.
        """
        if not isinstance(stated, Mapping):
            raise TypeError(f'a size is an entry such as {{"fraction": 0.5}}, got {stated!r}')
        given = {kind: value for kind, value in stated.items() if value is not None}
        known = ", ".join(f"`{kind}`" for kind in KINDS)
        if len(given) != 1 or not {*given} <= {*KINDS}:
            got = ", ".join(f"`{kind}`" for kind in given) or "nothing"
            raise ValueError(f"a size is given by exactly one of {known}, got {got}")
        ((kind, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"`{kind}` must be a number, got {value!r}")
        return cls(kind, value)

    @classmethod
    def parsed(cls, text: str) -> AskedSize:
        """Read ``"fraction=0.5"`` or ``"bytes=480000000"``.

        Raises:
            ValueError: If it is neither.
        """
        kind, _, number = text.partition("=")
        try:
            return cls.of({kind.strip(): float(number)})
        except ValueError as error:
            raise ValueError(f"{text!r} is no size, write it like fraction=0.5: {error}") from None
