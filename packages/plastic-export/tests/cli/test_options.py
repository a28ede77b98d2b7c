"""Budgets as they are read from the command line, and what the commands share."""

from __future__ import annotations

import click
import pytest
from plastic_export import Budget, Calibration
from plastic_export.cli.command import plastic_command
from plastic_export.cli.options import BUDGETS, BudgetKind, BudgetType


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("size", "2.5 MiB", 2.5 * 2**20), ("keep", "0.25", 0.25), ("bits_per_weight", "3.5", 3.5)],
)
def test_one_budget_is_read_in_its_unit(kind: BudgetKind, text: str, value: float) -> None:
    assert BudgetType(kind, several=False).convert(text, None, None) == Budget(kind, value)


def test_several_budgets_have_commas_between_them() -> None:
    read = BudgetType("size", several=True).convert("3MB, 4000", None, None)
    assert read == [Budget("size", 3e6), Budget("size", 4000.0)]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("size", "3 stones", "a size must be a number of bytes"),
        ("keep", "much", "'much' must be numbers such as"),
        ("bits_per_weight", "3,,4", "'3,,4' must be values such as"),
    ],
)
def test_what_is_no_budget_is_refused(kind: BudgetKind, text: str, said: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        BudgetType(kind, several=True).convert(text, None, None)
    assert said in caught.value.message


@pytest.mark.parametrize("command", ["plan", "compress"])
def test_a_budget_counts_the_same_in_every_command(command: str) -> None:
    options = {p.name: p for p in plastic_command.commands[command].params}
    for kind, meaning in BUDGETS.items():
        option = options[kind]
        assert isinstance(option, click.Option)
        assert str(option.help).endswith(f"{meaning}.")


@pytest.mark.parametrize(
    ("command", "windows"),
    [("plan", Calibration.windows), ("compress", Calibration.windows), ("heal", 512)],
)
def test_a_calibration_reads_the_same_text_by_default(command: str, windows: int) -> None:
    defaults = {p.name: p.default for p in plastic_command.commands[command].params}
    assert (defaults["window"], defaults["windows"]) == (256, windows)
