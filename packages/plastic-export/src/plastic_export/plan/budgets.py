"""Budgets as users state them, in bytes of the matrices that are planned. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
UNITS["GIB"] = 2**30


class Totals(NamedTuple):
    """The totals that budgets are measured against.

    Attributes:
        weights: Entries of all the matrices that are planned.
        source_bytes: Their bytes in the source.
        left_bytes: Bytes of all else that a budget for the whole checkpoint counts: the other
            tensors of the source, which stay as they are, and what is the same in all headers.
    """

    weights: int
    source_bytes: int
    left_bytes: int


class Budget(NamedTuple):
    """One budget.

    Attributes:
        kind: ``"bits_per_weight"`` of the matrices that are planned, scales and factors counted;
            ``"size"`` of the model files, headers and an adapter counted, in bytes; ``"keep"``, the
            fraction of the matrices' bytes in the source.
        value: The number.

    Examples:
        >>> matrices = read_plan("plan.json").matrices
        >>> (plan,) = plan_bits(matrices, [Budget("keep", 0.4)])
        >>> print(plan.asked, plan.nbytes <= 0.4 * sum(m.matrix.source_bytes for m in matrices))
        keep 0.4 True
    """

    kind: Literal["bits_per_weight", "size", "keep"]
    value: float

    @property
    def counts_headers(self) -> bool:
        """Whether it is for whole files, whose headers count."""
        return self.kind == "size"

    def nbytes(self, totals: Totals) -> int:
        """Return the bytes that the matrices may take."""
        if self.kind == "size":
            return math.floor(self.value) - totals.left_bytes
        per_unit = totals.weights / 8 if self.kind == "bits_per_weight" else totals.source_bytes
        return math.floor(self.value * per_unit)

    def enough(self, nbytes: int, totals: Totals) -> str:
        """Return the least value, as it is written, that allows the matrices ``nbytes``."""
        if self.kind == "size":
            return f"{nbytes + totals.left_bytes:,} bytes"
        if self.kind == "keep":
            return f"{math.ceil(1e4 * nbytes / totals.source_bytes) / 1e4:g}"
        return f"{math.ceil(8e4 * nbytes / totals.weights) / 1e4:g}"

    def __str__(self) -> str:
        """Write it as it is asked for again: ``3.5``, ``3000000 bytes``, ``keep 0.4``."""
        if self.kind == "size":
            return f"{self.value:.0f} bytes"
        return f"{'keep ' if self.kind == 'keep' else ''}{self.value:g}"


def parse_size(text: str) -> float:
    """Read ``"3MB"``, ``"2.5 GiB"`` or ``"3000000"`` as bytes.

    Raises:
        ValueError: If it is none of these.

    Examples:
        >>> parse_size("2.5 MiB")
        2621440.0
        >>> Budget("size", parse_size("3MB")).kind
        'size'
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"a size must be a number of bytes, KB, MB, GB, KiB, MiB or GiB: {text!r}")
    return float(match[1]) * UNITS[match[2].upper()]


def stated_budgets(budgets: Sequence[float | Budget]) -> list[Budget]:
    """Return budgets of which plain numbers are bits per weight.

    Examples:
        >>> stated_budgets([3.5])[0].kind
        'bits_per_weight'
    """
    return [b if isinstance(b, Budget) else Budget("bits_per_weight", b) for b in budgets]


def check_budget(budget: Budget, least: int, totals: Totals) -> None:
    """Raise unless the matrices fit at their smallest, and do not fit as they are.

    Args:
        budget: The budget.
        least: Bytes of the matrices, each in the smallest way that it offers.
        totals: What the budget is measured against.

    Raises:
        ValueError: Naming the least budget, or the one from which nothing needs to be done.
    """
    nbytes = budget.nbytes(totals) if math.isfinite(budget.value) else budget.value
    if not nbytes >= least:
        raise ValueError(
            f"`{budget.kind}` must be at least {budget.enough(least, totals)}, with every matrix "
            f"in the smallest way that it offers, got {budget}"
        )
    if nbytes > totals.source_bytes:
        raise ValueError(
            f"`{budget.kind}` must be at most {budget.enough(totals.source_bytes, totals)}, got "
            f"{budget}: the matrices fit dense, as they are in the source"
        )
