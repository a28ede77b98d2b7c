"""The output of ``plastic restore``."""

from __future__ import annotations

from dataclasses import asdict

from plastic_export.compression.restoration import Restored
from plastic_export.reporting.output_check import check_line, ran_line
from plastic_export.reporting.tables import Presented


def present_restored(result: Restored) -> Presented:
    """Say how much of the source is back, and how exactly."""
    exact = f"{result.dest}: {len(result.exact)} tensors bit for bit as in the source"
    if result.proved:
        exact += ", all of them: each has the SHA-256 it had there"
    return Presented(asdict(result), [exact, *_woken(result), *_checked(result)])


def _checked(result: Restored) -> list[str]:
    """Say what ran through it, unless digests prove more."""
    if result.proved:
        return []
    return [ran_line(result.checked) if result.checked else check_line(None)]


def _woken(result: Restored) -> list[str]:
    """Return the worst of what is back in all its components, but not in all its bits."""
    if not result.bounds:
        return []
    name, error = max(result.bounds.items(), key=lambda item: item[1])
    return [
        f"{len(result.bounds)} matrices with every component awake: relative error at most "
        f"{error:.2e} ({name})"
    ]
