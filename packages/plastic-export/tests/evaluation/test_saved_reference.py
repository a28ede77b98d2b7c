"""Log-probabilities in a file: what is lost, what is refused, what is left behind."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from plastic_core.files import FormatError, export_safetensors
from plastic_export.evaluation.saved_reference import (
    SavedReference,
    decode_log_probabilities,
    encode_log_probabilities,
    reference_bytes,
    write_reference,
)
from plastic_export.model.divergence import log_softmax_in

STEPS = 65534
SETTINGS = {"window length": 4, "text": ["a"]}
LOGITS = arrays(np.float32, (3, 7), elements=st.floats(-80, 80, width=32))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = log_softmax_in(np, logits)
    return found


def decoded(log_q: NDArray[np.float32]) -> NDArray[np.float32]:
    return decode_log_probabilities(*encode_log_probabilities(log_q))


@given(LOGITS)
def test_the_error_is_half_a_step_of_the_square_root(logits: NDArray[np.float32]) -> None:
    log_q = log_probabilities(logits).astype(np.float64)
    below = log_q.max(axis=-1, keepdims=True) - log_q
    depths = below.max(axis=-1, keepdims=True)
    half = np.sqrt(depths) / STEPS / 2
    bound = 2 * half * np.sqrt(below) + half**2 + 16 * np.finfo(np.float32).eps * (1 + depths)
    # all are shifted as one where they are normalised, by no more than the largest error
    shift = bound.max(axis=-1, keepdims=True)
    assert (np.abs(decoded(log_q.astype(np.float32)) - log_q) <= bound + shift).all()


@given(LOGITS)
def test_decoded_ones_are_probabilities_in_the_same_order(logits: NDArray[np.float32]) -> None:
    log_q = log_probabilities(logits)
    found = decoded(log_q)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-5)
    order = np.argsort(log_q, axis=-1)
    assert (np.diff(np.take_along_axis(found, order, -1), axis=-1) >= 0).all()


def test_what_is_impossible_and_what_is_equal_stay_so() -> None:
    equal = math.log(1 / 3)
    log_q = np.array([[math.log(0.5), -math.inf, math.log(0.5)], 3 * [equal]], np.float32)
    found = decoded(log_q)
    assert found[0, 1] == -math.inf
    assert found[0, 0] == found[0, 2] == np.float32(math.log(0.5))
    assert len({*found[1]}) == 1


@pytest.mark.parametrize("distance", [0.1, 0.03])
def test_the_divergence_is_right_to_a_ten_thousandth(distance: float) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((64, 4096))
    log_q = log_softmax_in(np, logits)
    log_p = log_softmax_in(np, logits + distance * rng.standard_normal(logits.shape))
    q = decoded(log_q.astype(np.float32)).astype(np.float64)
    kl = (np.exp(log_q) * (log_q - log_p)).sum(axis=-1).mean()
    found = (np.exp(q) * (q - log_p)).sum(axis=-1).mean()
    assert found == pytest.approx(kl, rel=1e-4)


def written(file: Path, *windows: NDArray[np.float32]) -> Path:
    write_reference(file, [w.shape for w in windows], [[*windows]], SETTINGS)
    return file


def test_windows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    windows = [log_probabilities(rng.standard_normal((3, 5)).astype("f4")) for _ in range(4)]
    file = written(tmp_path / "ref", *windows)
    with SavedReference(file) as saved:
        saved.check(SETTINGS, windows=4)
        read = saved.read(1, 2, 5)
        for found, window in zip(read, windows[1:3], strict=True):
            np.testing.assert_array_equal(np.asarray(found), decoded(window))
        (few,) = saved.read(0, 1, 3)
    np.testing.assert_allclose(np.exp(np.asarray(few)).sum(axis=-1), 1, rtol=1e-6)
    assert 0 < file.stat().st_size - reference_bytes([(3, 5)] * 4) < 2000


def test_nothing_is_left_of_what_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got NaN"):
        written(tmp_path / "ref", np.full((3, 5), np.nan, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    export_safetensors(tmp_path / "a.safetensors", {"codes.0": np.zeros((2, 2), np.uint16)})
    with pytest.raises(FormatError, match="no log-probabilities of a reference"):
        SavedReference(tmp_path / "a.safetensors")


def test_tensors_that_are_not_those_of_windows_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "ref", np.zeros((3, 5), np.float32))
    file.write_bytes(file.read_bytes().replace(b"depths.0", b"widths.0"))
    with pytest.raises(FormatError, match="damaged"):
        SavedReference(file)


def test_missing_windows_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "ref", np.zeros((3, 5), np.float32))
    with SavedReference(file) as saved, pytest.raises(FormatError, match="windows are missing"):
        saved.check(SETTINGS, windows=2)


def test_another_setting_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "ref", np.zeros((3, 5), np.float32))
    with SavedReference(file) as saved:
        with pytest.raises(FormatError, match="another window length: 4, not 8"):
            saved.check({**SETTINGS, "window length": 8}, windows=1)
        with pytest.raises(FormatError, match="another text;"):
            saved.check({**SETTINGS, "text": ["b"]}, windows=1)
        with pytest.raises(FormatError, match="another window length: 4, not None"):
            saved.check({"text": ["a"]}, windows=1)
