"""Matrices that are alike: of one kind, in neighbouring blocks. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from plastic_export.plan.offers import Candidate

BANDS = 3
"""Into how many runs of neighbouring blocks a kind of matrix is split (heuristic)."""
SAMPLES = 2
"""How many matrices of a group are rounded in full, to see what the others will cost (heuristic)"""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def alike(matrices: Sequence[Candidate]) -> list[list[Candidate]]:
    """Split matrices into groups of which a few stand for all.

    Matrices are of one kind if their names differ in numbers alone, those of the blocks. Each kind
    is split into `BANDS` runs of neighbours. What the quadratic form misses of a change of a weight
    differs between kinds and slowly with the depth (measured: see decision on prices).

    Args:
        matrices: In the order of the checkpoint.

    Returns:
        The groups, each in the order of its numbers, the kinds by name.

    Examples:
        >>> names = [f"layers.{i}.{kind}.weight" for i in range(4) for kind in ("up", "down")]
        >>> made = [Candidate(name, (64, 64), "BF16", 64, 8192) for name in names]
        >>> [[m.name for m in group] for group in alike(made)][0]
        ['layers.0.down.weight', 'layers.1.down.weight']
    """
    kinds = dict[str, list[Candidate]]()
    for m in matrices:
        kinds.setdefault(_NUMBER.sub("*", m.name), []).append(m)
    groups = list[list[Candidate]]()
    for _, members in sorted(kinds.items()):
        members.sort(key=lambda m: [int(number) for number in _NUMBER.findall(m.name)])
        for run in np.array_split(np.arange(len(members)), min(BANDS, len(members))):
            groups.append([members[i] for i in run])
    return groups


def in_a_block(m: Candidate) -> bool:
    """Tell whether a matrix is one of several of its kind, as embeddings and heads are not.

    Examples:
        >>> in_a_block(Candidate("layers.3.up.weight", (64, 64), "BF16", 64, 8192))
        True
    """
    return _NUMBER.search(m.name) is not None


def samples_of(group: Sequence[Candidate]) -> list[Candidate]:
    """Return the members of a group that stand for it: the middle ones of equal parts.

    Examples:
        >>> made = [Candidate(f"layers.{i}.w", (64, 64), "BF16", 64, 8192) for i in range(9)]
        >>> [m.name for m in samples_of(made)]
        ['layers.2.w', 'layers.6.w']
    """
    taken = min(SAMPLES, len(group))
    return [group[(2 * i + 1) * len(group) // (2 * taken)] for i in range(taken)]
