"""Records: the same bits at the other end, and nothing at all of a damaged one."""

import io
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_core.testing import bits, repeatable
from plastic_export.process.pipe import pack, receive, send, unpack

DTYPES = ("float16", "float32", "float64", "complex64", "int8", "uint32", "int64", "bool")
MLX_DTYPES = (mx.float16, mx.bfloat16, mx.float32, mx.complex64, mx.int8, mx.uint32, mx.int64)


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Random bits in any dtype and shape: contiguous, transposed or strided, read-only or not."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (*draw(st.lists(st.integers(0, 5), max_size=3)), dtype.itemsize)
    data = np.random.default_rng(draw(st.integers(0, 99))).bytes(int(np.prod(shape)))
    codes = np.frombuffer(data, np.uint8).reshape(shape) & (1 if dtype.kind == "b" else 255)
    array: NDArray[Any] = codes.view(dtype)[..., 0]
    array.flags.writeable = draw(st.booleans())
    return draw(st.sampled_from([array, array.T, array[..., ::2] if array.ndim else array]))


def through_a_file(value: object) -> Any:
    with tempfile.TemporaryFile(buffering=0) as file:
        assert isinstance(file, io.FileIO)
        send(file, pack(value))
        file.seek(0)
        return unpack(receive(file))


@repeatable
@given(st.lists(arrays(), max_size=4))
def test_numpy_arrays_arrive_with_the_same_bits_dtype_and_shape(sent: list[NDArray[Any]]) -> None:
    received = through_a_file(sent)
    assert [(a.dtype, a.shape, a.tobytes()) for a in received] == [
        (a.dtype, a.shape, a.tobytes()) for a in sent
    ]


@pytest.mark.parametrize("dtype", MLX_DTYPES, ids=str)
def test_mlx_arrays_arrive_with_the_same_bits_nan_payloads_included(dtype: mx.Dtype) -> None:
    sent = mx.array(np.arange(2**16, dtype=np.uint16)).view(dtype)
    received = through_a_file([sent, sent[:0]])
    assert [a.dtype for a in received] == [dtype, dtype]
    assert [bits(a) for a in received] == [bits(sent), bits(sent[:0])]


def test_an_mlx_array_that_would_be_narrowed_is_refused() -> None:
    with pytest.raises(TypeError, match="float64 would arrive as float32"):
        pack({"A": mx.array([1.0], dtype=mx.float64)})


def test_the_memory_of_contiguous_arrays_is_not_copied() -> None:
    A = np.arange(12.0).reshape(3, 4)
    for array in (A, A.T):
        parts = pack(array)
        assert np.shares_memory(parts[1], array)
        assert np.shares_memory(unpack(parts), array)


def test_a_record_that_is_cut_or_has_one_wrong_bit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "record"
    with file.open("wb", buffering=0) as stream:
        send(stream, pack([np.arange(3, dtype=np.int16), "text"]))
    whole = file.read_bytes()
    wrong = [whole[:length] for length in range(len(whole))]
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        wrong.append(bytes(flipped))
    for content in wrong:
        file.write_bytes(content)
        with file.open("rb", buffering=0) as stream, pytest.raises(EOFError):
            receive(stream)
