"""Plans of large models simulated on 1 to 64 machines: efficiency, and what most time is lost by.

    uv run tools/bench/joined/simulated.py                       speeds that are stated
    uv run tools/bench/joined/simulated.py --here                as fast as this machine
    uv run tools/bench/joined/simulated.py --windows 1024        a longer text

Nothing is run. Work is that of ``plastic plan --dry-run``, by the sizes in the configurations that
were published; the schedule is that of the processes, which wait for each other. The stated machine
multiplies as often in a second as one with a GPU of 10 TFLOP/s for float32, and 0.5 TFLOP/s of the
processor for float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plastic_export import Budget, Calibration, Candidate, PlanEstimate
from plastic_export.compression import ForeseenPlan
from plastic_export.estimate import (
    START,
    ModelShape,
    Speed,
    WeightShape,
    estimate_processes,
    measured_speed,
)
from plastic_runtime.measure import LONGEST_DENSE_SIDE
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from costs.shapes import matrix

MACHINES = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = {"1 Gbit/s": 1.0, "10 Gbit/s": 10.0, "Thunderbolt, 40 Gbit/s": 40.0}
STATED = Speed(products=5e12, doubles=2.5e11, entries=3e9, trained=5e12)
BUDGETS = (Budget("bits_per_weight", 3.5),)


class Configuration(NamedTuple):
    """The sizes of a model, as its ``config.json`` has them.

    Attributes:
        layers: Blocks.
        hidden: Entries of what goes from block to block.
        inner: Entries within an expert, or within the only one.
        keys: Entries of the keys of all heads.
        vocabulary: Tokens.
        heads: Of attention.
        experts: In a block that has some, a shared one beside them; 0 for none.
        used: How many of them a token goes through.
        dense_inner: Entries within the blocks in between, which have no experts.
    """

    layers: int
    hidden: int
    inner: int
    keys: int
    vocabulary: int
    heads: int
    experts: int = 0
    used: int = 1
    dense_inner: int = 0


MODELS = {
    "7B (Llama 2)": Configuration(32, 4096, 11008, 4096, 32000, 32),
    "70B (Llama 3)": Configuration(80, 8192, 28672, 1024, 128256, 64),
    "400B MoE (Llama 4 Maverick)": Configuration(
        48, 5120, 8192, 1024, 202048, 40, experts=128, dense_inner=16384
    ),
}


def candidates(c: Configuration) -> Iterator[tuple[Candidate, str | None]]:
    """Every matrix, and the name of the one that the same array enters before it, if there is."""
    table = (c.vocabulary, c.hidden)
    yield matrix("model.embed_tokens", table, embedding=True), None
    for number in range(c.layers):
        block = f"model.layers.{number}"
        for part, size in (("q", c.hidden), ("k", c.keys), ("v", c.keys)):
            first = None if part == "q" else f"{block}.self_attn.q_proj.weight"
            yield matrix(f"{block}.self_attn.{part}_proj", (size, c.hidden)), first
        yield matrix(f"{block}.self_attn.o_proj", (c.hidden, c.hidden)), None
        routed = c.experts > 0 and number % 2 == 1
        inner = c.inner if routed or not c.dense_inner else c.dense_inner
        yield from mlp(f"{block}.mlp.shared" if routed else f"{block}.mlp", inner, c.hidden)
        if routed:
            for m, first in mlp(f"{block}.mlp.switch_mlp", c.inner, c.hidden):
                stack = Candidate(
                    m.name,
                    m.shape,
                    m.dtype,
                    m.group_size,
                    c.experts * m.source_bytes,
                    kind="experts",
                    experts=c.experts,
                )
                yield stack, first
    yield matrix("lm_head", table), None


def mlp(path: str, inner: int, hidden: int) -> Iterator[tuple[Candidate, str | None]]:
    """The three matrices of a block's second half."""
    yield matrix(f"{path}.gate_proj", (inner, hidden)), None
    yield matrix(f"{path}.up_proj", (inner, hidden)), f"{path}.gate_proj.weight"
    yield matrix(f"{path}.down_proj", (hidden, inner)), None


def foreseen_of(c: Configuration, windows: int) -> ForeseenPlan:
    """The plan of a model of this configuration."""
    found = list(candidates(c))
    wanted = [m for m, _ in found]
    shapes = tuple(WeightShape(m.name, *m.shape, m.matrices, m.source_bytes) for m in wanted)
    return ForeseenPlan.of_sizes(
        ModelShape(shapes, c.used / c.experts if c.experts else 1.0, c.heads),
        wanted,
        {m.name: first for m, first in found if first is not None},
        window=Calibration.window,
        windows=windows,
        widest=LONGEST_DENSE_SIDE,
        corrected=False,
        thorough=False,
        budgets=len(BUDGETS),
    )


def simulated_table(speed: Speed, windows: int) -> Table:
    """Models and networks down, machines across: hours alone, then efficiency."""
    counts = [str(count) for count in MACHINES[1:]]
    columns = "model", "network", "alone", *counts, "most is lost by, on 8", "on 64"
    table = Table(*columns, box=box.MARKDOWN)
    for name, configuration in MODELS.items():
        plan = foreseen_of(configuration, windows)
        for network, gigabits in NETWORKS.items():
            rows = [estimated(plan, speed, count, gigabits) for count in MACHINES]
            shares = ["-" if row is None else f"{row.efficiency:.0%}" for row in rows[1:]]
            worst = ["-" if row is None else row.bottleneck for row in (rows[3], rows[-1])]
            alone = f"{rows[0].seconds / 3600:.1f} h" if rows[0] else "-"
            table.add_row(name, network, alone, *shares, *worst)
    return table


def estimated(plan: ForeseenPlan, speed: Speed, count: int, gigabits: float) -> PlanEstimate | None:
    """What so many machines take; None where the text has fewer batches."""
    work = plan.work
    if count > work.batches:
        return None
    return estimate_processes(work, speed, processes=count, gigabits=gigabits, start=START)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--here", action="store_true", help="as fast as this machine")
    parser.add_argument("--windows", type=int, default=Calibration.windows)
    options = parser.parse_args()
    speed = measured_speed() if options.here else STATED
    Console(width=220).print(simulated_table(speed, options.windows))


if __name__ == "__main__":
    main()
