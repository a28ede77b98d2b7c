"""The team of processes that the command was started in by ``mlx.launch``."""

from __future__ import annotations

from functools import cache

import click
from plastic_runtime.distributed import Team, join

TOGETHER = ("plan", "compress", "evaluate", "train", "heal")
"""The commands that several processes carry out together."""


@cache
def current_team() -> Team:
    """Return the team of this process, which waits for the others the first time; alone, itself."""
    return join()


def check_team(team: Team, command: str) -> None:
    """Refuse a command that one process carries out, in each of several.

    Raises:
        click.UsageError: If there are several and it is not one of `TOGETHER`.
    """
    if team.size > 1 and command not in TOGETHER:
        *others, last = TOGETHER
        known = f"{', '.join(others)} and {last}"
        raise click.UsageError(
            f"{command} runs in one process; mlx.launch is for {known}, start it without"
        )
