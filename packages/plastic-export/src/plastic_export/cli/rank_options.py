"""The three ways to say how large an adapter may be, as options of the commands that cut one."""

from __future__ import annotations

import click
from click.decorators import FC

from plastic_export.cli.options import size_option


def rank_goal_options(command: FC) -> FC:
    """Declare ``--max-size``, ``--energy`` and ``--rank``."""
    for option in (
        click.option("--rank", type=click.IntRange(1), help="Rank of every layer at most."),
        click.option(
            "--energy",
            type=click.FloatRange(0, 1, min_open=True),
            help="Fraction of the squared norm over all layers that stays, such as 0.95.",
        ),
        size_option("--max-size", help="Bytes of the file at most, such as 5MB."),
    ):
        command = option(command)
    return command
