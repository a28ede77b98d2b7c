"""The processes that do one work together, as one of them sees them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

CHUNK = 32 * 2**20
"""Bytes of one message of many arrays."""


_OF_A_BACKEND = re.compile(r"\[(ring|jaccl|mpi)\]")
"""The beginning of what MLX says of a connection."""


class LostConnectionError(RuntimeError):
    """Another process cannot be reached any more.

    Examples:
        >>> print(LostConnectionError("[ring] connection to a peer was lost"))
        [ring] connection to a peer was lost
    """


class Team:
    """The processes that do one work together: one alone, unless `join` found others.

    All processes make the same calls in the same order. A call waits for the others; one that has
    died ends it by an error, or not at all, which a `Watch` notices.

    Args:
        group: MLX's group of processes; None for one alone.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        sent: Bytes that this process has sent: to every other one where all gather, to one where
            it sends.

    Examples:
        >>> team = Team()
        >>> team.rank, team.size, team.gathered({"host": "here"})
        (0, 1, [{'host': 'here'}])
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self.sent = 0
        self._group = group
        # Not the default stream: products of the same process are not to wait for it.
        self._stream = mx.new_stream(mx.cpu) if self.size > 1 else None

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints, and writes what there is one of."""
        return self.rank == 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Make a `LostConnectionError` of what MLX raises within the block for a lost connection.

        For code that itself sends and receives, such as mlx-lm's trainer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _OF_A_BACKEND.match(str(error)):
                raise LostConnectionError(str(error)) from error
            raise

    def gathered(self, value: Any) -> list[Any]:
        """Return what every process calls this with, in their order, in the types of JSON."""
        if self.size == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        return [json.loads(found.tobytes()) for found in self.gathered_arrays(text)]

    def gathered_arrays(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the flat arrays, of one type and of any lengths, that all call this with."""
        if self.size == 1:
            return [values]
        lengths = self._gathered(np.array([values.size], np.int32))
        padded = np.zeros(max(1, lengths.max()), values.dtype)
        padded[: values.size] = values
        rows = self._gathered(padded).reshape(self.size, -1)
        return [row[:n] for row, n in zip(rows, lengths, strict=True)]

    def told(self, value: Any) -> Any:
        """Return what the first process calls this with; what the others have does not count."""
        return self.gathered(value if self.leads else None)[0]

    def told_arrays(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return the arrays by name that the first process calls this with, bit for bit.

        Cost:
            About twice their bytes are sent by every process, and once their bytes of memory.
        """
        if self.size == 1:
            return dict(arrays)
        kinds = [[name, list(a.shape), str(a.dtype)] for name, a in arrays.items()]
        kinds = self.told(kinds)
        dtypes = [getattr(mx, dtype.rpartition(".")[2]) for _, _, dtype in kinds]
        sizes = [math.prod(kind[1]) * d.size for kind, d in zip(kinds, dtypes, strict=True)]
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        data = np.zeros(sum(sizes), np.uint8)
        if self.leads:
            for array, size, end in zip(arrays.values(), sizes, ends, strict=True):
                data[end - size : end] = np.asarray(array.reshape(-1).view(mx.uint8))
        for start in range(0, data.size, CHUNK):
            # Bytes to which all others add 0 arrive as they are; floats would lose the sign of -0.
            part = mx.array(data[start : start + CHUNK])
            found = mx.distributed.all_sum(part, group=self._group, stream=self._stream)
            data[start : start + CHUNK] = self._evaluated(found)
            self.sent += 2 * (self.size - 1) * part.nbytes // self.size
        return {
            name: mx.array(data[end - size : end]).view(dtype).reshape(shape)
            for (name, shape, _), dtype, size, end in zip(kinds, dtypes, sizes, ends, strict=True)
        }

    def summed_arrays(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return the sums over all processes of float32 arrays that all have alike, by name.

        For the same number of processes they are the same bits, in all of them.

        Cost:
            About twice their bytes are sent by every process.
        """
        if self.size == 1 or not arrays:
            return dict(arrays)
        whole = mx.concatenate([array.reshape(-1) for array in arrays.values()])
        mx.eval(whole)
        step, found = CHUNK // 4, list[mx.array]()
        for start in range(0, whole.size, step):
            part = whole[start : start + step]
            total = mx.distributed.all_sum(part, group=self._group, stream=self._stream)
            self._evaluated(total)
            found.append(total)
            self.sent += 2 * (self.size - 1) * part.nbytes // self.size
        ends = np.cumsum([array.size for array in arrays.values()]).tolist()
        parts = mx.split(mx.concatenate(found), ends[:-1])
        shapes = {name: array.shape for name, array in arrays.items()}
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

    def send_record(self, to: int, record: Any) -> None:
        """Send a value, in the types of JSON, to a process that receives one."""
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        self.send_array(to, np.array([text.size], np.int32))
        self.send_array(to, text)

    def received_record(self, of: int) -> Any:
        """Return the next value that a process sends."""
        length = int(self.received_array(of, 1, np.int32)[0])
        return json.loads(self.received_array(of, length, np.uint8).tobytes())

    def send_array(self, to: int, values: NDArray[Any]) -> None:
        """Send a flat array to a process that receives one of its size and type."""
        self._evaluated(self._sent(to, values))

    def post_array(self, to: int, values: NDArray[Any]) -> None:
        """Send one as `send_array` does, without waiting until it is received."""
        mx.async_eval(self._sent(to, values))  # type: ignore[no-untyped-call]

    def _sent(self, to: int, values: NDArray[Any]) -> mx.array:
        self._check_others()
        self.sent += values.nbytes
        data = mx.array(values.view(np.uint8))
        return mx.distributed.send(data, to, group=self._group, stream=self._stream)

    def received_array(self, of: int, count: int, dtype: Any) -> NDArray[Any]:
        """Return the next array that a process sends; it is to be read alone."""
        self._check_others()
        shape = (count * np.dtype(dtype).itemsize,)
        found = mx.distributed.recv(shape, mx.uint8, of, group=self._group, stream=self._stream)
        return self._evaluated(found).view(dtype)

    def _check_others(self) -> None:
        if self.size == 1:
            raise ValueError("a process that works alone has nobody to send to or receive from.")

    def _gathered(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of all processes, one after the other; all have as many."""
        data = mx.array(values.view(np.uint8))
        found = mx.distributed.all_gather(data, group=self._group, stream=self._stream)
        self.sent += (self.size - 1) * values.nbytes
        return self._evaluated(found).view(values.dtype)

    def _evaluated(self, array: mx.array) -> NDArray[Any]:
        try:
            mx.eval(array)
        except RuntimeError as error:  # MLX has no class of its own for it
            raise LostConnectionError(str(error)) from error
        return np.asarray(array)


def of_all(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries that all processes gathered, of the first where several have one.

    Examples:
        >>> of_all([{"a": 1}, {"b": 2, "a": 3}])
        {'a': 1, 'b': 2}
    """
    entries: dict[str, Any] = {}
    for record in found:
        entries |= {name: value for name, value in record.items() if name not in entries}
    return entries
