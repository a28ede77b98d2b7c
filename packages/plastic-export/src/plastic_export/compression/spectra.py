"""The spectra of a checkpoint, measured once however often the run is cut."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from plastic_core import weighted_spectrum
from plastic_core.files import Journal, check_same
from plastic_runtime import Track
from plastic_runtime.dialling import Surveyed, decoded_spectrum, encoded_spectrum

from plastic_export.calibration.input_grams import Grams, calibrate
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import module_path
from plastic_export.process.in_worker import in_worker
from plastic_export.source.source import Source


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
    source: Source, names: Sequence[str], grams: Grams, journal: Journal, track: Track
) -> list[Surveyed]:
    """Return every matrix with its spectrum, from the journal of a run that was cut, if any."""
    known = {r["spectrum"]: r["values"] for r in journal.records if "spectrum" in r}
    surveyed = []
    for name in track(list(names), "reading spectra"):
        if name not in known:
            values = _spectrum(source, name, grams)
            known[name] = encoded_spectrum(values)
            journal.append({"spectrum": name, "values": known[name]})
        surveyed.append(_surveyed(source, name, decoded_spectrum(known[name])))
    return surveyed


def _spectrum(source: Source, name: str, grams: Grams) -> NDArray[np.float64]:
    (weight,) = source.matrices(source.layers[name])
    try:
        gram = grams.get(module_path(name))
        return in_worker(weighted_spectrum, weight, gram=gram, name=name, shape=weight.shape)
    except ValueError as error:
        error.add_note(f"while reading the spectrum of {name!r}")
        raise


def _surveyed(source: Source, name: str, spectrum: NDArray[np.float64]) -> Surveyed:
    layer = source.layers[name]
    return Surveyed(name, layer.shape, layer.dtype, layer.source_bytes, spectrum)
