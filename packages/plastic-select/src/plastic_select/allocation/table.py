"""The options of many matrices as arrays, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from plastic_select.allocation.hull import Floats, Ints
from plastic_select.allocation.options import Option

Options = Mapping[str, Sequence[Option]]
BYTE_LIMIT = 2**53  # sums of bytes below it are exact in float64


@dataclass(frozen=True)
class Table:
    """One entry per option, matrices in the order of their sorted names.

    Attributes:
        names: The matrices.
        owner: The matrix of each option, a position in ``names``.
        position: The position of each option among those of its matrix.
        nbytes: The bytes of each option.
        cost: The cost of each option.
    """

    names: list[str]
    owner: Ints
    position: Ints
    nbytes: Ints
    cost: Floats


def as_table(options: Options, fixed: Mapping[str, int]) -> Table:
    """Check all options, and return those that ``fixed`` leaves to choose from.

    Raises:
        TypeError: If bytes or a position are not integers, or a cost is not a number.
        ValueError: If there are no matrices, one has no options, bytes or a cost are out of
            range, or a fixed choice does not exist.
    """
    names = sorted(options)
    _check_names(names, options, fixed)
    flat = [option for name in names for option in options[name]]
    try:
        nbytes = np.fromiter((operator.index(o.nbytes) for o in flat), np.int64, len(flat))
        cost = np.fromiter((o.cost for o in flat), np.float64, len(flat))
    except (TypeError, ValueError, OverflowError):
        _refuse(options)
    if not ((nbytes >= 0) & (nbytes < BYTE_LIMIT) & (cost >= 0) & (cost < math.inf)).all():
        _refuse(options)
    counts = np.array([len(options[name]) for name in names])
    starts = np.cumsum(counts) - counts
    _check_sums(np.maximum.reduceat(nbytes, starts), np.maximum.reduceat(cost, starts))
    owner = np.repeat(np.arange(len(names)), counts)
    position = np.arange(len(flat)) - starts[owner]
    only = np.array([fixed.get(name, -1) for name in names])[owner]
    kept = np.flatnonzero((only < 0) | (only == position))
    return Table(names, owner[kept], position[kept], nbytes[kept], cost[kept])


def _check_names(names: list[str], options: Options, fixed: Mapping[str, int]) -> None:
    if not names:
        raise ValueError("`options` must name at least one matrix, got none.")
    for name in names:
        if not len(options[name]):
            raise ValueError(
                f"`options[{name!r}]` must hold at least one option, got none. Offer the matrix "
                "as it is, or leave it out."
            )
    for name, choice in fixed.items():
        if name not in options:
            raise ValueError(f"`fixed` must name matrices of `options`, got {name!r}.")
        count = len(options[name])
        if not 0 <= operator.index(choice) < count:
            raise ValueError(
                f"`fixed[{name!r}]` must be from 0 to {count - 1} for a matrix with {count} "
                f"options, got {choice}."
            )


def _check_sums(nbytes: Ints, cost: Floats) -> None:
    most, dearest = sum(nbytes.tolist()), sum(cost.tolist())
    if most >= BYTE_LIMIT:
        raise ValueError(
            f"`options` must take less than 2**53 bytes in all, got up to {most}. Count in "
            "larger units."
        )
    if not math.isfinite(max(most, 1) * dearest):
        raise ValueError(
            f"`options` must have costs whose sum times {most} bytes is finite, got a sum of up "
            f"to {dearest:g}. Scale them down."
        )


def _refuse(options: Options) -> NoReturn:
    """Raise for the first option that cannot be used."""
    for name, offered in options.items():
        for i, option in enumerate(offered):
            where = f"options[{name!r}][{i}]"
            _check_entry(f"{where}.nbytes", option.nbytes, operator.index, "an integer", BYTE_LIMIT)
            _check_entry(f"{where}.cost", option.cost, float, "a number", math.inf)
    raise AssertionError("every option can be used")


def _check_entry(
    name: str, value: Any, read: Callable[[Any], float], kind: str, limit: float
) -> None:
    try:
        number = read(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be {kind}, got {value!r}.") from None
    if not 0 <= number < limit:
        bounds = "at least 0 and below 2**53" if limit == BYTE_LIMIT else "at least 0 and finite"
        raise ValueError(f"`{name}` must be {bounds}, got {value!r}.")
