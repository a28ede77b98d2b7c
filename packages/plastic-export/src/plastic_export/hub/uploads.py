"""What of a folder is uploaded: what this package wrote, without what sleeps."""

from __future__ import annotations

from pathlib import Path

from plastic_core.files import FormatError, files_under
from plastic_runtime.dialling import MANIFEST, SLEEP, read_manifest

from plastic_export.exact.exactness import EXACT
from plastic_export.folder.adapter_files import FOLDER as ADAPTERS
from plastic_export.folder.adapter_files import PEFT_FOLDER, RUN_FILE, SIZES_FILE
from plastic_export.folder.card_file import CARD
from plastic_export.folder.run_files import BEST, DIAL, EVENTS, GENERATIONS, LOSSES

_OF_RUNS = (RUN_FILE, EVENTS, LOSSES, DIAL, SIZES_FILE)


def uploads(folder: Path, *, with_sleep: bool) -> dict[str, Path]:
    """Return the files of an output or a run that are uploaded, by their place.

    Args:
        folder: What ``compress``, ``heal`` or ``train`` wrote.
        with_sleep: Also take what ``restore`` needs, or the saved states of a run.

    Raises:
        FormatError: If it is neither, is not finished, or its manifest is damaged.
    """
    places = _of_run(folder) if (folder / RUN_FILE).is_file() else _of_output(folder)
    if (folder / CARD).is_file():
        places.append(CARD)
    if not with_sleep:
        places = [place for place in places if not _sleeps(place)]
    return {place: folder / place for place in sorted(places)}


def left_out(folder: Path, taken: dict[str, Path]) -> list[str]:
    """Return the other files of the folder, by their place; hidden ones are not counted."""
    places = (path.relative_to(folder).as_posix() for path in files_under(folder))
    return sorted(place for place in places if place not in taken and not place.startswith("."))


def _of_output(folder: Path) -> list[str]:
    if not (folder / MANIFEST).is_file():
        reason = f"it holds neither {MANIFEST} nor {RUN_FILE}"
        remedy = "name a folder that `plastic compress`, `heal` or `train` wrote"
        raise FormatError.about(folder, reason, remedy)
    return [*read_manifest(folder).files, MANIFEST]


def _of_run(folder: Path) -> list[str]:
    found = [path.relative_to(folder).as_posix() for path in files_under(folder)]
    if not any(place.startswith(f"{ADAPTERS}/") for place in found):
        reason = "the run is not finished: it has no adapter yet"
        raise FormatError.about(folder, reason, "start the same command again, to go on with it")
    folders = (f"{ADAPTERS}/", f"{PEFT_FOLDER}/", f"{GENERATIONS}/", f"{BEST}/")
    visible = (place for place in found if not Path(place).name.startswith("."))
    return [place for place in visible if place in _OF_RUNS or place.startswith(folders)]


def _sleeps(place: str) -> bool:
    return place in (SLEEP, EXACT) or place.startswith((f"{GENERATIONS}/", f"{BEST}/"))
