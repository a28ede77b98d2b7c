"""Requests at three sizes at once beside the same requests at one size: seconds and throughput.

    uv run tools/bench/dialling/serving.py OUT            a folder that plastic compress wrote

All requests of a row are sent at the same moment to one server. The last row asks for the least
size, one between and the largest in turn; ``over one size`` is the mean of the three rows above it
over its own seconds: 1 where turning and batching by size cost nothing. Each is the best of
``--rounds``; prompts differ in every round, as mlx-lm keeps those that it has seen.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import mean

from plastic_export import SizeServer
from rich.console import Console
from rich.table import Table

_NUMBERS = count()


def asked(server: SizeServer, keep: float, tokens: int) -> int:
    """Send a request for a size; return the tokens of its answer."""
    body = {
        "model": f"{server.model}@{keep:g}",
        "prompt": f"def function_{next(_NUMBERS)}(",
        "max_tokens": tokens,
        "temperature": 0,
    }
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def sent_together(
    server: SizeServer, sizes: Sequence[float], requests: int, tokens: int
) -> tuple[float, int]:
    """Return the seconds and the tokens of so many requests, their sizes in turn."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        each = [pool.submit(asked, server, sizes[i % len(sizes)], tokens) for i in range(requests)]
        answered = sum(future.result() for future in each)
    return time.perf_counter() - begun, answered


def serving_table(options: argparse.Namespace) -> Table:
    """One row per size, and one for all three at once."""
    rows = Table("size", "seconds", "tokens per second", "over one size", box=None)
    with SizeServer(options.folder, port=0) as server:
        listed = [size.keep for size in server.sizes]
        sizes = [listed[0], listed[len(listed) // 2], listed[-1]]
        singles: list[float] = []
        for asked_for in [*([size] for size in sizes), sizes]:
            runs = [
                sent_together(server, asked_for, options.requests, options.tokens)
                for _ in range(options.rounds)
            ]
            seconds, answered = min(runs)
            single = len(asked_for) == 1
            rows.add_row(
                ", ".join(f"{size:g}" for size in asked_for),
                f"{seconds:.2f}",
                f"{answered / seconds:.0f}",
                "" if single else f"{mean(singles) / seconds:.2f}",
            )
            singles.append(seconds)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    Console(width=100).print(serving_table(parser.parse_args()))


if __name__ == "__main__":
    main()
