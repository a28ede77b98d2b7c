"""The parts that two training runs must have in common, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from plastic_core.files import array_bytes
from plastic_runtime import read_events
from plastic_runtime.training import read_run

FILES = ("losses.jsonl", "adapters/adapters.safetensors", "peft/adapter_model.safetensors")


@dataclasses.dataclass(frozen=True)
class RunDifference:
    """The differences of two finished runs: bits of arrays, and other things by name."""

    bits: int
    other: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.bits > 0 or bool(self.other)


def compare_runs(run: Path, other: Path) -> RunDifference:
    """Compare weights, optimizer, sleepers, random state, records and files of two runs.

    Only the clock may differ: the times of events, and so the sizes of their log.
    """
    newest = [sorted((folder / "generations").iterdir())[-1] for folder in (run, other)]
    if newest[0].name != newest[1].name:
        return RunDifference(0, ("the last step",))
    (arrays, record), (others, other_record) = map(read_run, newest)
    named = [name for name in sorted(arrays.keys() ^ others.keys())]
    bits = sum(_bits(arrays[name], others[name]) for name in arrays.keys() & others.keys())
    if _timeless(record) != _timeless(other_record):
        named.append("the record of the state")
    if _events(run) != _events(other):
        named.append("events")
    named += [n for n in FILES if (run / n).read_bytes() != (other / n).read_bytes()]
    named += sorted(_names(run) ^ _names(other))
    return RunDifference(bits, tuple(named))


def _bits(a: mx.array, b: mx.array) -> int:
    left, right = array_bytes(a), array_bytes(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return 8 * max(len(left), len(right))
    return int(np.bitwise_count(left ^ right).sum())


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    rest["extra"] = {name: v for name, v in record["extra"].items() if name != "extra"}
    return rest


def _events(run: Path) -> list[Any]:
    return [dataclasses.replace(event, time=0.0) for event in read_events(run / "events.jsonl")]


def _names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}
