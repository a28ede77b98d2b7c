"""Low-rank factorisations against every other way to get one: time, error, memory, certificate.

    uv run --with scikit-learn --with torch tools/bench/factorize.py   half an hour, two cores
    uv run tools/bench/factorize.py --sizes 1024x1024 --alone          a minute
    uv run tools/bench/factorize.py --weights FOLDER                   and real weights

Matrices have a known spectrum: sigma_i = i^-0.5, i^-1 and exp(-i/100). Every measurement runs in a
process of its own; peers that are not installed are named and left out, one that misses the
deadline is shown as such. ``error`` and ``spectral`` are the errors over the least possible ones
(1.000 is perfect); the spectral one is an upper bound, 1.05 where nothing is lost. A peer
counts as equal if its Frobenius error is at most 1.01 times the least possible one.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from peers import METHODS, Measurement, measure, measure_tolerance, missing
from plastic_core import linalg
from plastic_export.process import WorkerError, run_isolated
from rich.console import Console
from rich.table import Table

SPECTRA = {
    "i^-0.5": lambda i: i**-0.5,
    "i^-1": lambda i: 1.0 / i,
    "exp(-i/100)": lambda i: np.exp(-i / 100.0),
}
OURS, FULL = "plastic_core", "numpy.linalg.svd"
LARGE = 4096 * 4096  # entries from which on the libraries' own buffers do not count
SLOW = (FULL, "mx.linalg.svd")  # the rank does not matter to them: once per shape


class Matrix(NamedTuple):
    """A matrix on disk and its singular values."""

    name: str
    path: str
    shape: tuple[int, int]
    s: NDArray[np.float64]


def synthetic(sizes: list[tuple[int, int]], spectra: list[str], folder: Path) -> Iterator[Matrix]:
    """Matrices with random singular vectors, made one after the other."""
    for m, n in sizes:
        rng = np.random.default_rng(0)
        U, V = (
            linalg.qr(rng.standard_normal((side, min(m, n)), dtype=np.float32))[0]
            for side in (m, n)
        )
        for name in spectra:
            s = SPECTRA[name](np.arange(1, min(m, n) + 1))
            path = folder / "matrix.npy"
            np.save(path, (U * s.astype(np.float32)) @ V.T)
            yield Matrix(name, str(path), (m, n), s)


def real(weights: list[Path], folder: Path) -> Iterator[Matrix]:
    """The largest matrix of each shape in every checkpoint folder."""
    for source in weights:
        seen: set[tuple[int, ...]] = set()
        for file in sorted(source.glob("*.safetensors")):
            tensors = cast(dict[str, mx.array], mx.load(str(file)))
            for name, array in sorted(tensors.items()):
                if array.ndim != 2 or tuple(array.shape) in seen or min(array.shape) < 128:
                    continue
                seen.add(tuple(array.shape))
                A, path = linalg.as_matrix(array), folder / "matrix.npy"
                np.save(path, A)
                label = name.removeprefix("model.").removesuffix(".weight")
                yield Matrix(label, str(path), A.shape, linalg.thin_singular_values(A))


def least_errors(s: NDArray[np.float64], rank: int) -> tuple[float, float]:
    """Least possible relative errors at a rank, in the Frobenius and in the spectral norm."""
    tail = s[rank:]
    return float(np.linalg.norm(tail) / np.linalg.norm(s)), float(tail[0] / s[0])


def least_rank(s: NDArray[np.float64], tolerance: float) -> int:
    """The least rank with a relative Frobenius error of at most ``tolerance``."""
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    return int(np.argmax(tails <= tolerance**2 * tails[0]))


def fixed_rank(
    matrix: Matrix,
    rank: int,
    methods: Iterable[str],
    options: argparse.Namespace,
    first: bool,
    table: Table,
) -> tuple[Measurement, dict[str, float]]:
    """Every method at one rank; returns ours and the seconds of peers that are as good."""
    least, least_spectral = least_errors(matrix.s, rank)
    ours, equal = None, dict[str, float]()
    for method in methods:
        if missing(method) or (method in SLOW and not first):
            continue
        try:
            deadline = 3600.0 if method in (OURS, FULL) else options.deadline
            repeats = 1 if method in SLOW or method == "scipy svds" else options.repeats
            m = run_isolated(measure, method, matrix.path, rank, repeats, timeout=deadline)
            print(*_where(matrix), rank, method, f"{m.seconds:.2f} s", file=sys.stderr)
        except WorkerError:
            table.add_row(*_where(matrix), str(rank), method, f"> {options.deadline:.0f}")
            continue
        error = m.error / least
        if method == OURS:
            ours = m
        elif error <= 1.01:
            equal[method] = m.seconds
        share = "" if m.certificate is None else f"{m.certificate:.0%}"
        table.add_row(
            *_where(matrix),
            str(rank),
            method + (f" ({m.method})" if m.method else ""),
            f"{m.seconds:.2f}",
            f"{m.seconds / ours.seconds:.1f}" if ours else "",
            f"{error:.4f}",
            f"{m.spectral / least_spectral:.3f}",
            f"{m.memory:.1f}",
            share,
        )
    assert ours is not None
    return ours, equal


def _where(matrix: Matrix) -> tuple[str, str]:
    return f"{matrix.shape[0]}x{matrix.shape[1]}", matrix.name


def rank_table() -> Table:
    table = Table(title="Fixed rank (time over ours; errors over the least possible)")
    for column in ("matrix", "spectrum", "rank", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("s", "time", "error", "spectral", "memory / input", "certificate"):
        table.add_column(column, justify="right")
    return table


def tolerance_table() -> Table:
    table = Table(title="Fixed relative error 1e-2")
    for column in ("matrix", "spectrum", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("s", "rank", "least", "rank / least", "error", "memory / input"):
        table.add_column(column, justify="right")
    return table


def compare_methods(
    matrices: Iterator[Matrix],
    methods: Iterable[str],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Print both tables, and the targets with the worst figure seen."""
    ranks, tolerances = rank_table(), tolerance_table()
    worst: dict[str, list[float]] = {}
    full: dict[tuple[int, int], float] = {}
    for matrix in matrices:
        for rank in (r for r in options.ranks if r < min(matrix.shape)):
            first = matrix.shape not in full
            ours, equal = fixed_rank(matrix, rank, methods, options, first, ranks)
            full.setdefault(matrix.shape, equal.get(FULL, float("nan")))
            _note(worst, matrix, rank, ours, equal, full[matrix.shape])
        if FULL not in methods:
            continue
        m = run_isolated(measure_tolerance, matrix.path, 1e-2, timeout=3600.0)
        least = least_rank(matrix.s, 1e-2)
        worst.setdefault("rank", []).append(m.rank / least)
        worst.setdefault("tolerance", []).append(m.error / 1e-2)
        tolerances.add_row(
            *_where(matrix),
            m.method,
            f"{m.seconds:.2f}",
            str(m.rank),
            str(least),
            f"{m.rank / least:.3f}",
            f"{m.error:.5f}",
            f"{m.memory:.1f}",
        )
    if worst:
        console.print(ranks, tolerances, target_table(worst))


def _note(
    worst: dict[str, list[float]],
    matrix: Matrix,
    rank: int,
    ours: Measurement,
    equal: dict[str, float],
    full: float,
) -> None:
    least, _ = least_errors(matrix.s, rank)
    worst.setdefault("error", []).append(ours.error / least)
    if matrix.shape[0] * matrix.shape[1] >= LARGE:
        worst.setdefault("memory", []).append(ours.memory)
    if rank == 256 and ours.method == "randomized":
        worst.setdefault("certificate", []).append(ours.certificate or 0.0)
        worst.setdefault("full", []).append(ours.seconds / full)  # NaN where it was not run
        peers = [seconds for method, seconds in equal.items() if method != FULL]
        worst.setdefault("peer", []).append(ours.seconds / min(peers, default=math.nan))


def target_table(worst: dict[str, list[float]]) -> Table:
    """The targets, each with the worst figure of this run."""
    rows = {
        "error": ("Frobenius error over the least possible", 1.01),
        "full": ("time over NumPy's full decomposition, rank 256", 1 / 20),
        "peer": ("time over the fastest equal peer, rank 256", 0.7),
        "memory": ("extra memory over the input, fixed rank", 3.0),
        "rank": ("rank over the least possible, tolerance 1e-2", 1.05),
        "tolerance": ("error over the tolerance", 1.0),
        "certificate": ("certificate over factorisation, rank 256", 0.15),
    }
    table = Table(title="Targets, worst of this run")
    for column in ("what", "target", "worst", "met"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for key, (what, limit) in rows.items():
        values = worst.get(key, [])
        if not np.isnan(values).all():
            figure = float(np.nanmax(values))
            met = "yes" if figure <= limit else "no"
            table.add_row(what, f"<= {limit:.3g}", f"{figure:.4g}", met)
    return table


def size(text: str) -> tuple[int, int]:
    m, n = text.split("x")
    return int(m), int(n)


def main() -> None:
    parser = argparse.ArgumentParser(description="Low-rank factorisations, side by side.")
    parser.add_argument("--sizes", type=size, nargs="*", default=[(4096, 4096), (4096, 11008)])
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="checkpoint folders")
    parser.add_argument(
        "--alone", type=size, nargs="*", default=[(5120, 25600)], help="sizes without any peer"
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed runs, best counts (2)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for a peer (30)")
    options = parser.parse_args()
    console = Console(width=140)
    for method in filter(missing, METHODS):
        console.print(f"not installed, left out: {method}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for methods, matrices in (
            (METHODS, synthetic(options.sizes, list(SPECTRA), folder)),
            ([OURS], synthetic(options.alone, ["i^-1"], folder)),
            (METHODS, real(options.weights, folder)),
        ):
            compare_methods(matrices, methods, options, console)


if __name__ == "__main__":
    main()
