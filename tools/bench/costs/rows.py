"""The rows of the table: targets, figures, met or missed.

Ratios are of processor seconds, with those of the clock in brackets; seconds by themselves are
those of the clock, with processor seconds in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kept.measurements import STOPPED, Figures, Measurements, NotMeasured

from costs.paper import seven_billion
from costs.real import PEERS
from costs.scale import Scale

GiB, MB = 2**30, 1e6
BITS_PER_WEIGHT = 3.5
MANY_CORES = 10
LINEAR = 1.05  # of an exponent that is fitted


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        what: What was measured.
        target: What it should be.
        figure: What it is, or why there is none.
        met: Whether it is as it should be; None where there is no figure.
    """

    what: str
    target: str
    figure: str
    met: bool | None = None


@dataclass(frozen=True)
class Bench:
    """What every row needs.

    Attributes:
        measure: Makes the measurements.
        peers: Makes those of peers, which may be stopped.
        scale: How much is measured.
        model: Folder of the real model.
        checkpoints: Folders by name, for the quality of plans by cheap prices.
        text: Calibration text of all of them.
        heldout: Text that divergences are measured on.
    """

    measure: Measurements
    peers: Measurements
    scale: Scale
    model: str
    checkpoints: dict[str, str]
    text: str
    heldout: str

    def texts(self) -> dict[str, Any]:
        """The settings that say what is read."""
        amount = {"windows": self.scale.windows, "window": self.scale.window}
        return {"text": self.text, "heldout": self.heldout, **amount}


def guarded(what: str, target: str, line: Callable[[], Line]) -> Line:
    """Return a line, or one that says why there is no figure."""
    try:
        return line()
    except NotMeasured as error:
        return Line(what, target, str(error))


def compression(bench: Bench) -> Iterator[Line]:
    """``plan`` and ``compress`` in mixed bits, over each of mlx-lm's quantisers."""
    for method in PEERS:
        most = 1.5 if method == "gptq" else 1.0
        yield over_peer(bench, "mixed", method, most)


def corrected(bench: Bench) -> Iterator[Line]:
    """The same with corrections."""
    yield over_peer(bench, "corrected", "gptq", 3.0)


def over_peer(bench: Bench, format: str, method: str, most: float) -> Line:
    """Our time over that of one peer."""
    what = f"plan + compress, {format}, over {method} of mlx-lm"
    target = f"at most {most:g}"
    shared = {"source": bench.model, **bench.texts(), "bits_per_weight": BITS_PER_WEIGHT}

    def line() -> Line:
        ours = bench.measure.of("ours", **shared, format=format)
        theirs = bench.peers.of("peer", **shared, method=method, steps=bench.scale.steps)
        if STOPPED in theirs:
            return stopped(ours["cpu"], theirs[STOPPED])
        ratio, wall = (ours[t] / theirs[t] for t in ("cpu", "wall"))
        times = f"{ours['cpu']:.0f} s / {theirs['cpu']:.0f} s"
        quality = f"{1e3 * ours['kl']:.0f} and {1e3 * theirs['kl']:.0f} millinats"
        figure = f"{ratio:.2f} ({wall:.2f}), {times}, {quality}"
        return Line(what, target, figure, ratio <= most)

    def stopped(seconds: float, most_of_theirs: float) -> Line:
        """A peer that took longer than it was let: the ratio is below what is printed."""
        ratio = seconds / most_of_theirs
        figure = f"below {ratio:.2f}, {seconds:.0f} s / stopped after {most_of_theirs:.0f} s"
        return Line(what, target, figure, True if ratio <= most else None)

    return guarded(what, target, line)


def price_of_one(bench: Bench) -> Iterator[Line]:
    """One matrix in all widths and group sizes."""
    side = bench.scale.side
    what = f"price of {side} x {side}, six widths, three group sizes"
    memory, limit, most = f"{what}: memory above weight and Grams", "at most 0.6 GiB", 0.6

    def figures() -> Figures:
        return bench.measure.of("price", rows=side, columns=side, format="mixed")

    def line() -> Line:
        added = figures()["added"] / GiB
        return Line(memory, limit, f"{added:.2f} GiB", added <= most)

    yield seconds(what, figures, 6)
    yield guarded(memory, limit, line)


def rounding(bench: Bench) -> Iterator[Line]:
    """One matrix as it is written."""
    side = bench.scale.side
    what = f"full rounding of {side} x {side} at 4 bits, both Grams, two descents"
    yield seconds(what, lambda: bench.measure.of("round", rows=side, columns=side, bits=4), 8)


def seconds(what: str, figures: Callable[[], Figures], most: float) -> Line:
    """Seconds of the clock against the most that are allowed."""
    target = f"at most {most:g} s"

    def line() -> Line:
        found = figures()
        figure = f"{found['wall']:.1f} s (CPU {found['cpu']:.1f} s)"
        return Line(what, target, figure, found["wall"] <= most)

    return guarded(what, target, line)


def paper(bench: Bench) -> Iterator[Line]:
    """A model of 7 billion parameters, from its parts."""
    what, most = "a 7B model on paper, per billion parameters, two cores", 1500
    target = f"at most {most} s"

    def line() -> Line:
        total = seven_billion(bench.measure, bench.scale)
        two, many = (total.per_billion(cores) for cores in (2, MANY_CORES))
        parts = ", ".join(f"{name} {s:.0f} s" for name, s in total.parts.items())
        whole = f"{sum(total.parts.values()):.0f} s of CPU for {total.parameters / 1e9:.2f} billion"
        figure = f"{two:.0f} s; {MANY_CORES} cores: {many:.0f} s; {parts}; {whole}"
        return Line(what, target, figure, two <= most)

    yield guarded(what, target, line)


def prices(bench: Bench) -> Iterator[Line]:
    """The divergence of plans by cheap prices over that of plans by full ones."""
    for name, folder in bench.checkpoints.items():
        yield over_full(bench, name, folder)


def over_full(bench: Bench, name: str, folder: str) -> Line:
    """One checkpoint at every budget."""
    budgets, most = [*bench.scale.budgets], 1.03
    asked = ", ".join(f"{b:g}" for b in budgets)
    what, target = f"KL by cheap prices over full ones, {name}, {asked} bits", f"at most {most}"

    def line() -> Line:
        found = bench.measure.of("prices", source=folder, **bench.texts(), budgets=budgets)
        ratios = [a / b for a, b in zip(found["cheap"], found["full"], strict=True)]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        kl = ", ".join(f"{1e3 * k:.0f}" for k in found["cheap"])
        return Line(what, target, f"{shown} ({kl} millinats)", max(ratios) <= most)

    return guarded(what, target, line)


def calibration(bench: Bench) -> Iterator[Line]:
    """Made-up models of large vocabularies."""
    for vocabulary in bench.scale.vocabularies:
        yield from calibration_of(bench, vocabulary)


def calibration_of(bench: Bench, vocabulary: int) -> Iterator[Line]:
    """Time and memory with one vocabulary."""
    what, most, spare = f"calibration, vocabulary {vocabulary:,}", 8, 500 * MB
    size = {"width": bench.scale.width, "inner": bench.scale.width * 11 // 4}
    text = {"windows": bench.scale.width_windows, "window": 256}

    def figures() -> Figures:
        return bench.measure.of("calibrate", blocks=4, **size, vocabulary=vocabulary, **text)

    def passes() -> Line:
        found = figures()
        cpu, wall = (found[t] / found["forward"][t] for t in ("cpu", "wall"))
        return Line(what, f"at most {most} forward passes", f"{cpu:.2f} ({wall:.2f})", cpu <= most)

    def memory() -> Line:
        found = figures()
        limit = found["largest"] + spare
        figure = f"{found['added'] / MB:.0f} MB"
        target = f"at most {limit / MB:.0f} MB, the largest block in float32 and 500 MB"
        return Line(f"{what}: peak", target, figure, found["added"] <= limit)

    yield guarded(what, f"at most {most} forward passes", passes)
    yield guarded(f"{what}: peak", "at most the largest block in float32 and 500 MB", memory)


def growth(bench: Bench) -> Iterator[Line]:
    """Exponents of time over tokens, and over weights at one width."""
    scale = bench.scale
    tokens = [(scale.grown_blocks[0], windows) for windows in scale.grown_windows]
    weights = [(blocks, scale.grown_windows[0]) for blocks in scale.grown_blocks]
    yield grown(bench, "tokens", tokens)
    yield grown(bench, "weights", weights)


def grown(bench: Bench, over: str, sizes: Sequence[tuple[int, int]]) -> Line:
    """One fit over four sizes: blocks and windows."""
    what, target = f"time of plan + compress over {over}", f"exponent at most {LINEAR}"
    fixed = {"width": bench.scale.grown_width, "window": 128, "bits_per_weight": BITS_PER_WEIGHT}

    def line() -> Line:
        found = [
            bench.measure.of("grow", blocks=blocks, windows=windows, **fixed)
            for blocks, windows in sizes
        ]
        slope = exponent([f[over] for f in found], [f["cpu"] for f in found])
        points = ", ".join(f"{f[over]:,}: {f['cpu']:.1f} s" for f in found)
        return Line(what, target, f"{slope:.2f} ({points})", slope <= LINEAR)

    return guarded(what, target, line)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return p of the least-squares fit of ``c size^p``."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    along = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return along / sum((a - x_mean) ** 2 for a in x)


ROWS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "compression": compression,
    "corrected": corrected,
    "price": price_of_one,
    "rounding": rounding,
    "paper": paper,
    "prices": prices,
    "calibration": calibration,
    "growth": growth,
}
OF_THE_MODEL = {"compression", "corrected", "prices"}
"""The rows that are measured on the real model."""
