"""The options of a matrix: sizes in bytes, each with its price in loss."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plastic_select.check import as_spectrum


class Option(NamedTuple):
    """One way of storing a matrix.

    Attributes:
        nbytes: Its exact size in bytes, an integer of at least 0.
        cost: What it is predicted to cost, at least 0, in any unit that adds up over matrices:
            nats per token, say.
        label: Whatever the caller needs to act on it: a rank, or bits and a rank. It is not
            looked at.

    Examples:
        >>> Option(1024, 0.002, "4 bits")
        Option(nbytes=1024, cost=0.002, label='4 bits')
    """

    nbytes: int
    cost: float
    label: Any = None


def rank_options(
    singular_values: ArrayLike,
    *,
    bytes_per_component: int,
    base_bytes: int = 0,
    floor: int = 0,
    ceiling: int | None = None,
    multiple_of: int = 1,
    dense: int | None = None,
) -> list[Option]:
    r"""Return what one matrix offers: factors of every rank, and perhaps staying dense.

    Rank r takes ``base_bytes + r * bytes_per_component`` bytes and costs what it drops,

    .. math::

        \tfrac{1}{2} \sum_{i > r} \sigma_i^2 ,

    which is in nats per token for the spectrum of :math:`C^{1/2} W R^{1/2}`, with the Grams R of
    the inputs and C of the output gradients; in half the squared Frobenius error for that of W.
    Ranks from the break-even on, where factors take no less than ``dense`` bytes, need no
    ceiling: ``allocate`` has no use for them.

    Args:
        singular_values: Non-negative and non-increasing: all those of the matrix, or, beside a
            quantised backbone, of what the backbone leaves over.
        bytes_per_component: Bytes of one component, at least 1: for a matrix of shape (m, n) and
            entries of b bits, ``(m + n) * b // 8``, and what its value and scales take.
        base_bytes: Bytes at rank 0: of a backbone, of headers.
        floor: The least rank.
        ceiling: The greatest rank; all of them if None.
        multiple_of: Only ranks that are multiples of it.
        dense: Bytes of the matrix as it is. Given, that is the last option, at no cost.

    Returns:
        Options by increasing rank, which is their label, then the dense one, labelled
        ``"dense"``. Costs do not increase. Combine several backbones by ``+``, with
        ``option._replace(label=...)`` to tell them apart.

    Raises:
        TypeError: If the values are not real numbers, or bytes not integers.
        ValueError: If they are not a spectrum or their squares overflow, an argument is out of
            range, or there is no such rank and ``dense`` is not given.

    Examples:
        >>> for option in rank_options([3.0, 1.0], bytes_per_component=10, floor=1, dense=16):
        ...     print(option.nbytes, option.cost, option.label)
        10 0.5 1
        20 0.0 2
        16 0.0 dense

    References:
        Martens and Grosse, *Optimizing neural networks with Kronecker-factored approximate
        curvature*, arXiv 1503.05671 (the quadratic model behind nats per token).
    """
    s = as_spectrum(singular_values)
    _check_least("bytes_per_component", bytes_per_component, 1)
    _check_least("base_bytes", base_bytes, 0)
    _check_least("multiple_of", multiple_of, 1)
    _check_least("dense", dense or 0, 0)
    most = s.size if ceiling is None else ceiling
    if not 0 <= floor <= most <= s.size:
        raise ValueError(
            f"`floor` and `ceiling` must satisfy 0 <= floor <= ceiling <= {s.size}, the number of "
            f"singular values, got {floor} and {ceiling}."
        )
    ranks = range(-(-floor // multiple_of) * multiple_of, most + 1, multiple_of)
    if not ranks and dense is None:
        raise ValueError(
            f"`multiple_of` = {multiple_of} has no multiple from {floor} to {most}. Lower it, or "
            "give `dense`."
        )
    costs = _dropped(s)
    options = [Option(base_bytes + r * bytes_per_component, float(costs[r]), r) for r in ranks]
    return options if dense is None else [*options, Option(dense, 0.0, "dense")]


def _dropped(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the energy that ranks 0, 1, ... of a spectrum drop, one value more than it."""
    with np.errstate(over="ignore"):
        # Summed from the small end, so that the last ones are exact.
        tails = np.concatenate([np.cumsum(np.square(s[::-1]))[::-1] / 2, [0.0]])
    if not np.isfinite(tails[0]):
        raise ValueError("`singular_values` are too large: their squares overflow. Scale them.")
    return tails


def _check_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")
