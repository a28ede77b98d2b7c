"""The adapters beside a checkpoint or in a run: their files, and whether one belongs there."""

from pathlib import Path
from typing import Any

from plastic_core.files import read_header, read_json
from plastic_runtime.dialling import MANIFEST

FOLDER = "adapters"
FILE = "adapters.safetensors"
CONFIG = "adapter_config.json"
PEFT_FOLDER = "peft"
PEFT_FILE = "adapter_model.safetensors"
RUN_FILE = "plastic-run.json"
"""The file that says that a folder is a run of ``plastic train``."""
EXTRACT_FILE = "plastic-extract.json"
"""The file that says that a folder is of ``plastic extract``: it has the form of a run."""

SIZES_FILE = "plastic-sizes.json"
"""The prices of the components of a run's adapters, and of what `plastic dial` makes of them."""


def adapter_of(folder: Path) -> Path | None:
    """The adapter that belongs to a checkpoint that this package wrote; None where there is none.

    Raises:
        FormatError: If its manifest, its configuration or its file is damaged.
    """
    adapter, manifest = folder / FOLDER, folder / MANIFEST
    if not (adapter.is_dir() and manifest.is_file()):
        return None
    written: Any = read_json(manifest).get("files")
    if not isinstance(written, dict) or f"{FOLDER}/{FILE}" not in written:
        return None
    read_json(adapter / CONFIG)
    read_header(adapter / FILE)
    return adapter
