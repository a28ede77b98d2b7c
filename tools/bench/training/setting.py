"""The setting of every method: the base, the texts, the loop, the measures."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data import topics
from statistics import mean, median
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from plastic_export import load_model, load_tokenizer, text_windows
from plastic_runtime import Gauge

DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"
SCALE = 20.0  # mlx-lm's default
HEAD = "lm_head"


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, int32, shape ``(windows, length + 1)``."""

    train: np.ndarray
    valid: np.ndarray
    old: list[np.ndarray]


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
    """Seconds: of the steps, of looking for a change, of steps with a change."""

    steps: list[float]
    between: list[float]
    changes: list[float]


class TrainingBench:
    """The base, the texts, and the loop that is the same for all."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        tokenizer = load_tokenizer(options.source)
        cut = partial(text_windows, tokenizer, length=options.length + 1)
        train, valid, old = texts(options)
        self.texts = Texts(
            np.array(cut(train)),
            np.array(cut(valid, limit=options.windows)),
            [np.array(cut(text, limit=options.windows)) for text in old],
        )

    def base(self) -> nn.Module:
        """A fresh frozen base in float32."""
        model = load_model(self.options.source)
        model.set_dtype(mx.float32)
        model.freeze()
        return model

    def rate(self, step: mx.array) -> mx.array:
        """Learning rate after ``step`` steps."""
        o, t = self.options, step.astype(mx.float32)
        cosine = 0.5 * (1 + mx.cos(math.pi * mx.minimum(t / o.steps, 1)))
        rate: mx.array = o.rate * mx.minimum((t + 1) / o.warm, 1) * cosine
        return rate

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
        """Mean loss over windows, eight at a time."""
        parts = [mx.array(windows[i : i + 8]) for i in range(0, len(windows), 8)]
        return float(
            np.average([float(loss(model, p)) for p in parts], weights=list(map(len, parts)))
        )

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

        times = Times([], [], [])
        for done, batch in enumerate(self.batches(seed)):
            start = time.perf_counter()
            changed = done > 0 and between(done)
            middle = time.perf_counter()
            mx.eval(step(batch), state)
            end = time.perf_counter()
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
    """Cross entropy of the next token, in nats."""
    logits = model(batch[:, :-1])
    return nn.losses.cross_entropy(logits, batch[:, 1:], reduction="mean")


def texts(options: argparse.Namespace) -> tuple[str, str, list[str]]:
    """Text to train on, to validate on, and of the old kind."""
    if options.train is None:
        text = "\n\n".join(topics.topics.values())
        cut = len(text) * 9 // 10
        train, valid = text[:cut], text[cut:]
    else:
        train, valid = options.train.read_text(), options.valid.read_text()
    old = options.old or [DATA / "heldout.txt", DATA / "heldout-prose.txt"]
    return train, valid, [path.read_text() for path in old]
