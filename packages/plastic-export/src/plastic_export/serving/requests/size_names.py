"""The sizes of a served model: which there are, and how requests name them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from plastic_export.serving.requests.request_error import RequestError

STEPS = 10_000
"""Steps of the dial: what is asked for is rounded down, so that like sizes share a batch."""
FIELD, KEEP = "plastic", "keep"
DEFAULT = "default_model"
"""What mlx-lm's server calls a request without the name of a model."""


class ListedSize(NamedTuple):
    """A size that ``/v1/models`` lists.

    Attributes:
        keep: Bytes of the weights over those of the largest size.
        nbytes: Bytes that the weights take at most.
        price: What it costs, in the unit of the dial.

    Examples:
        >>> ListedSize(keep=0.75, nbytes=750, price=0.02).nbytes
        750
    """

    keep: float
    nbytes: int
    price: float


class Priced(Protocol):
    """A stop of the curve of a dial."""

    @property
    def asked(self) -> int:
        """Bytes of the weights to ask for."""

    @property
    def price(self) -> float:
        """What it costs."""


@dataclass(frozen=True)
class SizeNames:
    """Names and sizes of one model, in steps of a ten-thousandth of the largest.

    Attributes:
        name: What the model is called.
        others: What else it is called, such as the path of its folder.
        least: Bytes of the weights at the least size.
        largest: The same at the largest.

    Examples:
        >>> sizes = SizeNames("out", (), least=600, largest=1000)
        >>> sizes.asked("out@0.75", None), sizes.asked("out", {"keep": 0.6})
        (0.75, 0.6)
        >>> sizes.nbytes(0.75), sizes.called(0.75)
        (750, 'out@0.75')
    """

    name: str
    others: tuple[str, ...]
    least: int
    largest: int

    @property
    def least_keep(self) -> float:
        """The least size, as it is asked for."""
        return self._keep_of(self.least)

    def nbytes(self, keep: float) -> int:
        """Return the bytes that the weights may take at a size."""
        return round(keep * STEPS) * self.largest // STEPS

    def called(self, keep: float) -> str:
        """Return the name of the model at a size."""
        return f"{self.name}@{keep:g}"

    def listed(self, curve: Sequence[Priced]) -> list[ListedSize]:
        """Return the sizes of a curve, each as it is asked for, increasing."""
        prices = {self._keep_of(stop.asked): stop.price for stop in curve}
        return [ListedSize(k, self.nbytes(k), prices[k]) for k in sorted(prices)]

    def asked(self, model: str, field: Any) -> float | None:
        """Return the size that a request asks for; None where it names none.

        Args:
            model: The name of the model in the request.
            field: What its field ``"plastic"`` holds, as it was sent; None where there is none.

        Raises:
            RequestError: If there is no such model, or the size is none that it has.
        """
        named, given = self._in_name(model), _in_field(field)
        if named is not None and given is not None and named != given:
            line = f'"model" asks for the size {named:g}, "{FIELD}" for {given:g}; give one of them'
            raise RequestError(line)
        keep = named if given is None else given
        return None if keep is None else self._checked(keep)

    def _keep_of(self, nbytes: int) -> float:
        """Return the least step that allows so many bytes."""
        return -(-nbytes * STEPS // self.largest) / STEPS

    def _in_name(self, model: str) -> float | None:
        known = (self.name, DEFAULT, *self.others)
        if model in known:
            return None
        name, _, size = model.rpartition("@")
        if name not in known:
            line = f'"model" must be "{self.name}" or "{self.name}@SIZE", got "{model}"'
            raise RequestError(line, 404)
        try:
            return float(size)
        except ValueError:
            line = f'"model": the size behind @ must be a number such as 0.5, got "{size}"'
            raise RequestError(line) from None

    def _checked(self, keep: float) -> float:
        least = self.least_keep
        if not least <= keep <= 1:  # NaN too
            line = f'"{KEEP}" must be a number from {least:g}, the least size, to 1, got {keep:g}'
            raise RequestError(line)
        return math.floor(keep * STEPS + 1e-6) / STEPS


def _in_field(field: Any) -> float | None:
    if field is None:
        return None
    example = f'{{"{KEEP}": 0.5}}'
    if not isinstance(field, dict):
        raise RequestError(f'"{FIELD}" must be an object such as {example}')
    if unknown := [str(key) for key in field if key != KEEP]:
        raise RequestError(f'"{FIELD}" has no field "{unknown[0]}"; write {example}')
    if KEEP not in field:
        raise RequestError(f'"{FIELD}" must say how much is kept, such as {example}')
    keep = field[KEEP]
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise RequestError(f'"{KEEP}" must be a number, got {type(keep).__name__}')
    try:
        return float(keep)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
