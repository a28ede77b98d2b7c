"""The ways in which a model uses a weight, and the Grams of each, which make its price."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core import GramRoot
from plastic_core.linalg import Float64
from plastic_runtime import Gram, GramFile, LossGrams
from plastic_runtime.measure import AS_LINEAR

from plastic_export.checkpoint.tensors import module_path
from plastic_export.plan.offers import Candidate

DAMPING = 1e-2
"""Added to both Grams, as a fraction of the mean eigenvalue (heuristic)."""
INPUT_SHRINKAGE, OUTPUT_SHRINKAGE = 0.1, 0.2
"""Taken from the entries of a Gram off its diagonal, as a fraction of them (heuristic, measured on
three models: see the decision on shrinkage)."""


class GramRoots(NamedTuple):
    """Both Grams of a weight, damped; each is factored once."""

    inputs: GramRoot
    outputs: GramRoot


def gram_roots(grams: LossGrams) -> GramRoots:
    """Shrink and damp both Grams as prices and rounded weights have them.

    A Gram of zeros has nothing to weigh errors by: the identity stands for it, so that the weight
    is still rounded; what that costs, `is_free` tells.

    Examples:
        >>> from plastic_runtime import GramFile
        >>> with GramFile("plan.grams.npz") as grams:
        ...     R, C = gram_roots(grams["lm_head"])
        >>> R.size, C.size
        (64, 80)
    """
    R, C = (_or_identity(gram.matrix) for gram in grams)
    return GramRoots(
        GramRoot.of(R, damping=DAMPING, shrinkage=INPUT_SHRINKAGE),
        GramRoot.of(C, damping=DAMPING, shrinkage=OUTPUT_SHRINKAGE),
    )


def is_free(grams: LossGrams) -> bool:
    """Tell whether no change of the weight costs anything: nothing enters it, or nothing counts."""
    return any(trace(gram.matrix) == 0 for gram in grams)


def _or_identity(A: Float64) -> Float64:
    """Return the diagonal of an identity in place of zeros, every other Gram as it is."""
    return A if trace(A) else np.ones((prod(A.shape[:-1]), 1, 1))


def is_measured(m: Candidate, grams: Container[str]) -> bool:
    """Tell whether there are Grams of a weight."""
    path = module_path(m.name)
    return path in grams or (m.kind == "experts" and f"{path}.0" in grams)


class Uses:
    """The Grams of every use of a weight, each as of a linear layer with that weight.

    An embedding E looks tokens up: as a linear layer with the weight ``E.T`` its inputs are rows of
    the identity and its outputs have width entries, so for E itself the two Grams change places;
    tokens that did not come are given some probability (`smoothed`). Tied weights are the output
    layer too: a second use, whose cost is added. Experts of a stack have their own Grams; one that
    no token reached is given those of the others, as if one token had reached it.

    Args:
        m: The weight.
        grams: Both Grams by path; one pair is in memory at a time, or two, and those of the others.
    """

    def __init__(self, m: Candidate, grams: Mapping[str, LossGrams]) -> None:
        self._m, self._grams, self._path = m, grams, module_path(m.name)

    def of(self, expert: int = 0) -> tuple[LossGrams, ...]:
        """Return those of the matrix, or of one of a stack.

        Raises:
            ValueError: If no token reached any expert.
        """
        if self._m.kind == "embedding":
            return self._of_embedding()
        if self._m.kind == "linear":
            return (self._grams[self._path],)
        if self._path in self._grams:  # all experts together
            R, C = self._grams[self._path]
            return (LossGrams(R, Gram(C.matrix / self._m.matrices, C.tokens)),)
        own = self._grams[f"{self._path}.{expert}"]
        return (own if own.input.tokens else self._of_others,)

    @cached_property
    def busiest(self) -> int:
        """The expert that most tokens reached, 0 for a single matrix; -1 where it is not known."""
        if self._m.kind != "experts":
            return 0
        return -1 if self._path in self._grams else int(np.argmax(self._counts))

    @cached_property
    def _counts(self) -> list[int]:
        paths = [f"{self._path}.{expert}" for expert in range(self._m.matrices)]
        if isinstance(self._grams, GramFile):
            return [self._grams.count(path) for path in paths]
        return [self._grams[path].input.tokens for path in paths]

    def _of_embedding(self) -> tuple[LossGrams, ...]:
        lookup, head = self._grams[self._path], f"{self._path}.{AS_LINEAR}"
        counts = np.rint(lookup.input.matrix[:, 0, 0] * lookup.input.tokens)
        tokens = Gram(smoothed(counts).reshape(-1, 1, 1), lookup.input.tokens)
        own = LossGrams(lookup.output, tokens)
        return (own, self._grams[head]) if head in self._grams else (own,)

    @cached_property
    def _of_others(self) -> LossGrams:
        passed = sum(self._counts)
        if not passed:
            raise ValueError("no token reached its experts; take a longer text, or exclude it")
        R: Float64 = np.zeros(())
        C: Float64 = np.zeros(())
        for expert, count in enumerate(self._counts):
            if count:
                input, output = self._grams[f"{self._path}.{expert}"]
                R, C = R + input.matrix * count, C + output.matrix
        return LossGrams(Gram(R / passed, 0), Gram(C / passed, 0))


def smoothed(counts: NDArray[np.float64]) -> Float64:
    r"""Return the probability of every token, of one that never came too.

    With N tokens of T kinds the next one is of a new kind with probability :math:`T / (N + T)`
    (Witten and Bell, *The zero-frequency problem*, IEEE Trans. Information Theory 37(4), 1991,
    method C); that is shared evenly by all kinds that did not come. No kind is free.

    Args:
        counts: How often each came.
    """
    N, T, unseen = counts.sum(), np.count_nonzero(counts), counts == 0
    share = T / max(1, unseen.sum())
    probabilities: Float64 = np.where(unseen, share, counts) / (N + T * unseen.any())
    return probabilities


def combined_grams(uses: tuple[LossGrams, ...]) -> LossGrams:
    r"""Return one pair of Grams to round under, for all uses of a weight.

    With the input Grams :math:`R_i` and the output Grams :math:`C_i` these are
    :math:`\sum_i \mathrm{tr}(C_i) R_i` and :math:`\sum_i \mathrm{tr}(R_i) C_i`: exact but for a
    factor where either are multiples of each other, as the frequencies of tokens and their
    probabilities nearly are.
    """
    if len(uses) == 1:
        return uses[0]
    R = total(trace(g.output.matrix) * g.input.matrix for g in uses)
    C = total(trace(g.input.matrix) * g.output.matrix for g in uses)
    tokens = max(g.input.tokens for g in uses)
    return LossGrams(Gram(R, tokens), Gram(C, tokens))


def trace(A: Float64) -> float:
    """Return the trace of a matrix, or of blocks along the diagonal of one."""
    return float(np.einsum("...ii->...", A).sum())


def total(parts: Iterable[Float64]) -> Float64:
    """Return the sum of matrices of one side, some of which may be diagonals."""
    diagonals = list[Float64]()
    dense: Float64 | None = None
    for A in parts:
        if A.ndim == 3 and A.shape[1] == 1:
            diagonals.append(A)
        else:
            dense = A if dense is None else dense + A
    if dense is None:
        return sum(diagonals[1:], diagonals[0])
    if diagonals:
        dense = dense.copy()
        entries = np.einsum("...ii->...i", dense)  # a view
        entries += sum(diagonals[1:], diagonals[0]).reshape(entries.shape)
    return dense
