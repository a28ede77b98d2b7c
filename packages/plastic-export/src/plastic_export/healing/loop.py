"""The loop of a healing: Adam on parameters of unit size, judged by what will be stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray
from plastic_runtime import Track, untracked

Arrays = dict[str, mx.array]
Rows = NDArray[np.intp]

LEARNING_RATE = 8e-3
MEASUREMENTS = 10
"""Times that the held-out divergence is measured after the start."""
_LARGEST_NORM = 1.0  # of the gradient, in nats per unit
_SMALLEST_UNIT = 2.0**-10  # for a tensor of zeros


@dataclass(frozen=True)
class HealingOptions:
    """The length and the rate of a healing.

    Attributes:
        steps: Steps of the optimizer, at least 1.
        batch: Windows per step, at least 1.
        learning_rate: Largest change of a parameter per step, in its units: a change of 1 moves a
            packed weight by about one step of its codes, a plain factor by half the root mean
            square of its tensor.
        seed: Decides the order of the windows.

    Note:
        The default rate is a heuristic. What was left of the held-out divergence after 60 steps
        of 4 windows (Llama of 0.9 M parameters), or 30 steps of 8 (the last row, 5.8 M):

        ============================  ======  ======  ======  ======
        rate                           0.004   0.012    0.03    0.08
        ============================  ======  ======  ======  ======
        2 bits, rounded                0.55    0.47    0.48    0.68
        4 bits, rounded                0.67    0.60    0.64    1.05
        factors, 60 % of the bytes     0.57    0.44    0.44    0.79
        3.5 bits, by predicted loss    0.77    0.77
        ============================  ======  ======  ======  ======

        With the defaults and 128 windows of 256 tokens 0.32 was left of 3 bits, rounded, and 0.57
        of 3.5 bits by predicted loss (5.8 M); on texts of two other kinds 0.50 and 0.45, 0.70 and
        0.75.

    Examples:
        >>> options = HealingOptions(steps=30)
        >>> print(options.steps, options.batch)
        30 8
    """

    steps: int = 200
    batch: int = 8
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"`learning_rate` must be a finite number above 0, got {self.learning_rate}."
            )


class HealTask(Protocol):
    """The task of a healing: a divergence that depends on named arrays."""

    def gradient(self, values: Mapping[str, mx.array], rows: Rows) -> Arrays:
        """Return the gradient of the mean divergence over these training windows, by name."""

    def divergence(self, values: Mapping[str, mx.array]) -> float:
        """Return the mean divergence over the held-out windows."""


@dataclass
class HealState:
    """All that a healing needs to go on.

    Attributes:
        step: How many steps are done.
        masters: The parameters divided by their units, float32.
        first: Adam's first moments.
        second: Adam's second moments.
        best: The values of the least held-out divergence so far, in their storage types.
        measured: ``(step, divergence)`` of every measurement.
    """

    step: int
    masters: Arrays
    first: Arrays
    second: Arrays
    best: Arrays
    measured: list[tuple[int, float]] = field(default_factory=list)


class Store(Protocol):
    """The place where the state is kept."""

    def load(self) -> HealState | None:
        """Return the last state saved, None at the start."""

    def save(self, state: HealState) -> None:
        """Replace the last state."""


def heal_values(
    task: HealTask,
    values: Mapping[str, mx.array],
    windows: int,
    options: HealingOptions,
    *,
    fractions: Mapping[str, float] | None = None,
    store: Store | None = None,
    track: Track = untracked,
) -> HealState:
    """Lower a divergence by Adam, and keep the best of what was measured, the start included.

    Gradients are taken at the values as they will be stored; the steps are added up in float32.
    Every parameter is divided by a unit that goes with the root mean square of its tensor, so that
    one rate, without a dimension, serves scales, biases and factors alike. The rate rises for a
    tenth of the steps and falls as half a cosine; gradients are clipped by their norm; one that is
    not finite is left out.

    Args:
        task: What to lower. It must be deterministic.
        values: Where to start, by name, in the types in which they are stored.
        windows: How many training windows there are. Each is seen once before any is seen again.
        options: How long and how fast.
        fractions: What part of the root mean square of its tensor the unit of a parameter is, by
            name, powers of two; 1 for those that are not named.
        store: Keeps the state at every measurement: about ten times, and at the start. A later
            call goes on from there, to bit for bit the same end on a CPU.
        track: Wraps the loop over the steps.

    Returns:
        The last state; its ``best`` is never worse than ``values``.

    Raises:
        ValueError: If the values, or the divergence at the start, are not finite.

    References:
        Kingma and Ba, *Adam*, 2015, arXiv 1412.6980, algorithm 1. Steps relative to the size of
        the parameters: Shazeer and Stern, *Adafactor*, 2018, arXiv 1804.04235, section 8. The
        rates are a heuristic.
    """
    parts = fractions or {}
    units = {name: _unit(name, v) * parts.get(name, 1.0) for name, v in values.items()}
    dtypes = {name: value.dtype for name, value in values.items()}
    state = (store.load() if store is not None else None) or _start(values, units)
    if not state.measured:
        _measure(task, state, dict(values), store)
    optimizer = _optimizer(options, state)
    every = math.ceil(options.steps / MEASUREMENTS)
    for step in track(range(state.step, options.steps), "healing"):
        rows = batch_rows(step, windows, options.batch, options.seed)
        with np.errstate(over="ignore", invalid="ignore"):  # at too high a rate; it is measured
            gradient = task.gradient(_stored(state.masters, units, dtypes), rows)
            _advance(state, optimizer, gradient, units)
            if state.step % every == 0 or state.step == options.steps:
                _measure(task, state, _stored(state.masters, units, dtypes), store)
    return state


def batch_rows(step: int, windows: int, batch: int, seed: int) -> Rows:
    """Return the windows that a step sees: every pass over the text has a new order.

    A function of its arguments alone, so that a step can be taken again.
    """
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), windows)
    orders = {e: np.random.default_rng([seed, e]).permutation(windows) for e in set(epochs)}
    return np.array([orders[e][i] for e, i in zip(epochs, places, strict=True)])


def _unit(name: str, value: mx.array) -> float:
    """Return the root mean square as a power of two, by which float32 is divided exactly."""
    size = math.sqrt(float(mx.square(value.astype(mx.float32)).mean()))
    if not math.isfinite(size):
        raise ValueError(f"`values` must be finite, and {name!r} is not; compress again")
    return float(2.0 ** round(math.log2(max(size, _SMALLEST_UNIT))))


def _start(values: Mapping[str, mx.array], units: Mapping[str, float]) -> HealState:
    masters = {name: v.astype(mx.float32) / units[name] for name, v in values.items()}
    zeros = {name: mx.zeros(v.shape) for name, v in values.items()}
    return HealState(0, masters, dict(zeros), dict(zeros), dict(values))


def _stored(masters: Arrays, units: Mapping[str, float], dtypes: Mapping[str, mx.Dtype]) -> Arrays:
    return {name: (z * units[name]).astype(dtypes[name]) for name, z in masters.items()}


def _measure(task: HealTask, state: HealState, values: Arrays, store: Store | None) -> None:
    """Measure, keep the values if they are the best, save."""
    divergence = task.divergence(values)
    if not state.measured and not math.isfinite(divergence):
        raise ValueError("its divergence from the reference is not finite before the first step")
    if state.measured and divergence < min(d for _, d in state.measured if math.isfinite(d)):
        state.best = values
    state.measured.append((state.step, divergence))
    if store is not None:
        store.save(state)


def _optimizer(options: HealingOptions, state: HealState) -> optim.Adam:
    """Adam, its moments and its count of steps those of the state."""
    warm = math.ceil(options.steps / 10)

    def rate(step: mx.array) -> mx.array:
        t = step.astype(mx.float32)
        cosine = 0.5 * (1 + mx.cos(math.pi * t / options.steps))
        return options.learning_rate * mx.minimum((t + 1) / warm, 1) * cosine

    optimizer = optim.Adam(rate, betas=[0.9, 0.99], eps=1e-12, bias_correction=True)
    moments = {n: {"m": state.first[n], "v": state.second[n]} for n in state.masters}
    optimizer.state.update(moments | {"step": mx.array(state.step, mx.uint64)})
    optimizer.init(state.masters)
    return optimizer


def _advance(
    state: HealState, optimizer: optim.Adam, gradient: Arrays, units: Mapping[str, float]
) -> None:
    """One step of the masters and the moments."""
    scaled = {n: g.astype(mx.float32) * units[n] for n, g in gradient.items()}
    clipped, norm = optim.clip_grad_norm(scaled, _LARGEST_NORM)  # type: ignore[no-untyped-call]
    if math.isfinite(float(norm)):
        state.masters = optimizer.apply_gradients(clipped, state.masters)
        state.first = {n: optimizer.state[n]["m"] for n in state.masters}
        state.second = {n: optimizer.state[n]["v"] for n in state.masters}
        mx.eval(state.masters, state.first, state.second)
    else:
        optimizer.state["step"] = optimizer.step + 1
    state.step += 1
