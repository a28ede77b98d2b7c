"""Randomised triplets are nearly the leading ones, on spaces smaller than the matrix."""

import math
import subprocess
import sys
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plastic_core.factors.certificate import certify
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.factors.operators import as_operator
from plastic_core.factors.randomized import leading_triplets, triplets_within
from plastic_core.factors.work import block_size, exact_work, randomized_work
from plastic_core.linalg import Float32, Float64, device
from plastic_core.testing import EPS, assert_orthonormal, bits, matrix_from_spectrum, repeatable

SHAPES = [(200, 300), (300, 200), (150, 150), (90, 400)]
shapes = st.sampled_from(SHAPES)
ranks = st.sampled_from([1, 2, 7, 15, 16, 17, 20, 31, 32, 33, 40, 48, 49, 60])
keys = st.integers(0, 99)
levels = st.floats(1e-3, 1.0)


@st.composite
def decays(draw: st.DrawFn) -> Float64:
    """400 singular values: slow, fast, flat, stepped, repeated, clustered, one of them dominant."""
    i = np.arange(1.0, 401.0)
    kind = draw(st.sampled_from(["power", "exponential", "linear", "beyond float32", "random"]))
    if kind == "power":
        s = i ** -draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0]))
    elif kind == "exponential":
        s = np.exp(-i / draw(st.sampled_from([3.0, 10.0, 50.0, 200.0])))
    elif kind == "linear":
        s = 1 - i / draw(st.sampled_from([91.0, 201.0, 401.0]))
    elif kind == "beyond float32":
        s = 10.0**-i
    else:
        s = np.random.default_rng(draw(keys)).random(400)
    for _ in range(draw(st.integers(0, 2))):
        start, length = draw(st.integers(0, 60)), draw(st.integers(1, 90))
        spread = draw(st.sampled_from([0.0, 1e-7, 1e-4, 1e-2]))
        step = 1 + spread * np.linspace(1, 0, length)
        s[start : start + length] = draw(st.sampled_from([0.3, 1.0, 1.5, 5.0, 1e3])) * step
    return np.sort(np.maximum(s, 0.0))[::-1]


@cache
def sides(shape: tuple[int, int]) -> tuple[Float64, Float64]:
    k = min(shape)
    left, right = (matrix_from_spectrum(np.ones(k), side, k, seed=side) for side in shape)
    return left, right


def build(s: Float64, shape: tuple[int, int]) -> tuple[Float32, Float64]:
    """A matrix of that spectrum, and the spectrum that is left of it in float32."""
    left, right = sides(shape)
    A = ((left * s[: min(shape)]) @ right.T).astype(np.float32)
    return A, np.linalg.svd(A.astype(np.float64), compute_uv=False)


def product(factors: Factors) -> Float64:
    U, S, Vh = (np.asarray(F, dtype=np.float64) for F in factors)
    dense: Float64 = (U * S) @ Vh
    return dense


def tails(s: Float64) -> Float64:
    """The least Frobenius errors of ranks 0, 1, ..., all."""
    errors: Float64 = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    return errors


def plateau(length: int, height: float, rest: Float64) -> Float64:
    return np.sort(np.concatenate([np.full(length, height), rest[length:]]))[::-1]


INVERSE_ROOT = np.arange(1.0, 401.0) ** -0.5
LINEAR = 1 - np.arange(400.0) / 400


@repeatable
@given(decays(), shapes, ranks, keys)
@example(plateau(20, 100.0, INVERSE_ROOT), (200, 300), 20, 0)  # was 78 times the least error
@example(plateau(40, 100.0, INVERSE_ROOT), (300, 200), 40, 0)  # 111 times
@example(plateau(48, 10.0, LINEAR), (200, 300), 48, 0)
@example(plateau(25, 4.0, np.ones(400)), (200, 300), 20, 0)
@example(plateau(110, 3.0, 1e-3 * LINEAR), (200, 300), 60, 1)  # the rank cuts a plateau
def test_the_factors_are_those_of_the_singular_value_decomposition(
    spectrum: Float64, shape: tuple[int, int], rank: int, key: int
) -> None:
    A, s = build(spectrum, shape)
    factors = factorized_lowrank(A, rank, method="randomized", key=key)
    assert factors.method == "randomized"
    assert_orthonormal(factors.U)
    assert_orthonormal(factors.Vh.T)
    S = np.asarray(factors.S)
    assert (S >= 0).all()
    assert (np.diff(S) <= 0).all()
    # Ten roundings of float32, in the norm of the matrix: what exact factors miss too.
    rounding = 10 * EPS * float(np.linalg.norm(s))
    assert (s[:rank] + rounding >= S).all()
    error = float(np.linalg.norm(A - product(factors)))
    assert error <= 1.01 * tails(s)[rank] + rounding
    spectral = float(np.linalg.norm(A - product(factors), 2))
    certificate = factors.certificate
    assert certificate is not None
    relative, largest = error / float(np.linalg.norm(s)), spectral / s[0]
    assert abs(certificate.relative_error - relative) <= 1e-3 * relative + EPS
    assert largest * (1 - 1e-3) - EPS <= certificate.spectral_error <= 1.1 * largest + EPS


@repeatable
@given(decays(), shapes, st.floats(-4, -0.05), keys)
@example(plateau(20, 1.3, INVERSE_ROOT), (200, 300), math.log10(0.5), 0)  # was 1.33 times the rank
@example(plateau(20, 2.0, LINEAR), (200, 300), math.log10(0.7), 0)
def test_a_tolerance_is_kept_with_nearly_the_least_rank(
    spectrum: Float64, shape: tuple[int, int], exponent: float, key: int
) -> None:
    A, s = build(spectrum, shape)
    tolerance = 10.0**exponent
    factors = factorized_lowrank(A, tolerance=tolerance, method="randomized", key=key)
    assert factors.certificate is not None
    assert factors.certificate.relative_error <= tolerance
    error = float(np.linalg.norm(A - product(factors)))
    assert error <= tolerance * (1 + 1e-3) * float(np.linalg.norm(s))
    # Rounding takes its share of the tolerance, in quadrature.
    rounding = 10 * EPS
    aim = math.sqrt(tolerance**2 - rounding**2) * float(np.linalg.norm(s))
    least = int(np.argmax(tails(s) <= aim))
    assert factors.rank <= max(least + 1, 1.05 * least)


@repeatable
@given(decays(), shapes, keys)
def test_the_error_falls_with_the_rank_and_the_tolerance(
    spectrum: Float64, shape: tuple[int, int], key: int
) -> None:
    A, s = build(spectrum, shape)
    rounding, norm = 10 * EPS, float(np.linalg.norm(s))

    def error(factors: Factors) -> float:
        return float(np.linalg.norm(A - product(factors))) / norm

    by_rank = [error(factorized_lowrank(A, r, method="randomized", key=key)) for r in (5, 20, 41)]
    for more, less in zip(by_rank[1:], by_rank[:-1], strict=True):
        assert more <= 1.01 * less + rounding
    tight, loose = (
        factorized_lowrank(A, tolerance=t, method="randomized", key=key) for t in (0.2, 0.4)
    )
    assert loose.rank <= 1.05 * tight.rank + 1
    assert error(tight) <= 0.2 * (1 + 1e-3)


@repeatable
@given(decays(), shapes, ranks, st.sampled_from([2.0**-100, 2.0**-3, 2.0**80]), keys)
def test_transposed_permuted_and_scaled_matrices_have_the_same_errors_and_values(
    spectrum: Float64, shape: tuple[int, int], rank: int, scale: float, key: int
) -> None:
    A, s = build(spectrum, shape)
    rng = np.random.default_rng(key)
    rows, columns = (rng.permutation(side) for side in shape)
    factors = factorized_lowrank(A, rank, method="randomized", key=key)
    for other, factor in ((A.T, 1.0), (A[rows][:, columns], 1.0), (np.float32(scale) * A, scale)):
        same = factorized_lowrank(other, rank, method="randomized", key=key)
        error, again = (
            float(np.linalg.norm(M - product(F))) / c
            for M, F, c in ((A, factors, 1.0), (other, same, factor))
        )
        rounding = 10 * EPS * float(np.linalg.norm(s))
        assert abs(error - again) <= 0.01 * error + rounding
        # Values whose energies differ by what the errors may.
        energies = (np.asarray(F.S, dtype=np.float64) ** 2 for F in (factors, same))
        kept, kept_again = (float(np.sum(e)) for e in energies)
        assert abs(kept - kept_again / factor**2) <= 0.0201 * error**2 + rounding * 2 * s[0]


@repeatable
@given(decays(), shapes, ranks, keys)
def test_one_key_gives_the_same_bits_in_whatever_form_it_comes(
    spectrum: Float64, shape: tuple[int, int], rank: int, key: int
) -> None:
    A, _ = build(spectrum, shape)
    for given_ in (key, mx.random.key(key)):
        once, again = (
            factorized_lowrank(A, rank, method="randomized", key=given_) for _ in range(2)
        )
        assert [bits(F) for F in once] == [bits(F) for F in again]
        assert once.certificate == again.certificate


@pytest.mark.parametrize("rank", [1, 9, 30, 45])
@pytest.mark.parametrize("shape", [(120, 200), (200, 120)])
def test_an_exact_low_rank_is_recovered_to_rounding(shape: tuple[int, int], rank: int) -> None:
    A, s = build(np.append(np.linspace(2, 1, 30), np.zeros(370)), shape)
    factors = factorized_lowrank(A, rank, method="randomized")
    error = np.linalg.norm(A - product(factors))
    assert error <= 1.01 * tails(s)[rank] + 10 * EPS * np.linalg.norm(s)
    assert_orthonormal(factors.U)
    assert_orthonormal(factors.Vh.T)
    found = factorized_lowrank(A, tolerance=1e-5, method="randomized")
    assert found.rank == 30


@pytest.mark.parametrize("cap", [31, 40, 60])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-4, 1e-3])
def test_a_cap_above_the_rank_changes_nothing(cap: int, tolerance: float) -> None:
    A, _ = build(np.append(np.linspace(2, 1, 30), np.zeros(370)), (200, 300))
    capped = factorized_lowrank(A, cap, tolerance=tolerance, method="randomized")
    assert capped.rank == 30


@pytest.mark.parametrize("A", [np.eye(150), np.zeros((100, 130)), np.ones((130, 100))])
@pytest.mark.parametrize("rank", [1, 16, 40])
def test_identity_zero_and_ones_need_no_special_case(A: Float64, rank: int) -> None:
    s = np.linalg.svd(A, compute_uv=False)
    factors = factorized_lowrank(7 * A, rank, method="randomized")
    assert_orthonormal(factors.U)
    assert_orthonormal(factors.Vh.T)
    error = np.linalg.norm(7 * A - product(factors))
    assert error <= 7 * (1.01 * tails(s)[rank] + 10 * EPS * np.linalg.norm(s))


def test_an_orthogonal_matrix_is_one_cluster() -> None:
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((160, 160)))[0].astype(np.float32)
    factors = factorized_lowrank(Q, 40, method="randomized")
    assert np.linalg.norm(Q - product(factors)) <= 1.0001 * math.sqrt(120)
    assert np.abs(np.asarray(factors.S) - 1).max() <= 10 * EPS


@pytest.mark.parametrize("kept", [0.0, 0.3])
def test_triplets_within_gives_up_where_the_budget_ends(kept: float) -> None:
    A, s = build(np.ones(400), (200, 300))
    operator, norm = as_operator(A), float(np.linalg.norm(s))
    needed = randomized_work(A.shape, 100)
    budget = kept * needed
    assert triplets_within(operator, norm, 0.1, budget, key=0) is None
    found = triplets_within(operator, norm, 0.1, math.inf, key=0)
    assert found is not None
    assert found.error <= 0.1 * norm


def test_triplets_tell_their_errors_and_those_of_their_parts() -> None:
    A, s = build(INVERSE_ROOT, (200, 300))
    triplets = leading_triplets(as_operator(A), float(np.linalg.norm(s)), 32, key=0)
    for rank in (0, 1, 20, 32):
        part = triplets.leading(rank)
        exact = np.linalg.norm(A - (part.U.astype(np.float64) * part.S) @ part.Vh)
        assert abs(part.error - exact) <= 1e-3 * exact
        assert abs(triplets.errors()[rank] - exact) <= 1e-3 * exact
        assert abs(part.measured(as_operator(A)).error - exact) <= 1e-3 * exact
    assert triplets.are_leading()
    assert not triplets._replace(bound=2 * float(triplets.S[0])).are_leading()


@repeatable
@given(st.integers(1, 2**15), st.integers(1, 2**15), st.integers(0, 99), st.integers(1, 2000))
def test_the_predicted_work_grows_with_the_matrix(m: int, n: int, more: int, rank: int) -> None:
    for larger in ((m + more, n), (m, n + more)):
        assert exact_work((m, n)) <= exact_work(larger)
        assert randomized_work((m, n), rank) <= randomized_work(larger, rank)
    assert exact_work((m, n)) == exact_work((n, m))
    assert randomized_work((m, n), rank) == randomized_work((n, m), rank)


@repeatable
@given(st.integers(1, 2**15), st.integers(1, 2**15), st.integers(1, 2000))
def test_the_predicted_work_grows_with_the_rank_between_two_block_sizes(
    m: int, n: int, rank: int
) -> None:
    if block_size(rank) == block_size(rank + 1):
        assert randomized_work((m, n), rank) <= randomized_work((m, n), rank + 1)


def test_the_predicted_work_takes_large_matrices_for_random_and_small_ones_for_exact() -> None:
    assert randomized_work((4096, 4096), 256) < exact_work((4096, 4096)) / 10
    assert randomized_work((100, 100), 50) > exact_work((100, 100))


GROWTH = """
from pathlib import Path
import numpy as np
from plastic_core import factorized_lowrank

def resident(peak):
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

rng = np.random.default_rng(0)
A = rng.standard_normal((4000, 5000), dtype=np.float32)
factorized_lowrank(A[:600, :600], 32, method="randomized")  # libraries, thread pools
Path("/proc/self/clear_refs").write_text("5")
before = resident(peak=False)
factorized_lowrank(A, 32, method="randomized")
print((resident(peak=True) - before) / A.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process as Linux does")
def test_a_randomised_factorisation_needs_a_fraction_of_the_memory_of_the_matrix() -> None:
    run = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, timeout=900, check=True
    )
    assert float(run.stdout) < 1.0


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_on_a_gpu_the_factors_are_the_same(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    A, s = build(INVERSE_ROOT, (90, 400))
    A, s = build(plateau(20, 3.0, INVERSE_ROOT), shape)
    here = [factorized_lowrank(A, 12, method="randomized", key=1)]
    here += [factorized_lowrank(A, tolerance=0.3, method="randomized", key=1)]
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    there = [factorized_lowrank(A, 12, method="randomized", key=1)]
    there += [factorized_lowrank(A, tolerance=0.3, method="randomized", key=1)]
    rounding = 10 * EPS * float(np.linalg.norm(s))
    for one, other in zip(here, there, strict=True):
        assert one.rank == other.rank
        assert_orthonormal(other.U)
        assert_orthonormal(other.Vh.T)
        assert np.abs(np.asarray(one.S) - np.asarray(other.S)).max() <= 0.01 * s[0]
        errors = [float(np.linalg.norm(A - product(F))) for F in (one, other)]
        assert abs(errors[0] - errors[1]) <= 0.01 * errors[0] + rounding
        stored = other.U * other.S
        assert other.certificate is not None
        again = certify(A, stored, other.Vh).relative_error
        assert abs(other.certificate.relative_error - again) <= 2e-3 * again
