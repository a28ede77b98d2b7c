"""The compiled loops of the rounding, each over some outputs of one group of inputs.

A weight has m outputs and n inputs, shape (m, n); here n is the inputs of a group. What is written
to is named last. Everything is float32: a literal would make float64 of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plastic_core.linalg import Float32
from plastic_core.rounding.compiling import VECTORISED, compiled

FITTING_ROUNDS = 4
"""Of fitting levels to codes: what the first two leave to gain is 1 percent."""
FITTED_OUTPUTS = 64
"""Outputs whose levels are fitted before the first of them is rounded."""
ZERO, ONE = np.float32(0), np.float32(1)
LEAST_VARIANCE, LEAST_DETERMINANT = np.float32(1e-6), np.float32(1e-5)
INFINITY = np.float32(np.inf)
HALF_BITS = 13
"""Bits of a mantissa that float16 drops, and with them the smaller exponents."""
HALF_LARGEST, HALF_LEAST = np.float32(65504), np.float32(2.0**-14)
HALF_STEP, HALF_STEPS = np.float32(2.0**-24), np.float32(2.0**24)

Codes = NDArray[np.uint8]


@compiled()
def narrowed(x: np.float32, dropped: int) -> np.float32:
    """Round to the nearest number that has so many bits of the mantissa less, ties to even."""
    if dropped == 0:
        return x
    if dropped == HALF_BITS and abs(x) < HALF_LEAST:
        return np.float32(np.rint(x * HALF_STEPS) * HALF_STEP)
    bits = np.float32(x).view(np.uint32)
    odd = (bits >> np.uint32(dropped)) & np.uint32(1)
    bits += (np.uint32(1) << np.uint32(dropped - 1)) - np.uint32(1) + odd
    y = np.uint32((bits >> np.uint32(dropped)) << np.uint32(dropped)).view(np.float32)
    if dropped == HALF_BITS and abs(y) > HALF_LARGEST:
        return INFINITY
    return y


@compiled()
def nearest(t: np.float32, step: np.float32, start: np.float32, top: np.float32) -> np.float32:
    """Return the code of the level nearest to ``t``."""
    code = np.rint((t - start) / (step if step > ZERO else ONE))
    return min(max(code, ZERO), top)


@compiled(fastmath=VECTORISED)
def assign(
    T: Float32, w: Float32, step: np.float32, start: np.float32, top: np.float32, codes: Float32
) -> tuple[np.float32, np.float32]:
    """Give every entry its nearest code; return the error and the mean of the codes, weighted."""
    error, centre = ZERO, ZERO
    safe = step if step > ZERO else ONE
    for j in range(len(T)):
        code = min(max(np.rint((T[j] - start) / safe), ZERO), top)
        left = T[j] - (step * code + start)
        error += w[j] * left * left
        centre += w[j] * code
        codes[j] = code
    return error, centre


@compiled(fastmath=VECTORISED)
def code_moments(
    T: Float32, w: Float32, mean: np.float32, codes: Float32, centre: np.float32
) -> tuple[np.float32, np.float32]:
    """Return the variance of the codes, and their covariance with the entries, weighted."""
    variance, covariance = ZERO, ZERO
    for j in range(len(T)):
        offset = w[j] * (codes[j] - centre)
        variance += offset * (codes[j] - centre)
        covariance += offset * (T[j] - mean)
    return variance, covariance


@compiled(fastmath=VECTORISED)
def fitted(
    T: Float32, w: Float32, top: np.float32, dropped: int, codes: Float32
) -> tuple[np.float32, np.float32]:
    """Return step and start of nearly the least weighted squared error for one group of entries.

    Starts with levels from the least to the largest entry and in turn assigns every entry to its
    level and fits the levels to the codes by least squares (Lloyd's method, held to even spacing).
    The error never rises; the result is a local minimum. What the type cannot hold is infinite.
    """
    least, largest, mean = T[0], T[0], ZERO
    for j in range(len(T)):
        least, largest = min(least, T[j]), max(largest, T[j])
    for j in range(len(T)):
        mean += w[j] * T[j]
    best_step, best_start = narrowed((largest - least) / top, dropped), narrowed(least, dropped)
    if best_step == INFINITY or abs(best_start) == INFINITY:
        return best_step, best_start
    error, centre = assign(T, w, best_step, best_start, top, codes)
    for _ in range(FITTING_ROUNDS):
        variance, covariance = code_moments(T, w, mean, codes, centre)
        exact = covariance / variance if variance > LEAST_VARIANCE else best_step
        step, start = narrowed(exact, dropped), narrowed(mean - exact * centre, dropped)
        new, centre = assign(T, w, step, start, top, codes)
        if new < error:
            best_step, best_start, error = step, start, new
    return best_step, best_start


@compiled("void(float32[:,:], float32[:,::1], float32, int64, int64, float32[:,:])")
def round_entries(
    W: Float32, weights: Float32, top: np.float32, dropped: int, size: int, E: Float32
) -> None:
    """Give every group levels of its own and every entry the nearest one; keep the error.

    W and E may be the same memory; ``weights (n / size, size)`` sum to one in every group.
    """
    T, codes = np.empty(size, np.float32), np.empty(size, np.float32)
    for i in range(W.shape[0]):
        for group in range(len(weights)):
            first = group * size
            for j in range(size):
                T[j] = W[i, first + j]
            step, start = fitted(T, weights[group], top, dropped, codes)
            for j in range(size):
                E[i, first + j] = T[j] - (step * nearest(T[j], step, start, top) + start)


@compiled(
    "void(float32[:,:], float32[:,::1], float32[::1], float32, int64, "
    "float32[:,::1], float32[:,:], uint8[:,:], float32[:,:])"
)
def round_outputs(
    W: Float32,
    F: Float32,
    w: Float32,
    top: np.float32,
    dropped: int,
    T: Float32,
    levels: Float32,
    codes: Codes,
    E: Float32,
) -> None:
    """Round one input after the other; ``T`` is what they should be, given the groups before."""
    m, n = T.shape
    scratch = np.empty(n, np.float32)
    for i in range(m):
        target = T[i]
        step, start = fitted(target, w, top, dropped, scratch)
        levels[0, i], levels[1, i] = step, start
        for j in range(n):
            code = nearest(target[j], step, start, top)
            error = W[i, j] - (step * code + start)
            codes[i, j], E[i, j] = np.uint8(code), error
            for k in range(j + 1, n):
                target[k] += F[j, k] * error


@compiled()
def add_rows(factors: Float32, rows: Float32, total: Float32) -> None:
    """Add some rows, each times its factor."""
    for k in range(len(rows)):
        factor, row = factors[k], rows[k]
        for j in range(len(total)):
            total[j] += factor * row[j]


@compiled(
    "void(float32[:,:], float32[:,:], float32[:,::1], float32[:,::1], float32[:,::1], "
    "float32[::1], float32, int64, float32[:,:], uint8[:,:], float32[:,::1], float32[:,::1])"
)
def round_tile(
    W: Float32,
    KE: Float32,
    KEF: Float32,
    F: Float32,
    K: Float32,
    w: Float32,
    top: np.float32,
    dropped: int,
    levels: Float32,
    codes: Codes,
    E: Float32,
    IKE: Float32,
) -> None:
    """Round one output after the other, and of each one input after the other.

    Of what every entry makes up for, ``KE`` is ``K^T E`` of the tiles before, and ``KEF`` is
    ``(I + K)^T E F`` of the groups before. Leaves ``(I + K)^T E`` in ``IKE``.
    """
    m, n = E.shape
    target, scratch = np.empty(n, np.float32), np.empty(n, np.float32)
    for first in range(0, m, FITTED_OUTPUTS):
        last = min(first + FITTED_OUTPUTS, m)
        for i in range(first, last):
            above = IKE[i]
            for j in range(n):
                above[j] = KE[i, j]
            add_rows(K[:first, i], E[:first], above)
            for j in range(n):
                target[j] = W[i, j] + above[j] + KEF[i, j]
            levels[0, i], levels[1, i] = fitted(target, w, top, dropped, scratch)
        for i in range(first, last):
            above, step, start = IKE[i], levels[0, i], levels[1, i]
            add_rows(K[first:i, i], E[first:i], above)
            for j in range(n):
                target[j] = W[i, j] + above[j] + KEF[i, j]
            for j in range(n):
                code = nearest(target[j], step, start, top)
                error = W[i, j] - (step * code + start)
                codes[i, j], E[i, j] = np.uint8(code), error
                above[j] += error
                passed_on = above[j]
                for k in range(j + 1, n):
                    target[k] += F[j, k] * passed_on


@compiled(fastmath=VECTORISED)
def moments(
    codes: Float32, image: Float32, slope: Float32
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Return ``codes . image``, ``1 . image``, ``codes . slope`` and ``1 . slope``."""
    a, b, p, q = ZERO, ZERO, ZERO, ZERO
    for j in range(len(codes)):
        a += codes[j] * image[j]
        b += image[j]
        p += codes[j] * slope[j]
        q += slope[j]
    return a, b, p, q


@compiled()
def move_levels(
    image: Float32,
    sums: Float32,
    total: np.float32,
    dropped: int,
    levels: Float32,
    codes: Float32,
    slope: Float32,
) -> None:
    """Move the levels of one output to the best place for its codes, and its slope with them.

    Values that rise by X lower the loss by ``2 X . slope - X . R X``, and the slope by ``R X``;
    X is x codes + y.

    Args:
        image: ``R codes``.
        sums: The sums of the rows of R.
        total: The sum of all of R.
    """
    a, b, p, q = moments(codes, image, slope)
    determinant = a * total - b * b
    if not determinant > LEAST_DETERMINANT * a * total:
        return
    exact_step = levels[0] + (total * p - b * q) / determinant
    exact_start = levels[1] + (a * q - b * p) / determinant
    step, start = narrowed(max(exact_step, ZERO), dropped), narrowed(exact_start, dropped)
    x, y = step - levels[0], start - levels[1]
    twice = x * p + y * q
    if (twice + twice) - (a * x * x + b * x * y + b * x * y + total * y * y) > ZERO:
        levels[0], levels[1] = step, start
        for j in range(len(slope)):
            slope[j] -= x * image[j] + y * sums[j]


@compiled()
def move_codes(
    W: Float32, R: Float32, top: np.float32, levels: Float32, codes: Float32, slope: Float32
) -> None:
    """Move one code after the other of one output to its best place, and the slope with each."""
    n, step, start = len(codes), levels[0], levels[1]
    for j in range(n):
        value = step * codes[j] + start
        code = nearest(value + slope[j] / R[j, j], step, start, top)
        if code != codes[j]:
            codes[j] = code
            rise = step * code + start - value
            for k in range(n):
                slope[k] -= R[j, k] * rise


@compiled(
    "void(float32[:,:], float32[:,::1], float32[:,::1], float32, int64, "
    "float32[:,::1], float32[:,:], uint8[:,:], float32[:,:])"
)
def descend_outputs(
    W: Float32,
    image: Float32,
    R: Float32,
    top: np.float32,
    dropped: int,
    slope: Float32,
    levels: Float32,
    codes: Codes,
    E: Float32,
) -> None:
    """Move the levels and then the codes of every output; ``slope`` is ``E R``."""
    m, n = slope.shape
    sums = R.sum(axis=1)
    total, own, pair = sums.sum(), np.empty(n, np.float32), np.empty(2, np.float32)
    for i in range(m):
        for j in range(n):
            own[j] = codes[i, j]
        pair[0], pair[1] = levels[0, i], levels[1, i]
        move_levels(image[i], sums, total, dropped, pair, own, slope[i])
        move_codes(W[i], R, top, pair, own, slope[i])
        levels[0, i], levels[1, i] = pair[0], pair[1]
        for j in range(n):
            codes[i, j] = np.uint8(own[j])
            E[i, j] = W[i, j] - (pair[0] * own[j] + pair[1])


@compiled(
    "void(float32[:,:], float32[:,::1], float32[:,::1], float32[:,::1], float32, int64, "
    "float32[:,::1], float32[:,:], uint8[:,:], float32[:,:], float32[:,::1])"
)
def descend_tile(
    W: Float32,
    image: Float32,
    R: Float32,
    C: Float32,
    top: np.float32,
    dropped: int,
    slope: Float32,
    levels: Float32,
    codes: Codes,
    E: Float32,
    change: Float32,
) -> None:
    """Move the levels and then the codes of one output after the other, which all share C.

    ``slope`` is ``C E R`` before; ``change`` becomes what is added to E.
    """
    m, n = slope.shape
    sums = R.sum(axis=1)
    total, own, pair = sums.sum(), np.empty(n, np.float32), np.empty(2, np.float32)
    here, power = np.empty(n, np.float32), ZERO
    for i in range(m):
        power = C[i, i]
        add_rows(C[:i, i], slope[:i], slope[i])  # by now, of those before: what E R rose by
        for j in range(n):
            slope[i, j] /= power
            here[j] = slope[i, j]
            own[j] = codes[i, j]
        pair[0], pair[1] = levels[0, i], levels[1, i]
        move_levels(image[i], sums, total, dropped, pair, own, here)
        move_codes(W[i], R, top, pair, own, here)
        levels[0, i], levels[1, i] = pair[0], pair[1]
        for j in range(n):
            codes[i, j] = np.uint8(own[j])
            error = W[i, j] - (pair[0] * own[j] + pair[1])
            change[i, j] = error - E[i, j]
            E[i, j] = error
            slope[i, j] = here[j] - slope[i, j]
