"""A full disk names the file that no longer fits."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from plastic_runtime.measure.gram_file import append_grams
from plastic_runtime.measure.spool import read_array, write_array, written

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a device of Linux")


def test_an_array_that_does_not_fit_names_the_file() -> None:
    with pytest.raises(OSError, match=r"No space left .*: '/dev/full'"), written(FULL) as file:
        write_array(file, mx.zeros(1 << 20), "input")


def test_an_archive_that_does_not_fit_names_the_file(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"'.*grams\.npz'"):
            append_grams(tmp_path / "grams.npz", [bytes(5000)], None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = [mx.arange(6.0).reshape(2, 3), mx.array([1.5], mx.bfloat16)]
    with written(tmp_path / "spool") as file:
        for array in arrays:
            write_array(file, array, "input")
    with (tmp_path / "spool").open("rb") as file:
        assert all(mx.array_equal(read_array(file, like=a), a) for a in arrays)
