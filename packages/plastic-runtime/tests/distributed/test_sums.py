"""Sums on their way: every lower triangle arrives with its bits, in messages of bounded size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_runtime.distributed import RunningSum, Team, hand_on, sums, taken_over


class Pipe(Team):
    """A process that receives what it sent."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays: list[NDArray[Any]] = []

    def send_array(self, to: int, values: NDArray[Any]) -> None:
        self.arrays.append(values.view(np.uint8).copy())
        self.sent += values.nbytes

    def received_array(self, of: int, count: int, dtype: Any) -> NDArray[Any]:
        found = self.arrays.pop(0).view(dtype)
        assert found.size == count
        return found


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (70, 70), (6, 4, 4), (9, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lower_triangles_arrive_as_they_were(
    shape: tuple[int, ...], dtype: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "ENTRIES", 100)
    total = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    pipe = Pipe()
    hand_on(pipe, 0, {"input.up": RunningSum(total, 7)}, extra=3)
    assert max(array.size for array in pipe.arrays[2:]) <= max(100, shape[-1]) * total.itemsize
    lower = np.tril_indices(shape[-1])
    payload = total[..., lower[0], lower[1]].nbytes
    assert payload <= pipe.sent <= payload + 200
    (name, found), extra = *taken_over(pipe, 0)[0].items(), 3
    assert (name, found.terms, extra) == ("input.up", 7, 3)
    assert np.array_equal(np.tril(found.total), np.tril(total))


def test_what_goes_with_the_sums_arrives() -> None:
    pipe = Pipe()
    hand_on(pipe, 0, {}, extra=512)
    assert taken_over(pipe, 0) == ({}, 512)
