"""Compare ``plastic extract`` with mergekit's extraction at equal bytes: error, time, memory.

    uv run tools/bench/extracting/mergekit.py BASE TUNED --program mergekit-extract-lora

Both programs run as processes of their own, with as many threads, start and imports included.
mergekit has one rank for all layers; ours gets the bytes of its factors as ``--max-size``, so that
the file for PEFT, its header included, is no larger. What mergekit saves besides, embeddings and
norms, is not counted. The error is that of the stored factors over all matrices, relative, in the
Frobenius norm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
from plastic_core.files import read_arrays
from plastic_core.linalg import squared_norm, to_numpy
from plastic_export import open_checkpoint
from plastic_export.extraction import Pair
from rich.console import Console
from rich.table import Table


class ProcessCost(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class ExtractedRow(NamedTuple):
    """One adapter."""

    name: str
    nbytes: int
    error: float
    cost: ProcessCost


StoredFactors = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""``B`` and ``A`` of every layer, by its path."""


def main() -> None:
    """Run both at every rank and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--program", required=True, help="mergekit-extract-lora, installed apart")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rows = [row for rank in given.ranks for row in both(given, rank)]
    table = Table("method", "bytes", "error", "seconds", "CPU seconds", "peak MB", box=None)
    for row in rows:
        spent = (f"{row.cost.seconds:.0f}", f"{row.cost.cpu_seconds:.1f}")
        peak = f"{row.cost.peak_bytes / 1e6:.0f}"
        table.add_row(row.name, f"{row.nbytes:,}", f"{row.error:.4f}", *spent, peak)
    Console(width=100).print(table)


def both(given: argparse.Namespace, rank: int) -> list[ExtractedRow]:
    """Extract with mergekit at a rank, and with ours at that rank and in the same bytes."""
    base, tuned = str(given.base), str(given.tuned)
    with tempfile.TemporaryDirectory() as folder:
        theirs, out = f"{folder}/theirs", f"{folder}/ours"
        words = [given.program, "--model", tuned, "--base-model", base, "--out-path", theirs]
        cost = timed_process([*words, "--max-rank", str(rank), "--no-cuda"], given.threads)
        rows = [extracted_row(f"mergekit, rank {rank}", given, Path(theirs), cost)]
        budget = rows[0].nbytes
        plastic = [str(Path(sys.executable).with_name("plastic")), "extract", base, tuned]
        for name, amount in (
            (f"plastic --rank {rank}", ["--rank", str(rank)]),
            (f"plastic --max-size {budget}", ["--max-size", str(budget)]),
        ):
            place = f"{out}-{len(rows)}"
            cost = timed_process([*plastic, place, *amount, "--no-check"], given.threads)
            rows.append(extracted_row(name, given, Path(place) / "peft", cost))
    return rows


def timed_process(words: Sequence[str], threads: int) -> ProcessCost:
    """Run a program to its end."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1"}
    began = perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words[0]} ended with status {process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024
    return ProcessCost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)


def extracted_row(
    name: str, given: argparse.Namespace, folder: Path, cost: ProcessCost
) -> ExtractedRow:
    """Measure what a program wrote."""
    factors = read_factors(folder / "adapter_model.safetensors")
    nbytes = sum(B.nbytes + A.nbytes for B, A in factors.values())
    return ExtractedRow(name, nbytes, adapter_error(given, factors), cost)


def read_factors(file: Path) -> StoredFactors:
    """Read the factors of an adapter in the form of PEFT; every scale is 1."""
    arrays = {name: to_numpy(array) for name, array in read_arrays(file)[0].items()}
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            arrays[name.replace("lora_A", "lora_B")],
            arrays[name],
        )
        for name in arrays
        if name.endswith(".lora_A.weight")
    }


def adapter_error(given: argparse.Namespace, factors: StoredFactors) -> float:
    """Return ``||D - B A|| / ||D||`` over all linear layers."""
    missed = whole = 0.0
    with open_checkpoint(given.base) as base, open_checkpoint(given.tuned) as tuned:
        pair = Pair.of(base, tuned)
        for name, layer in pair.layers.items():
            if layer.kind != "linear":
                continue
            ((before, after),) = pair.matrices(name)
            D = after - before
            whole += squared_norm(D)
            if found := factors.get(name.removesuffix(".weight")):
                B, A = (side.astype(np.float32) for side in found)
                D -= B @ A
            missed += squared_norm(D)
    return float((missed / whole) ** 0.5)


if __name__ == "__main__":
    main()
