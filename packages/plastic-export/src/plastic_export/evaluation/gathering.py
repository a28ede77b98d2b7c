"""What every process measured of its windows, put together in the order of all windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from plastic_runtime.distributed import Team

from plastic_export.evaluation.measures import TokenMeasures


def gathered_measures(
    team: Team, own: Sequence[TokenMeasures | None], lengths: Sequence[int]
) -> list[TokenMeasures]:
    """Return the measures of all windows of every text, those of the first process first.

    Args:
        team: The processes; each calls this with what it has.
        own: What this one measured of each text; None where it had no window of it.
        lengths: How many tokens of a window of each text are scored.

    Returns:
        Every number with the bits that the process had which measured it.

    Examples:
        >>> one = TokenMeasures(np.zeros((2, 3)), np.ones((2, 3), bool))
        >>> gathered_measures(Team(), [one], [3])[0].nll.shape
        (2, 3)
    """
    if team.size == 1:
        return [measures for measures in own if measures is not None]
    return [_gathered(team, *text) for text in zip(own, lengths, strict=True)]


def _gathered(team: Team, own: TokenMeasures | None, length: int) -> TokenMeasures:
    names = [f.name for f in fields(TokenMeasures) if getattr(own, f.name, None) is not None]
    kinds = {name: getattr(own, name).dtype.str for name in names}
    known: dict[str, str] = {}
    for found in team.gathered(kinds):
        known |= found
    whole: dict[str, Any] = {}
    for name, kind in known.items():
        values = getattr(own, name) if own is not None else np.zeros((0, length), kind)
        parts = team.gathered_arrays(values.reshape(-1))
        whole[name] = np.concatenate(parts).reshape(-1, length)
    return TokenMeasures(**whole)
