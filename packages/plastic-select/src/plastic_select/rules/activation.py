"""The energy of the output, for the inputs that a layer sees."""

from __future__ import annotations

from dataclasses import dataclass

from plastic_select.rules.energy import Energy


@dataclass(frozen=True)
class Activation(Energy):
    """The rule ``Energy`` on the output: the spectrum of ``A R^{1/2}``, R the input Gram.

    For one matrix without a fraction that is the budget rank; the Gram then changes the reported
    error and which subspace is best. Several matrices under one budget keep the same fraction of
    their output energies. Heuristic; on two trained models it had less divergence at equal bytes
    than equal ranks, and than giving each component out by its share of output energy per
    parameter.

    Attributes:
        retained_energy: Fraction of the output energy in (0, 1]. None: as much as the budget
            permits.

    Examples:
        >>> import numpy as np
        >>> from plastic_select import choose_rank
        >>> A, R = np.eye(4), np.diag([9.0, 1.0, 0.0, 0.0])  # two inputs are always zero
        >>> choice = choose_rank(A, 0.0, Activation(0.9), gram=R)
        >>> choice.rank, round(choice.retained_energy, 3)
        (1, 0.9)
    """

    name = "activation"
    needs_gram = True
