"""Components as rows of bytes: every way of storing them is taken apart and put together again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from plastic_export.dialling.rows import as_rows, from_rows
from plastic_export.format.parts import Part

PARTS = st.one_of(
    st.builds(
        lambda rank, side, dtype, turned: Part("p", (rank, side), dtype, transposed=turned),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from(["BF16", "F16", "F32"]),
        st.booleans(),
    ),
    st.builds(
        lambda rank, groups, bits: Part("p.weight", (rank, 32 * groups), "BF16", bits, 32),
        st.integers(1, 9),
        st.integers(1, 3),
        st.sampled_from([2, 3, 4, 5, 6, 8]),
    ),
)


@given(PARTS, st.integers(0, 2**32 - 1))
def test_bytes_come_back(part: Part, seed: int) -> None:
    for place, spec in enumerate(part.specs):
        data = np.random.default_rng(seed).integers(0, 256, spec.nbytes, np.uint8)
        rows = as_rows(part, place, data)
        assert len(rows) == part.shape[0]
        assert np.array_equal(from_rows(part, rows), data)


def test_a_row_of_a_factor_that_lies_in_columns_is_a_component() -> None:
    u = np.arange(12, dtype=np.float32).reshape(4, 3)  # 4 outputs, 3 components
    part = Part("p.u.weight", (3, 4), "F32", transposed=True)
    rows = as_rows(part, 0, u.reshape(-1).view(np.uint8))
    assert np.array_equal(rows.view(np.float32), u.T)
