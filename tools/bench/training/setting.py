"""The setting of every method: the base, the texts, the loop, the measures."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.utils import dequantize_model
from plastic_core.linalg import on_cpu
from plastic_export import load_model
from plastic_runtime import CautiousAdamW, Gauge

from training.texts import Texts, learnt, tokens_of

SCALE = 20.0  # mlx-lm's default
HEAD = "lm_head"


@dataclass(frozen=True)
class RunResult:
    """One run.

    Attributes:
        method: Who.
        rank: The fixed rank whose bytes were the budget.
        seed: The seed of the batches and the initialisation.
        nbytes: The bytes of the factors awake at the end.
        most: The bytes of the factors awake at the start.
        loss: The loss on the validation text, in nats per token.
        old: The losses on the old texts.
        step: Median seconds of a step.
        between: Share of the steps' time that was spent between changes on looking for one.
        change: Seconds per change, over the median step: measured, decided, cut, compiled again.
    """

    method: str
    rank: int
    seed: int
    nbytes: int
    most: int
    loss: float
    old: list[float]
    step: float
    between: float = 0.0
    change: float = 0.0


@dataclass
class Times:
    """Seconds: of the steps, of looking for a change, of steps with a change; and every loss."""

    steps: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class TrainingBench:
    """The base, the texts, and the loop that is the same for all."""

    def __init__(self, options: argparse.Namespace, texts: Texts) -> None:
        self.options, self.texts = options, texts

    def base(self) -> nn.Module:
        """A fresh frozen base in float32; on the CPU codes are what they stand for."""
        model = load_model(self.options.source)
        if on_cpu():
            model = dequantize_model(model)
        model.set_dtype(mx.float32)
        model.freeze()
        return model

    def rate(self, step: mx.array) -> mx.array:
        """Learning rate after ``step`` steps."""
        o, t = self.options, step.astype(mx.float32)
        cosine = 0.5 * (1 + mx.cos(math.pi * mx.minimum(t / o.steps, 1)))
        rate: mx.array = o.rate * mx.minimum((t + 1) / o.warm, 1) * cosine
        return rate

    def optimizer(self, *, cautious: bool = False) -> optim.Adam:
        """Adam at that rate; mlx's own leaves the bias of the moments in unless it is asked.

        Args:
            cautious: Whether it is the cautious one where the options do not say.
        """
        o = self.options
        if cautious if o.cautious is None else o.cautious:
            return CautiousAdamW(self.rate, weight_decay=0.0, bias_correction=o.corrected)
        return optim.Adam(self.rate, bias_correction=o.corrected)

    def batches(self, seed: int) -> Iterator[mx.array]:
        """The batches of a run, each window once before any is seen again."""
        size, rng = self.options.batch, np.random.default_rng(seed)
        order: list[int] = []
        for _ in range(self.options.steps):
            while len(order) < size:
                order.extend(rng.permutation(len(self.texts.train)).tolist())
            yield mx.array(self.texts.train[order[:size]])
            del order[:size]

    def probe(self, seed: int) -> mx.array:
        """Training windows that components are priced on."""
        rng = np.random.default_rng([seed, 1])
        chosen = rng.choice(len(self.texts.train), self.options.probe, replace=False)
        return mx.array(self.texts.train[chosen])

    def gauge(self) -> Gauge:
        """Return our gauge: at rank 8 a step of ``U`` is that of mlx-lm's LoRA."""
        length = self.options.norm
        return Gauge(SCALE * math.sqrt(8 / 3) / length, length)

    def measure(self, model: nn.Module, windows: np.ndarray) -> float:
        """Mean loss over the tokens that are to be learnt, eight windows at a time."""
        parts = [mx.array(windows[i : i + 8]) for i in range(0, len(windows), 8)]
        weights = [int(learnt(part).sum()) for part in parts]
        return float(np.average([float(loss(model, part)) for part in parts], weights=weights))

    def train(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        seed: int,
        between: Callable[[int], bool] = lambda step: False,
    ) -> Times:
        """Train; ``between`` is called after every step and tells whether it changed ranks."""
        gradient = nn.value_and_grad(model, loss)
        state = [model.state, optimizer.state]

        @partial(mx.compile, inputs=state, outputs=state)
        def step(batch: mx.array) -> mx.array:
            value, grads = gradient(model, batch)
            optimizer.update(model, grads)
            return cast(mx.array, value)

        times = Times()
        for done, batch in enumerate(self.batches(seed)):
            start = time.perf_counter()
            changed = done > 0 and between(done)
            middle = time.perf_counter()
            value = step(batch)
            mx.eval(value, state)
            end = time.perf_counter()
            times.losses.append(float(value))
            if changed:
                times.changes.append(end - start)
            else:
                times.between.append(middle - start)
                times.steps.append(end - middle)
        return times

    def result(
        self,
        method: str,
        rank: int,
        seed: int,
        model: nn.Module,
        nbytes: int,
        most: int,
        times: Times,
    ) -> RunResult:
        """Measure what came of a run."""
        model.eval()
        step = median(times.steps)
        return RunResult(
            method,
            rank,
            seed,
            nbytes,
            most,
            self.measure(model, self.texts.valid),
            [self.measure(model, windows) for windows in self.texts.old],
            step,
            median(times.between) / step,
            mean(t / step - 1 for t in times.changes) if times.changes else 0.0,
        )


def loss(model: nn.Module, batch: mx.array) -> mx.array:
    """Cross entropy of the next token, in nats, over the tokens that are to be learnt."""
    tokens, counted = tokens_of(batch), learnt(batch)
    each = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (each * counted).sum() / counted.sum()
