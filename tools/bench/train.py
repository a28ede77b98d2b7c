"""Ranks that follow what training needs, beside fixed ranks and AdaLoRA, at equal bytes.

    uv run tools/bench/train.py                        the checkpoint that the repository ships
    uv run tools/bench/train.py SRC --train FILE --valid FILE --old FILE --old FILE
    uv run tools/bench/train.py --memory               what a smaller rank frees, nothing else
    uv run tools/bench/train.py --dial                 what is forgotten, by a factor on every S

Every method sees the same steps, batches, learning rates and optimizer (Adam, a linear rise and
half a cosine) on the same frozen base in float32. Bytes are those of the factors awake at the end,
all counted. ``lora`` is mlx-lm's own, on the layers it takes by default; ``lora+head`` has the
output head too; ``adalora`` is the published rule. Ours starts with more bytes than it ends with
and gives the head more of them than the other layers; ``plastic x 0.7`` is the same run with every
``S`` times 0.7, on the way back to the base. ``old`` texts are of the kind the base was trained on:
what is forgotten.

Results are kept, line by line, in ``--results``: a run that is there already is not made again, and
``--report`` prints the tables of what is there. On Linux ``LD_PRELOAD=libopenblas.so.0`` makes
this many times faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from pydoc_data import topics
from statistics import mean, median, stdev
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from adalora import NAMES, AdaLoraRule, Allocator, svd_layers
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from plastic_core import projections
from plastic_export import load_model, load_tokenizer, text_windows
from plastic_runtime import Gauge, PlasticityManager, Schedule, SleepStore, attach, find_rank_layers
from rich.console import Console
from rich.table import Table

DATA = Path(__file__).parents[2] / "tests-integration" / "data" / "stdlib-llama"
SCALE = 20.0  # mlx-lm's default
TURNED = 0.7  # chosen on one seed at rank 8 (``--dial``)
DIALLED = f"plastic x {TURNED:g}"
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
        rank: Of the fixed rank whose bytes were the budget.
        seed: Of the batches and the initialisation.
        nbytes: Of the factors awake at the end.
        most: Of the factors awake at the start.
        loss: On the validation text, in nats per token.
        old: On the old texts.
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
        """Of ours: at rank 8 a step of ``U`` is that of mlx-lm's LoRA."""
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


@dataclass
class Times:
    """Seconds: of the steps, of looking for a change, of steps with a change."""

    steps: list[float]
    between: list[float]
    changes: list[float]


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


def lora(bench: TrainingBench, rank: int, seed: int, *, head: bool = False) -> list[RunResult]:
    """mlx-lm's LoRA at one rank."""
    model = bench.base()
    mx.random.seed(seed)
    config: dict[str, Any] = {"rank": rank, "scale": SCALE, "dropout": 0.0}
    if head:
        config["keys"] = {p.path for p in projections(model)} | {HEAD}
    linear_to_lora_layers(model, -1, config)
    times = bench.train(model, optim.Adam(bench.rate), seed)
    nbytes = trainable_bytes(model)
    name = "lora+head" if head else "lora"
    return [bench.result(name, rank, seed, model, nbytes, nbytes, times)]


def adalora(bench: TrainingBench, rank: int, seed: int) -> list[RunResult]:
    """AdaLoRA that ends at the bytes of a fixed rank, from 1.5 times the rank as in the paper."""
    model = bench.base()
    layers = svd_layers(model, math.ceil(1.5 * rank), bench.options.adalora_scale, seed)
    allocator = Allocator(layers, AdaLoraRule(budget(bench, rank), bench.options.steps))
    optimizer = optim.Adam(bench.rate)

    def penalised(model: nn.Module, batch: mx.array) -> mx.array:
        penalty = sum((layer.penalty() for layer in layers.values()), mx.array(0.0))
        return loss(model, batch) + allocator.rule.gamma * penalty / len(layers)

    gradient = nn.value_and_grad(model, penalised)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: mx.array) -> tuple[mx.array, Any]:
        value, grads = gradient(model, batch)
        optimizer.update(model, grads)
        return value, grads

    times = Times([], [], [])
    for done, batch in enumerate(bench.batches(seed), start=1):
        start = time.perf_counter()
        value, grads = step(batch)
        mx.eval(value, state)
        flat: Any = dict(tree_flatten(grads))
        allocator.observe({p: {n: flat[f"{p}.{n}"] for n in NAMES} for p in layers})
        allocator.allocate(done)
        mx.eval(state)
        times.steps.append(time.perf_counter() - start)
    times.between.append(0.0)
    return [bench.result("adalora", rank, seed, model, allocator.nbytes, allocator.first, times)]


def our_runs(
    bench: TrainingBench, rank: int, seed: int, factors: Sequence[float] = (1.0, TURNED)
) -> list[RunResult]:
    """Ours: every layer and the head, from more bytes than allowed down to those of the rank.

    Returns:
        One result per factor on every ``S``: an interpolation between the base and what was
        trained (Wortsman et al., *Robust fine-tuning of zero-shot models*, arXiv 2109.01903).
    """
    o, model = bench.options, bench.base()
    last = budget(bench, rank)
    also = {HEAD: o.start * o.head * rank} if HEAD in model else {}
    gauge = bench.gauge()
    layers = attach(model, o.start * rank, also=also, gauge=gauge, seed=seed)
    optimizer = optim.Adam(bench.rate)
    first = sum(layer.nbytes for layer in layers.values())
    schedule = Schedule(max(first, last), last, begin=o.begin, end=o.end, every=o.every)
    probe = bench.probe(seed)
    manager = PlasticityManager(
        model, optimizer, loss=lambda: loss(model, probe), schedule=schedule, gauge=gauge
    )
    times = bench.train(model, optimizer, seed, lambda done: bool(manager.advance(done)))
    if o.verbose:
        print(manager.ranks(), file=sys.stderr)
    parts = {path: layer.factors() for path, layer in find_rank_layers(model).items()}
    found = []
    for factor in factors:
        for path, layer in find_rank_layers(model).items():
            U, S, Vh = parts[path]
            layer.set_factors(U, factor * S, Vh)
        name = "plastic" if factor == 1 else f"plastic x {factor:g}"
        found.append(bench.result(name, rank, seed, model, manager.bytes_awake, first, times))
    return found


METHODS: dict[str, Callable[[TrainingBench, int, int], list[RunResult]]] = {
    "lora": lora,
    "lora+head": partial(lora, head=True),
    "adalora": adalora,
    "plastic": our_runs,
}


def budget(bench: TrainingBench, rank: int) -> int:
    """Bytes of mlx-lm's LoRA of a rank, on the layers it takes by default."""
    shapes = [p.shape for p in projections(bench.base())]
    return sum(4 * min(rank, *shape) * sum(shape) for shape in shapes)


def trainable_bytes(model: nn.Module) -> int:
    """Bytes of all that trains."""
    trainable = model.trainable_parameters()
    flat: Any = tree_flatten(trainable)
    return sum(array.nbytes for _, array in flat)


def runs(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """All runs, seed by seed."""
    for seed in range(options.seeds):
        for rank in options.ranks:
            for method in options.methods:
                yield method, rank, seed


def measured(bench: TrainingBench) -> list[RunResult]:
    """Make all runs that are not on file yet."""
    options = bench.options
    file: Path | None = options.results
    found = on_file(file)
    for method, rank, seed in runs(options):
        if (method, rank, seed) in found:
            continue
        for result in METHODS[method](bench, rank, seed):
            found[result.method, rank, seed] = result
            line = json.dumps(asdict(result))
            print(line, file=sys.stderr, flush=True)
            if file is not None:
                with file.open("a") as opened:
                    opened.write(line + "\n")
    asked = {(rank, seed) for _, rank, seed in runs(options)}
    return [r for r in found.values() if (r.rank, r.seed) in asked]


def on_file(file: Path | None) -> dict[tuple[str, int, int], RunResult]:
    """Finished runs by method, rank and seed."""
    lines = [] if file is None or not file.exists() else file.read_text().splitlines()
    return {(r.method, r.rank, r.seed): r for r in (RunResult(**json.loads(x)) for x in lines)}


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def comparison_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--train", type=Path, help="text to adapt to (Python's help topics)")
    parser.add_argument("--valid", type=Path, help="text of the same kind, held out")
    parser.add_argument("--old", type=Path, action="append", help="text of the base's own kind")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens per window (128)")
    parser.add_argument("--windows", type=int, default=32, help="per held-out text (32)")
    parser.add_argument("--rate", type=float, default=3e-4, help="largest learning rate (3e-4)")
    parser.add_argument("--warm", type=int, default=10, help="steps of its rise (10)")
    parser.add_argument("--probe", type=int, default=4, help="windows to price on (4)")
    parser.add_argument("--start", type=int, default=4, help="times the rank at the start (4)")
    parser.add_argument("--head", type=int, default=3, help="that rank of the head over it (3)")
    parser.add_argument("--begin", type=int, default=20, help="steps to the first change (20)")
    parser.add_argument("--end", type=int, default=20, help="steps to the last change (20)")
    parser.add_argument("--every", type=int, default=10, help="steps between changes (10)")
    parser.add_argument("--norm", type=float, default=0.3, help="length of the rows of Vh (0.3)")
    parser.add_argument("--adalora-scale", type=float, default=1000.0)
    parser.add_argument("--report", action="store_true", help="print what is on file")
    parser.add_argument("--dial", action="store_true", help="turn every S down, nothing else")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--results", type=Path, help="file of finished runs, to go on from")
    parser.add_argument("--verbose", action="store_true", help="print final ranks")
    return parser.parse_args()


def main() -> None:
    """Print one row per method and size."""
    options = comparison_options()
    console = Console(width=140)
    if options.memory:
        console.print(memory(TrainingBench(options)))
        return
    if options.dial:
        console.print(dial(TrainingBench(options)))
        return
    if options.report:
        results = list(on_file(options.results).values())
    else:
        results = measured(TrainingBench(options))
    console.print(table(results), "")
    console.print(aim_table(results))


def table(results: list[RunResult]) -> Table:
    """One row per size and method; the step is over that of the fixed rank."""
    columns = ("bytes of rank", "method", "seeds", "bytes", "at the start", "loss", "old", "step")
    rows = Table(*columns, title="Training", box=None)
    for rank in sorted({r.rank for r in results}):
        fixed = [r.step for r in results if (r.method, r.rank) == ("lora", rank)]
        for method in (*METHODS, DIALLED):
            own = [r for r in results if (r.method, r.rank) == (method, rank)]
            if own:
                old = " / ".join(f"{mean(x):.3f}" for x in zip(*(r.old for r in own), strict=True))
                step = median(r.step for r in own)
                rows.add_row(
                    str(rank),
                    method,
                    str(len(own)),
                    f"{own[0].nbytes:,}",
                    f"{own[0].most:,}",
                    spread([r.loss for r in own]),
                    old,
                    f"{step / median(fixed):.2f}" if fixed else "",
                )
    return rows


def aim_table(results: list[RunResult]) -> Table:
    """What is aimed at, and what this run shows."""
    rows = Table("what", "target", "measured", "met", title="Targets", box=None)

    def row(what: str, target: str, measured: str, met: bool) -> None:
        rows.add_row(what, target, measured, "yes" if met else "no")

    losses: dict[tuple[str, int], list[float]] = {}
    old: dict[tuple[str, int], float] = {}
    for r in results:
        losses.setdefault((r.method, r.rank), []).append(r.loss)
    for key in losses:
        old[key] = mean(mean(r.old) for r in results if (r.method, r.rank) == key)
    for rank in sorted({r.rank for r in results}):
        for name in ("plastic", DIALLED):
            fixed, ours = losses.get(("lora", rank)), losses.get((name, rank))
            if fixed and ours:
                gap = mean(fixed) - mean(ours)
                noise = sum(stdev(x) if len(x) > 1 else 0.0 for x in (fixed, ours))
                what = f"{name}: loss below fixed rank {rank}, nats"
                row(what, "> spread", f"{gap:.3f} (spread {noise:.3f})", gap > noise)
                more = old[name, rank] - old["lora", rank]
                what = f"{name}: old texts above fixed rank {rank}, nats"
                row(what, "<= 0", f"{more:.3f}", more <= 0)
    share, where = bytes_to_reach(results, 16)
    row(f"bytes to reach the loss of rank 16 ({where})", "<= 60%", f"{share:.0%}", share <= 0.6)
    mine = [r for r in results if r.method == "plastic"]
    between, change = (max(r.between for r in mine), median(r.change for r in mine))
    row("time between changes, over a step", "<= 2%", f"{between:.2%}", between <= 0.02)
    row("time of a change, in steps", "<= 3", f"{change:.1f}", change <= 3)
    return rows


def bytes_to_reach(results: list[RunResult], rank: int) -> tuple[float, str]:
    """The fewest of our bytes whose loss is that of a fixed rank or less, over its bytes."""
    fixed = [r for r in results if (r.method, r.rank) == ("lora", rank)]
    goal = mean(r.loss for r in fixed) if fixed else -math.inf
    for own in sorted({r.rank for r in results if r.method == "plastic"}):
        ours = [r for r in results if (r.method, r.rank) == ("plastic", own)]
        if mean(r.loss for r in ours) <= goal:
            return ours[0].nbytes / fixed[0].nbytes, f"the bytes of rank {own}"
    return math.inf, "never"


def memory(bench: TrainingBench) -> Table:
    """Active memory after a fall in bytes, over that of a run built at the ranks it ends with."""
    rank = bench.options.ranks[0]
    last = budget(bench, rank)
    rows = Table("run", "bytes awake", "active memory", title="Memory", box=None)
    with tempfile.TemporaryDirectory() as folder, SleepStore(folder) as sleep:
        model, gauge = bench.base(), bench.gauge()
        layers = attach(model, 4 * rank, also={HEAD: 12 * rank}, gauge=gauge)
        optimizer, probe = optim.Adam(bench.rate), bench.probe(0)
        manager = PlasticityManager(
            model, optimizer, loss=lambda: loss(model, probe), gauge=gauge, sleep=sleep
        )
        before = settled(bench, model, optimizer)
        rows.add_row("before", f"{manager.bytes_awake:,}", f"{before:,}")
        manager.reallocate(last)
        after = settled(bench, model, optimizer)
        ranks = manager.ranks()
        rows.add_row("after", f"{manager.bytes_awake:,}", f"{after:,}")
        del manager, model, layers, optimizer
    model = bench.base()
    layers = attach(model, 0, also=[HEAD])
    for path, layer in layers.items():
        layer.grow(ranks[path], key=mx.random.key(0))
    fresh = settled(bench, model, optim.Adam(bench.rate))
    rows.add_row("built so", f"{sum(x.nbytes for x in layers.values()):,}", f"{fresh:,}")
    rows.add_row("after / built so", "", f"{after / fresh:.4f}")
    return rows


def dial(bench: TrainingBench) -> Table:
    """Loss and what is forgotten as every S of one run of ours is turned down."""
    rows = Table("run", "loss", "old", title=f"Bytes of rank {bench.options.ranks[0]}", box=None)
    for r in our_runs(bench, bench.options.ranks[0], 0, (1.0, 0.9, 0.8, 0.7, 0.6)):
        rows.add_row(r.method, f"{r.loss:.4f}", " / ".join(f"{x:.3f}" for x in r.old))
    return rows


def settled(bench: TrainingBench, model: nn.Module, optimizer: optim.Optimizer) -> int:
    """Active memory in bytes after a few steps."""
    bench.train(model, optimizer, 0)
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


if __name__ == "__main__":
    main()
