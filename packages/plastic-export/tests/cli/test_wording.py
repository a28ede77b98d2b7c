"""Errors speak of what was typed: options for arguments, and sizes in the unit that was typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import click
import pytest
from plastic_export import (
    Calibration,
    HealingOptions,
    TrainingOptions,
    compare,
    compress,
    evaluate_tasks,
    execute_plan,
    heal,
    plan_checkpoint,
    train,
)
from plastic_export.cli.command import plastic_command
from plastic_export.cli.wording import in_words_of, typed_names

COMMANDS = plastic_command.commands
ABOUT = {
    "compress": (compress, execute_plan, Calibration),
    "evaluate": (compare, evaluate_tasks),
    "heal": (heal, HealingOptions, Calibration),
    "plan": (plan_checkpoint, Calibration),
    "train": (train, TrainingOptions),
}
"""What the library does for a command, and its dataclasses of options."""
NOT_TYPED = {
    "track",
    "team",
    "say",
    "listener",
    "training",
    "options",
    "choices",
    "plasticity",
    "budget",
    "budgets",
}
"""Arguments that no single option of the command line sets."""


def arguments(of: Callable[..., Any]) -> set[str]:
    if is_dataclass(of):
        return {field.name for field in fields(of)}
    return set(inspect.signature(of).parameters)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_a_command_is_called_by_what_is_typed(name: str) -> None:
    command = COMMANDS[name]
    for parameter in command.params:
        said = in_words_of(command, [name], f"`{parameter.name}` must be another")
        typed = said.removesuffix(" must be another")
        assert "`" not in said, parameter.name
        option = isinstance(parameter, click.Option)
        assert typed in parameter.opts if option else typed.isupper(), said


@pytest.mark.parametrize("name", ABOUT)
def test_every_argument_of_the_library_has_an_option(name: str) -> None:
    names = typed_names(COMMANDS[name])
    asked = {argument for of in ABOUT[name] for argument in arguments(of)}
    assert asked - NOT_TYPED - names.keys() == set()


def said(message: str, *words: str) -> str:
    return in_words_of(COMMANDS[words[0]], words, message)


@pytest.mark.parametrize(
    ("words", "message", "expected"),
    [
        (
            ("train", "SRC", "--max-size", "1MB"),
            "`max_bytes` must be at least 1221960 bytes, got 1000000 bytes; raise it",
            "--max-size must be at least 1.222MB (1,221,960 bytes), got 1MB; raise it",
        ),
        (
            ("train", "SRC", "--max-size=0.5MiB"),
            "`max_bytes` must be at least 1048576 bytes, got 524288 bytes",
            "--max-size must be at least 1MiB, got 0.5MiB",
        ),
        (
            ("train", "SRC", "--max-size", "9MB"),
            "`max_bytes` must be below the 1234567 bytes that it begins with, got 9000000 bytes",
            "--max-size must be below the 1.2345MB (1,234,567 bytes) that it begins with, got 9MB",
        ),
        (
            ("train", "SRC", "--max-size", "1000000"),
            "`max_bytes` must be at least 1221960 bytes, got 1000000 bytes",
            "--max-size must be at least 1221960 bytes, got 1000000 bytes",
        ),
        (
            ("plan", "SRC", "--size", "3kB,4kB", "--memory", "1GB"),
            "`size` must be at least 12,345 bytes, got 3000 bytes",
            "--size must be at least 12.345kB, got 3kB",
        ),
        (
            ("plan", "SRC", "--memory", "500MB"),
            "`memory`: about 3.0 GB are needed, and 0.5 GB may be used",
            "--memory: about 3000MB are needed, and 500MB may be used",
        ),
        (
            ("plan", "SRC"),
            "`bits_per_weight` must be at least 2.5, got 2; `other` stays",
            "--bits-per-weight must be at least 2.5, got 2; `other` stays",
        ),
        (("evaluate", "SRC"), "`limit` must be at least 1", "--windows must be at least 1"),
        (("evaluate", "SRC"), "`items` must be at least 1", "--limit must be at least 1"),
    ],
)
def test_a_size_has_the_unit_that_was_typed(
    words: tuple[str, ...], message: str, expected: str
) -> None:
    assert said(message, *words) == expected
