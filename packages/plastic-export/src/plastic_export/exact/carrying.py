"""The file ``exact.safetensors`` of a folder, beside model files whose tensors have other names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from plastic_core.files import SafetensorsWriter, TensorSpec, open_safetensors

from plastic_export.exact.exactness import EXACT, KEY


def carry_exact(folder: Path, target: Path, moved: Mapping[str, str]) -> dict[str, str]:
    """Write the ``exact.safetensors`` of one folder into another.

    The words kept are differences from the sum of all components, awake or asleep, so they are
    right in every folder that has all of them; only the names of tensors may be others.

    Args:
        folder: The folder that has the file.
        target: The folder to write it to, with the same components.
        moved: The tensors of the model files that have another name there, and that name.

    Returns:
        SHA-256 of every tensor written, by name.

    Raises:
        FormatError: If the file is damaged.

    Cost:
        Reads and writes the file once, a tensor at a time.
    """
    path = folder / EXACT
    with open_safetensors(path, home=folder) as file:
        content = json.loads(file.header.metadata[KEY])
        for kept in content["tensors"].values():
            kept["copied"] = moved.get(kept["copied"], kept["copied"])
        infos, digests = file.header.tensors, dict[str, str]()
        specs = [TensorSpec(i.name, i.dtype, i.shape) for i in infos.values()]
        with SafetensorsWriter(target / EXACT, specs, {KEY: json.dumps(content)}) as writer:
            for name, info in infos.items():
                data = file.read(info)
                digests[name] = hashlib.sha256(data.data).hexdigest()
                writer.write(name, data)
    return digests
