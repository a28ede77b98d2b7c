"""The options that commands share: each is declared, and means the same, once.

Every function returns a decorator. Its ``settings`` are those of ``click.option`` and go before
what is the rule here, such as another default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from click.decorators import FC

from plastic_export.calibration.text import Calibration
from plastic_export.compression.nested import SizeRange
from plastic_export.format.table import FORMATS
from plastic_export.plan.budgets import Budget, parse_size

FOLDER = click.Path(path_type=Path)
TEXT = click.Path(path_type=Path, exists=True, dir_okay=False)

IDS = (
    "A .jsonl holds rows as mlx-lm reads them: texts, or chats for the chat template; a .npy or "
    ".json of integers, the ids of tokens."
)
MIXED = "by default the texts of many kinds that come with plastic."

BudgetKind = Literal["bits_per_weight", "size", "keep"]
BUDGETS: dict[BudgetKind, str] = {
    "bits_per_weight": "bits on disk per entry of the matrices, scales and factors counted",
    "size": "bytes of the files written, headers and an adapter counted, such as 3MB",
    "keep": "fraction of the bytes of the matrices",
}
"""What each way of stating a budget means."""


class BudgetType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """Budgets of one kind: a single one, or several with commas between them."""

    name = "budget"

    def __init__(self, kind: BudgetKind, *, several: bool) -> None:
        self.kind, self.several = kind, several

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Budget | list[Budget]:
        """Read the text of the command line."""
        words = [word.strip() for word in value.split(",")] if self.several else [value]
        if not all(words):
            self.fail(f"{value!r} must be values such as 3,3.5,4.5", param, ctx)
        try:
            budgets = [Budget(self.kind, self._number(word)) for word in words]
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return budgets if self.several else budgets[0]

    def _number(self, word: str) -> float:
        if self.kind == "size":
            return parse_size(word)
        try:
            return float(word)
        except ValueError:
            examples = "numbers such as 3,3.5,4.5" if self.several else "a number such as 3.5"
            raise ValueError(f"{word!r} must be {examples}") from None


def budget_option(
    kind: BudgetKind, *, several: bool = False, help: str, **settings: Any
) -> Callable[[FC], FC]:
    """Declare ``--bits-per-weight``, ``--size`` or ``--keep``: a budget, a list of them or None.

    Args:
        kind: Which of them.
        several: Whether there may be more than one, with commas between them.
        help: What is done with it; what it counts follows.
        **settings: See this module.
    """
    flag = f"--{kind.replace('_', '-')}"
    type_ = BudgetType(kind, several=several)
    return click.option(flag, type=type_, help=f"{help}{BUDGETS[kind]}.", **settings)


def range_option(**settings: Any) -> Callable[[FC], FC]:
    """Declare ``--range``, as ``range_``: two sizes in bits per weight, or None."""

    def sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> SizeRange | None:
        if value is None:
            return None
        try:
            low, high = map(float, value.split("-"))
        except ValueError:
            raise click.BadParameter(f"{value!r} must be two sizes such as 3-3.5") from None
        return SizeRange(low, high)

    text = "Sizes that OUT is to be good at once it is dialled, such as 3-3.5 bits per weight."
    return click.option("--range", "range_", callback=sizes, help=text, **settings)


def format_option(names: Sequence[str], default: str, **settings: Any) -> Callable[[FC], FC]:
    """Declare ``--format``, one of ``names``, with what each of them is."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(names),
        default=default,
        show_default=True,
        help=" ".join(f"{name}: {FORMATS[name].about}." for name in names),
        **settings,
    )


def calibration_option(*, help: str, **settings: Any) -> Callable[[FC], FC]:
    """Declare ``--calibration``, a text; without it the shipped ones are taken."""
    return click.option("--calibration", type=TEXT, help=f"{help}; {MIXED} {IDS}", **settings)


def tokenizer_option(**settings: Any) -> Callable[[FC], FC]:
    """Declare ``--tokenizer``, another than that of the checkpoint."""
    text = "Folder or Hub id of the tokenizer to take in place of the checkpoint's own."
    return click.option("--tokenizer", help=text, **settings)


def window_option(**settings: Any) -> Callable[[FC], FC]:
    """Declare ``--window``."""
    text = "Tokens in a window of a text."
    rule: dict[str, Any] = {"default": Calibration.window, "show_default": True, "help": text}
    return click.option("--window", type=click.IntRange(2), **(rule | settings))


def windows_option(*, least: int = 1, **settings: Any) -> Callable[[FC], FC]:
    """Declare ``--windows``."""
    text = "Windows of a text at most, spread evenly over it."
    rule: dict[str, Any] = {"default": Calibration.windows, "show_default": True, "help": text}
    return click.option("--windows", type=click.IntRange(least), **(rule | settings))


def include_option(**settings: Any) -> Callable[[FC], FC]:
    """Declare ``--include``."""
    text = "Pattern of matrices to take; may be repeated."
    return click.option("--include", multiple=True, help=text, **settings)


def exclude_option(**settings: Any) -> Callable[[FC], FC]:
    """Declare ``--exclude``."""
    text = "Pattern of matrices to leave; may be repeated."
    return click.option("--exclude", multiple=True, help=text, **settings)


def force_option(what: str, **settings: Any) -> Callable[[FC], FC]:
    """Declare ``--force``: to replace ``what``."""
    return click.option("--force", is_flag=True, help=f"Replace {what}.", **settings)


def check_option(**settings: Any) -> Callable[[FC], FC]:
    """Declare ``--no-check``, as ``check``."""
    rule: dict[str, Any] = {"flag_value": False, "default": True}
    text = "Do not run what was written before it is published."
    return click.option("--no-check", "check", help=text, **(rule | settings))


def size_option(flag: str, *, help: str, **settings: Any) -> Callable[[FC], FC]:
    """Declare an option that is a size: bytes, or None."""

    def size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        try:
            return None if value is None else int(parse_size(value))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return click.option(flag, callback=size, help=help, **settings)


def memory_option() -> Callable[[FC], FC]:
    """Declare ``--memory``: bytes, or None."""
    text = "Memory that it may take, such as 16GB; what needs more is refused before the work."
    return size_option("--memory", help=text)


def revision_option() -> Callable[[FC], FC]:
    """Declare ``--revision``."""
    return click.option("--revision", help="Commit, tag or branch of a Hub id.")


def json_option() -> Callable[[FC], FC]:
    """Declare ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def one_budget(*given: Budget | None) -> Budget | None:
    """Return the one budget that was given; None where there is none.

    Raises:
        click.UsageError: If there are several.
    """
    budgets = [budget for budget in given if budget is not None]
    if len(budgets) > 1:
        raise click.UsageError("--bits-per-weight, --size and --keep each name a budget; give one")
    return budgets[0] if budgets else None
