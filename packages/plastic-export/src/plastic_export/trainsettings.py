"""The numbers of a training run, and the optimizer they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

Rate = float | Callable[[mx.array], mx.array]

OPTIMIZERS: dict[str, Callable[[Rate], optim.Optimizer]] = {
    "adamw": lambda rate: optim.AdamW(learning_rate=rate),
    "adam": lambda rate: optim.Adam(learning_rate=rate),
    "lion": lambda rate: optim.Lion(learning_rate=rate),
    "muon": lambda rate: optim.Muon(learning_rate=rate),
    "sgd": lambda rate: optim.SGD(learning_rate=rate, momentum=0.9),
    "adafactor": lambda rate: optim.Adafactor(
        learning_rate=rate, relative_step=False, scale_parameter=False
    ),
}
REPORT = 10  # steps between training losses, at most


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train.

    Attributes:
        steps: Batches to take.
        batch: Rows in a batch.
        window: Tokens that stay of a longer row.
        accumulate: Batches whose gradients make one update.
        optimizer: A key of ``OPTIMIZERS``.
        learning_rate: Of the first update after the warm-up.
        warmup: Updates during which the rate rises from 0.
        decay: Whether the rate then falls to 0 along a cosine.
        rank: Components per layer at the start.
        max_bytes: Ceiling on the bytes of all factors; None for none.
        evaluate_every: Batches between two validations. After each of them ranks may change and
            the state of the run is saved.
        evaluate_batches: Batches of a validation, the same ones each time; -1 for all.
        mask_prompt: Learn completions alone, not what is asked.
        grad_checkpoint: Compute activations twice rather than keep them.
        seed: Of the directions, the order of the data and everything else.
        plasticity: Further arguments of the `PlasticityManager`, by name.
    """

    steps: int = 1000
    batch: int = 4
    window: int = 2048
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 0
    decay: bool = True
    rank: int = 8
    max_bytes: int | None = None
    evaluate_every: int = 50
    evaluate_batches: int = 25
    mask_prompt: bool = False
    grad_checkpoint: bool = False
    seed: int = 0
    plasticity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("steps", "batch", "accumulate", "rank", "evaluate_every")
        for name, least in (*((name, 1) for name in names), ("window", 2), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}."
            )
        if self.evaluate_batches == 0 or self.evaluate_batches < -1:
            raise ValueError(
                f"`evaluate_batches` must be positive, or -1 for all, got {self.evaluate_batches}."
            )
        for name in ("steps", "evaluate_every"):
            if getattr(self, name) % self.accumulate:
                raise ValueError(
                    f"`{name}` must be a multiple of `accumulate` = {self.accumulate}, as ranks "
                    f"change between updates only, got {getattr(self, name)}."
                )
        if self.warmup >= self.updates:
            raise ValueError(
                f"`warmup` must be below the {self.updates} updates of the run, got {self.warmup}."
            )

    @property
    def updates(self) -> int:
        """Steps of the optimizer."""
        return self.steps // self.accumulate

    @property
    def report_every(self) -> int:
        """Batches between two training losses: a divisor of ``evaluate_every``."""
        return max(n for n in range(1, REPORT + 1) if self.evaluate_every % n == 0)

    def build_optimizer(self) -> optim.Optimizer:
        """Return the optimizer with its schedule, which is a function of its step alone."""
        return OPTIMIZERS[self.optimizer](self._rate())

    def record(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return asdict(self) | {"plasticity": dict(self.plasticity)}

    def _rate(self) -> Rate:
        rate: Rate = self.learning_rate
        if self.decay:
            rate = optim.cosine_decay(self.learning_rate, self.updates - self.warmup)
        if not self.warmup:
            return rate
        rising = optim.linear_schedule(0.0, self.learning_rate, self.warmup)
        after = rate if callable(rate) else _constant(rate)
        return optim.join_schedules([rising, after], [self.warmup])


def _constant(rate: float) -> Callable[[mx.array], mx.array]:
    return lambda step: mx.array(rate)
