"""The state of a healing in one file, replaced at once or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import (
    FormatError,
    check_same,
    json_digest,
    parse_object,
    read_arrays,
    sha256_file,
    write_arrays,
)

from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.folder.adapter_files import FILE, adapter_of
from plastic_export.healing.loop import Arrays, HealingOptions, HealState
from plastic_export.model.tokenizer import tokenizer_digests

KEY = "plastic_heal"
VERSION = 1
_DELETE = "delete it"
_PARTS = ("masters", "first", "second", "best")


def heal_identity(
    checkpoint: Checkpoint, original: Checkpoint, calibration: Calibration, options: HealingOptions
) -> dict[str, Any]:
    """Return all that the course of a healing depends on. Reads every byte of both checkpoints."""
    return {
        "model": _digest(checkpoint),
        "reference": _digest(original),
        **{f"file {name}": digest for name, digest in tokenizer_digests(checkpoint).items()},
        **{f"text {name}": value for name, value in calibration.record().items()},
        **asdict(options),
    }


def _digest(checkpoint: Checkpoint) -> str:
    adapter = adapter_of(checkpoint.folder)
    files = checkpoint.weight_files + ([adapter / FILE] if adapter else [])
    return json_digest([checkpoint.config, *([p.name, sha256_file(p)] for p in files)])


class StateFile:
    """A ``Store`` in a safetensors file.

    Args:
        path: The file; its folder exists.
        identity: What the healing depends on, by name: a file of any other is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = {"version": VERSION, **identity}

    def load(self) -> HealState | None:
        """Read the state; None if there is no file.

        Raises:
            FormatError: If the file is damaged, or of another healing: the difference is named.
            OSError: If it cannot be read.
        """
        if not self.path.exists():
            return None
        arrays, record = self._read()
        what, remedy = "a healing that was cut", "run with the same arguments, or delete the file"
        check_same(self.path, record["identity"], self._identity, what=what, remedy=remedy)
        parts = {part: _under(part, arrays) for part in _PARTS}
        measured = [(int(step), float(kl)) for step, kl in record["measured"]]
        return HealState(step=record["step"], measured=measured, **parts)

    def save(self, state: HealState) -> None:
        """Write the state; an earlier one stays until this one is complete and synced."""
        arrays = {
            f"{part}.{name}": array
            for part in _PARTS
            for name, array in sorted(getattr(state, part).items())
        }
        record = {"identity": self._identity, "step": state.step, "measured": state.measured}
        mx.eval(arrays)
        write_arrays(self.path, arrays, {KEY: json.dumps(record)})

    def waiting(self) -> list[str]:
        """Say what the same command goes on with."""
        return [f"{self.path}: the same command goes on with it"] if self.path.exists() else []

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[Arrays, dict[str, Any]]:
        try:
            arrays, metadata = read_arrays(self.path)
        except FormatError as error:
            error.add_note("delete it to heal from the beginning")
            raise
        if KEY not in metadata:
            raise FormatError.about(self.path, "no state of a healing", _DELETE)
        record = parse_object(metadata[KEY].encode(), self.path, _DELETE)
        if missing := {"identity", "step", "measured"} - record.keys():
            reason = f"a state of a healing without its {min(missing)!r}"
            raise FormatError.about(self.path, reason, _DELETE)
        return arrays, record


def _under(part: str, arrays: Arrays) -> Arrays:
    start = f"{part}."
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
