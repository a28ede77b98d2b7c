"""What the library says of its arguments, in the words of the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import click

from plastic_export.folder.shards import WIDER_TYPE
from plastic_export.plan.budgets import UNITS, parse_size

ARGUMENTS = {
    "max_bytes": "max_size",
    "length": "window",
    "limit": "windows",
    "group_size": "group_sizes",
    "gram": "calibration",
    "text": "calibration",
    "sizes": "range_",
    "source": "src",
    "type": "type_",
}
"""Arguments of the library whose parameter of the command has another name."""

CHOOSE_WIDER = re.compile(r"Choose a wider `dtype`[^.]*\.")  # for which there is no option
_QUOTED = re.compile(r"`(\w+)`")
_BYTES = re.compile(r"(at least (?:the )?)?\b([\d,]+) bytes")
_GIGABYTES = re.compile(r"([\d.]+) GB")
_SIZE = re.compile(r"([\d.]+)\s*([A-Za-z]*)")


def in_words_of(command: click.Command, words: Sequence[str], message: str) -> str:
    """Return a message of the library as one of this command.

    Arguments become the options, or the places of the command line, that set them. Bytes become
    the unit in which the size that the message is about was typed.

    Args:
        command: The command that was given.
        words: The words of the command line.
        message: What the library said, its arguments within backticks.

    Examples:
        >>> option = click.Option(["--max-size"])
        >>> command = click.Command("train", params=[option])
        >>> said = "`max_bytes` must be at least 1234567 bytes, got 1000000 bytes"
        >>> in_words_of(command, ["train", "--max-size", "1MB"], said)
        '--max-size must be at least 1.2346MB (1,234,567 bytes), got 1MB'
    """
    names = typed_names(command)
    wider = f"{WIDER_TYPE[0].upper()}{WIDER_TYPE[1:]}."
    said = CHOOSE_WIDER.sub(wider, message)
    said = _QUOTED.sub(lambda match: names.get(match[1], match[0]), said)
    unit = _unit(said, words)
    if unit is None:
        return said
    if unit.upper() != "GB":
        said = _GIGABYTES.sub(lambda match: _rescaled(float(match[1]), unit), said)
    return _BYTES.sub(lambda match: _in_unit(match, unit), said)


def typed_names(command: click.Command) -> dict[str, str]:
    """Return what is typed for every argument of the library that the command sets.

    Examples:
        >>> typed_names(click.Command("heal", params=[click.Option(["--out", "new"])]))["new"]
        '--out'
    """
    typed = {str(p.name): _typed(p) for p in command.params}
    spelt = {
        option.lstrip("-").replace("-", "_"): _typed(p) for p in command.params for option in p.opts
    }
    renamed = {name: typed[own] for name, own in ARGUMENTS.items() if own in typed}
    return spelt | renamed | typed


def _typed(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name.rstrip(".").upper()
    return max(parameter.opts, key=len)


def _unit(said: str, words: Sequence[str]) -> str | None:
    """Return the unit of the size that a message is about, if one was typed with its unit."""
    sizes: dict[str, str] = {}
    pairs = [*pairwise(words), *(word.split("=", 1) for word in words)]
    for option, *value in pairs:
        match = _SIZE.fullmatch(value[0].split(",")[0].strip()) if value else None
        if option.startswith("--") and match and match[2].upper() in UNITS:
            sizes[option] = match[2]
    named = [option for option in re.findall(r"--[\w-]+", said) if option in sizes]
    return sizes[named[0]] or None if named else None


def _in_unit(match: re.Match[str], unit: str) -> str:
    """Write bytes in a unit, and as a number too where that had to be rounded."""
    least, nbytes = match[1] or "", int(match[2].replace(",", ""))
    size = nbytes / UNITS[unit.upper()]
    rounded = (math.ceil if least else math.floor)(size * 1e4) / 1e4
    exactly = "" if parse_size(f"{rounded:.4f}{unit}") == nbytes else f" ({nbytes:,} bytes)"
    number = f"{rounded:.4f}".rstrip("0").rstrip(".")
    return f"{least}{number}{unit}{exactly}"


def _rescaled(gigabytes: float, unit: str) -> str:
    """Write in a unit what is known to a tenth of a GB."""
    return f"{gigabytes * UNITS['GB'] / UNITS[unit.upper()]:.4g}{unit}"
