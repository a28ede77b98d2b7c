"""Rules that read a rank off a spectrum, and the one table of their names.

A rule is a small frozen object with its own numbers: ``Energy(0.9)``, ``Stable(2.0)``. Whoever
takes a strategy takes its name or a rule; ``as_rule`` turns the one into the other. The room
stands on spectra and budgets; everything that chooses ranks may use it.
"""

from __future__ import annotations

from dataclasses import fields

from plastic_select.rules.activation import Activation
from plastic_select.rules.energy import Energy
from plastic_select.rules.rule import CommonNumber, Rule
from plastic_select.rules.stable import Stable
from plastic_select.rules.theorem import Theorem
from plastic_select.rules.threshold import Threshold

RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (Activation, Energy, Stable, Theorem, Threshold)
}  # every rule that has a name, by its name
NEED_GRAM = tuple(name for name, rule in RULES.items() if rule.needs_gram)  # names


def as_rule(strategy: str | Rule, **defaults: float) -> Rule:
    """Return the rule of a name, or the rule that was given.

    Args:
        strategy: A name in ``RULES``, or a rule.
        **defaults: Numbers for the rule of a name, in place of those it starts with. A rule that
            has no such number ignores it, and so does a rule that was given as an object.

    Raises:
        ValueError: If no rule has this name, or a number is out of range.

    Examples:
        >>> as_rule("energy")
        Energy(retained_energy=None)
        >>> as_rule("activation", retained_energy=0.99)
        Activation(retained_energy=0.99)
        >>> as_rule(Stable(2.0))
        Stable(multiple=2.0)
    """
    if isinstance(strategy, Rule):
        return strategy
    if strategy not in RULES:
        names = ", ".join(map(repr, RULES))
        raise ValueError(f"`strategy` must be one of {names}, got {strategy!r}.")
    rule = RULES[strategy]
    own = {field.name for field in fields(rule)}
    return rule(**{name: number for name, number in defaults.items() if name in own})


__all__ = [
    "NEED_GRAM",
    "RULES",
    "Activation",
    "CommonNumber",
    "Energy",
    "Rule",
    "Stable",
    "Theorem",
    "Threshold",
    "as_rule",
]
