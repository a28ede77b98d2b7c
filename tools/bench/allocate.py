"""Time ``allocate`` at full size, and measure how far it stays from the linear-programming bound.

    uv run tools/bench/allocate.py                        2,000 matrices with 64 options
    uv run tools/bench/allocate.py --matrices 300 --options 128 --budgets 20

"ranks" are spectra of power laws at the shapes of a Llama: 63 ranks and the dense matrix; "mixed"
the same at shapes drawn at random, so that sizes have no common divisor; "random" bytes
and costs drawn at random; "subset sum" pays every byte the same, the hardest for a proof. Budgets
lie evenly between the least and the greatest size. Seconds are processor time, the least of
several runs: with one budget in the middle, and for each further one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from plastic_select import Allocation, Option, allocate, break_even_rank, rank_options

Options = dict[str, list[Option]]
LLAMA = [(4096, 4096), (1024, 4096), (11008, 4096), (4096, 11008)]


def ranks(matrices: int, count: int) -> Options:
    return of_spectra([LLAMA[i % 4] for i in range(matrices)], count)


def mixed(matrices: int, count: int) -> Options:
    return of_spectra(np.random.default_rng(1).integers(500, 8000, (matrices, 2)).tolist(), count)


def of_spectra(shapes: Sequence[tuple[int, int]], count: int) -> Options:
    """Evenly spaced ranks up to about the break-even, and the dense matrix."""
    rng, options = np.random.default_rng(0), {}
    for i, (m, n) in enumerate(shapes):
        s = np.exp(rng.normal()) * np.arange(1.0, min(m, n) + 1) ** -rng.uniform(0.3, 1.2)
        step = max(1, break_even_rank((m, n)) // (count - 2))
        options[f"m{i}"] = rank_options(
            s,
            bytes_per_component=2 * (m + n),
            ceiling=(count - 2) * step,
            multiple_of=step,
            dense=2 * m * n,
        )
    return options


def random(matrices: int, count: int) -> Options:
    rng = np.random.default_rng(0)
    sizes, costs = rng.integers(1, 10**6, (matrices, count)), rng.random((matrices, count))
    return as_options(sizes.tolist(), costs.tolist())


def subset_sum(matrices: int, count: int) -> Options:
    sizes = np.random.default_rng(0).integers(1, 10**6, (matrices, count))
    return as_options(sizes.tolist(), (1e6 - sizes).tolist())


def as_options(sizes: list[list[int]], costs: list[list[float]]) -> Options:
    pairs = zip(sizes, costs, strict=True)
    return {f"m{i}": [*map(Option, *each)] for i, each in enumerate(pairs)}


def budgets_between(options: Options, count: int) -> list[int]:
    least = sum(min(o.nbytes for o in each) for each in options.values())
    most = sum(max(o.nbytes for o in each) for each in options.values())
    return [least + (most - least) * (i + 1) // (count + 1) for i in range(count)]


def least_time(
    options: Options, budgets: list[int], repeats: int
) -> tuple[float, list[Allocation]]:
    """The least time of several runs, and what they return."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        allocations = allocate(options, budgets)
        times.append(time.process_time() - start)
    return min(times), allocations


def main() -> None:
    """Print one row per kind of options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", type=int, default=2000)
    parser.add_argument("--options", type=int, default=64)
    parser.add_argument("--budgets", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.matrices} matrices, {arguments.options} options each")
    print(f"{'':12}{'one budget':>12}{'each further':>14}{'worst gap':>12}{'proven optimal':>17}")
    for make in (ranks, mixed, random, subset_sum):
        options = make(arguments.matrices, arguments.options)
        budgets = budgets_between(options, arguments.budgets)
        one, _ = least_time(options, budgets[len(budgets) // 2 :][:1], arguments.repeats)
        every, results = least_time(options, budgets, 1)
        further = (every - one) / max(1, len(budgets) - 1)
        gap, proven = max(a.gap for a in results), sum(a.optimal for a in results)
        print(
            f"{make.__name__.replace('_', ' '):12}{one:>10.2f} s{further:>12.2f} s"
            f"{gap:>12.1e}{proven:>9} of {len(results)}"
        )
    print(f"{'target':12}{'< 1 s':>12}{'':>14}{'<= 1.0e-03':>12}")


if __name__ == "__main__":
    main()
