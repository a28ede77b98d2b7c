"""The spectra of a checkpoint, measured once however often the run is cut."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from plastic_core import weighted_spectrum
from plastic_core.files import Journal, check_same
from plastic_runtime import Track

from plastic_export.calibration.input_grams import Grams, calibrate
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import FLOATS, module_path, stored_parts
from plastic_export.compression.ranks import Surveyed
from plastic_export.process.in_worker import in_worker


def measured_grams(
    checkpoint: Checkpoint, calibration: Calibration | None, journal: Journal, track: Track
) -> Grams:
    """Return the Grams of a calibration; a run that goes on must find the same again."""
    if calibration is None:
        return {}
    grams = calibrate(checkpoint, calibration, track=track)
    digest = hashlib.sha256()
    for path in sorted(grams):
        digest.update(path.encode() + np.ascontiguousarray(grams[path]).data)
    here = {"Grams": digest.hexdigest()}
    before = [r for r in journal.records if "Grams" in r]
    if before:
        check_same(journal.path, before[0], here, remedy="delete its folder to begin anew")
    else:
        journal.append(here)
    return grams


def read_spectra(
    checkpoint: Checkpoint, names: Sequence[str], grams: Grams, journal: Journal, track: Track
) -> list[Surveyed]:
    """Return every matrix with its spectrum, from the journal of a run that was cut, if any."""
    known = {r["spectrum"]: r["values"] for r in journal.records if "spectrum" in r}
    surveyed = []
    for name in track(list(names), "reading spectra"):
        if name not in known:
            values = _spectrum(checkpoint, name, grams)
            known[name] = base64.b64encode(values.tobytes()).decode()
            journal.append({"spectrum": name, "values": known[name]})
        spectrum = np.frombuffer(base64.b64decode(known[name]), np.float64)
        surveyed.append(_surveyed(checkpoint, name, spectrum))
    return surveyed


def _spectrum(checkpoint: Checkpoint, name: str, grams: Grams) -> NDArray[np.float64]:
    weight = checkpoint.matrix(name)
    try:
        gram = grams.get(module_path(name))
        return in_worker(weighted_spectrum, weight, gram=gram, name=name, shape=weight.shape)
    except ValueError as error:
        error.add_note(f"while reading the spectrum of {name!r}")
        raise


def _surveyed(checkpoint: Checkpoint, name: str, spectrum: NDArray[np.float64]) -> Surveyed:
    stored = stored_parts(name, checkpoint.tensors)
    out, in_ = checkpoint.shape(name)
    return Surveyed(
        name=name,
        shape=(out, in_),
        # The scales' type where the weight is packed; those of the mx and nv modes are no floats.
        dtype=next((t.dtype for t in stored if t.dtype in FLOATS), "BF16"),
        source_bytes=sum(t.nbytes for t in stored),
        spectrum=spectrum,
    )
