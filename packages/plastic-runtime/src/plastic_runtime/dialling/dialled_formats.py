"""The matrices of a folder whose components can be left out, or why there are none. Pure."""

from __future__ import annotations

from pathlib import Path

from plastic_core.files import FormatError

from plastic_runtime.dialling.manifest import Manifest, MatrixRecord

DIALLED_FORMATS = ("corrected", "factored")
"""The formats whose components can be left out, in the order of their worth."""


def component_records(
    folder: Path, manifest: Manifest, *, asleep: bool = True
) -> list[MatrixRecord]:
    """Return the matrices whose components can be left out.

    Args:
        folder: The folder, for messages.
        manifest: What it says of itself.
        asleep: Whether components that sleep are at hand.

    Raises:
        FormatError: If its format has no components, or none of its matrices has any.

    Examples:
        >>> manifest = read_manifest(Path("FACTORED"))
        >>> component_records(Path("FACTORED"), manifest)[0].components
        8
    """
    if manifest.format not in DIALLED_FORMATS:
        reason = f"its format {manifest.format!r} has no components that can be left out"
        remedy = f"the formats {' and '.join(DIALLED_FORMATS)} have: compress into one"
        raise FormatError.about(folder, reason, remedy)
    records = manifest.matrices.values()
    found = [r for r in records if (r.components if asleep else r.rank)]
    if not found:
        reason = "none of its matrices has components"
        raise FormatError.about(folder, reason, "compress to a size at which the plan chose ranks")
    return found
