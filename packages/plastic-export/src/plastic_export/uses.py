"""In which ways the model uses a weight, and the Grams of each: what its price is made of."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from plastic_core.linalg import Float64
from plastic_runtime import Gram, LossGrams
from plastic_runtime.intercept import AS_LINEAR

from plastic_export.lossplan import Candidate
from plastic_export.matrices import module_path


def is_measured(m: Candidate, grams: Container[str]) -> bool:
    """Whether there are Grams of a weight."""
    path = module_path(m.name)
    return path in grams or (m.kind == "experts" and f"{path}.0" in grams)


def uses_of(m: Candidate, grams: Mapping[str, LossGrams], expert: int = 0) -> tuple[LossGrams, ...]:
    """The Grams of every use of a weight, each as of a linear layer with that weight.

    An embedding E looks tokens up: as a linear layer with the weight ``E.T`` its inputs are rows of
    the identity and its outputs have width entries, so for E itself the two Grams change places;
    tokens that did not come are given some probability (`smoothed`). Tied weights are the output
    layer too: a second use, whose cost is added. Experts of a stack have their own Grams; one that
    no token reached, those of the others (`shared`).

    Args:
        m: The weight.
        grams: Both Grams by path.
        expert: Which of a stack.

    Raises:
        ValueError: If no token reached any expert.
    """
    path = module_path(m.name)
    if m.kind == "experts":
        if path in grams:
            return (evenly(grams[path], m.matrices),)
        own = grams[f"{path}.{expert}"]
        return (own if own.input.tokens else shared(m, grams),)
    if m.kind == "linear":
        return (grams[path],)
    lookup = grams[path]
    counts = np.rint(lookup.input.matrix[:, 0, 0] * lookup.input.tokens)
    tokens = Gram(smoothed(counts).reshape(-1, 1, 1), lookup.input.tokens)
    head = f"{path}.{AS_LINEAR}"
    own = LossGrams(lookup.output, tokens)
    return (own, grams[head]) if head in grams else (own,)


def probed_expert(m: Candidate, grams: Mapping[str, LossGrams]) -> int:
    """The expert that most tokens reached, to measure a change of; -1 where that is not known."""
    path = module_path(m.name)
    if m.kind != "experts":
        return 0
    if path in grams:
        return -1
    return int(np.argmax([grams[f"{path}.{e}"].input.tokens for e in range(m.matrices)]))


def smoothed(counts: NDArray[np.float64]) -> Float64:
    r"""The probability of every token, of one that never came too.

    With N tokens of T kinds the next one is of a new kind with probability :math:`T / (N + T)`
    (Witten and Bell, *The zero-frequency problem*, IEEE Trans. Information Theory 37(4), 1991,
    method C); that is shared evenly by all kinds that did not come. No kind is free.

    Args:
        counts: How often each came.
    """
    N, T, unseen = counts.sum(), np.count_nonzero(counts), counts == 0
    share = T / max(1, unseen.sum())
    found: Float64 = np.where(unseen, share, counts) / (N + T * unseen.any())
    return found


def shared(m: Candidate, grams: Mapping[str, LossGrams]) -> LossGrams:
    """Grams for an expert that no token reached: those of all others, as if one token had.

    One stack's Grams are read one after the other.
    """
    R: Float64 | None = None
    C: Float64 | None = None
    passed = 0
    for expert in range(m.matrices):
        input, output = grams[f"{module_path(m.name)}.{expert}"]
        if input.tokens:
            passed += input.tokens
            R = input.matrix * input.tokens + (0.0 if R is None else R)
            C = output.matrix + (0.0 if C is None else C)
    if R is None or C is None:
        raise ValueError("no token reached any of its experts; take a longer text, or exclude it")
    return LossGrams(Gram(R / passed, 0), Gram(C / passed, 0))


def evenly(grams: LossGrams, experts: int) -> LossGrams:
    """Grams of one expert where only those of all together were kept."""
    return LossGrams(grams.input, Gram(grams.output.matrix / experts, grams.output.tokens))


def together(uses: tuple[LossGrams, ...]) -> LossGrams:
    r"""One pair of Grams to round under, for all uses of a weight.

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
    """Of a matrix, or of blocks along the diagonal of one."""
    return float(np.einsum("...ii->...", A).sum())


def total(parts: Iterable[Float64]) -> Float64:
    """The sum of matrices of one side, some of which may be diagonals."""
    diagonals = list[Float64]()
    found: Float64 | None = None
    for A in parts:
        if A.ndim == 3 and A.shape[1] == 1:
            diagonals.append(A)
        else:
            found = A if found is None else found + A
    if found is None:
        return sum(diagonals[1:], diagonals[0])
    if diagonals:
        found = found.copy()
        entries = np.einsum("...ii->...i", found)  # a view
        entries += sum(diagonals[1:], diagonals[0]).reshape(entries.shape)
    return found
