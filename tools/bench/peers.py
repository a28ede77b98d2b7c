"""One factorisation by one library, timed and checked in a process of its own.

The functions here are what `factorize.py` hands to `plastic_core.run_isolated`: a fresh process per
measurement, so that no two libraries' threads wait for each other's cores, and memory can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from meters import peak, resident
from numpy.typing import NDArray
from plastic_core import certify, factorized_lowrank

Triplet = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


class Measurement(NamedTuple):
    """The result of one method on one matrix.

    Attributes:
        seconds: Best of the repeats.
        error: Relative Frobenius error of the factors.
        spectral: Relative spectral error of the factors, an upper bound within 7 percent.
        rank: Number of components.
        memory: Bytes at the peak beyond the input, over the bytes of the input.
        certificate: Seconds spent on the certificate over those spent on the factors.
        method: What was chosen, where there is a choice.
    """

    seconds: float
    error: float
    spectral: float
    rank: int
    memory: float
    certificate: float | None = None
    method: str = ""


def plastic_core_lowrank(A: NDArray[Any], rank: int) -> Any:
    return factorized_lowrank(A, rank)


def torch_lowrank(A: NDArray[Any], rank: int) -> Triplet:
    import torch

    U, S, V = torch.svd_lowrank(torch.from_numpy(A), q=min(rank + 10, *A.shape), niter=4)
    return U[:, :rank].numpy(), S[:rank].numpy(), V.T[:rank].numpy()


def sklearn_randomized(A: NDArray[Any], rank: int) -> Triplet:
    from sklearn.utils.extmath import randomized_svd

    U, S, Vh = randomized_svd(A, rank, random_state=0)
    return U, S, Vh


def scipy_svds(A: NDArray[Any], rank: int) -> Triplet:
    from scipy.sparse.linalg import svds

    U, S, Vh = svds(A, k=rank, random_state=0)
    return U[:, ::-1], S[::-1], Vh[::-1]


def numpy_svd(A: NDArray[Any], rank: int) -> Triplet:
    U, S, Vh = np.linalg.svd(A, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def mlx_svd(A: NDArray[Any], rank: int) -> Triplet:
    U, S, Vh = mx.linalg.svd(mx.array(A), stream=mx.cpu)
    mx.eval(U, S, Vh)
    return np.asarray(U)[:, :rank], np.asarray(S)[:rank], np.asarray(Vh)[:rank]


METHODS: dict[str, tuple[Callable[[NDArray[Any], int], Any], str]] = {
    "plastic_core": (plastic_core_lowrank, "plastic_core"),
    "torch.svd_lowrank": (torch_lowrank, "torch"),
    "sklearn randomized_svd": (sklearn_randomized, "sklearn"),
    "scipy svds": (scipy_svds, "scipy"),
    "numpy.linalg.svd": (numpy_svd, "numpy"),
    "mx.linalg.svd": (mlx_svd, "mlx"),
}


def missing(method: str) -> bool:
    """Tell whether the library of a method is not installed."""
    return find_spec(METHODS[method][1]) is None


def measure(method: str, path: str, rank: int, repeats: int) -> Measurement:
    """Factor the matrix stored at ``path`` to a fixed rank."""
    A = np.load(path)
    factorise = METHODS[method][0]
    if repeats > 1:
        factorise(A[:512, :512], min(rank, 64))  # imports, thread pools
    before = resident()
    certificates = _watched_certificates()
    times, result = [], None
    for _ in range(repeats):
        del result
        certificates.clear()
        start = time.perf_counter()
        result = factorise(A, rank)
        times.append(time.perf_counter() - start)
    memory = max(0, peak() - before) / A.nbytes
    measuring = sum(certificates)
    share = measuring / (times[-1] - measuring) if certificates else None
    return _checked(A, result, min(times), memory, share)


def measure_tolerance(path: str, tolerance: float) -> Measurement:
    """Factor the matrix stored at ``path`` to a fixed relative error."""
    A = np.load(path)
    before, start = resident(), time.perf_counter()
    factors = factorized_lowrank(A, tolerance=tolerance)
    seconds = time.perf_counter() - start
    return _checked(A, factors, seconds, max(0, peak() - before) / A.nbytes, None)


def _checked(
    A: NDArray[Any], factors: Any, seconds: float, memory: float, share: float | None
) -> Measurement:
    """Errors of the factors as they came, by one and the same measurement for all."""
    U, S, Vh = (np.ascontiguousarray(a, dtype=np.float32) for a in factors)
    error = certify(A, U, S[:, None] * Vh)
    method = getattr(factors, "method", None) or ""
    return Measurement(
        seconds, error.relative_error, error.spectral_error, len(S), memory, share, method
    )


def _watched_certificates() -> list[float]:
    """Seconds that `factorized_lowrank` spends on errors and their bounds, one entry per part."""
    seconds = list[float]()

    def watch(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds.append(time.perf_counter() - start)
            return result

        setattr(module, name, watched)

    watch(import_module("plastic_core.factors.lowrank"), "certified")
    watch(import_module("plastic_core.factors.randomized"), "spectral_bound")
    return seconds
