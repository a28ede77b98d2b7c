"""A loaded model turned down and up: seconds, memory, tokens per second.

    uv run tools/bench/dialling/live.py OUT               a folder that plastic compress wrote
    uv run tools/bench/dialling/live.py OUT --stock MLX   beside stock checkpoints of its sizes

Every row is a size: seconds to turn to it from the other end, memory that MLX holds over that of a
model loaded at that size, and tokens per second of greedy decoding, the best of ``--rounds``.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as stock_load
from plastic_runtime import Dial
from rich.console import Console
from rich.table import Table

PROMPT = mx.array([[5, 30, 41, 7, 99, 12, 45, 3]])


def stock_loaded(folder: Path, size: dict[str, int] | None = None) -> tuple[nn.Module, int]:
    """Return what mlx-lm loads, and the bytes that MLX holds for it."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    config: dict[str, Any] = {"plastic_dial": size}
    model, _ = stock_load(folder, trust_remote_code=True, model_config=config)
    return model, mx.get_active_memory() - before


def decoding_speed(model: nn.Module, tokens: int, rounds: int) -> float:
    """Return tokens per second of greedy decoding behind a short prompt."""
    best = 0.0
    for _ in range(rounds):
        cache, token = make_prompt_cache(model), PROMPT
        token = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
        mx.eval(token)
        start = time.perf_counter()
        for _ in range(tokens):
            token = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
            mx.eval(token)
        best = max(best, tokens / (time.perf_counter() - start))
    return best


def turned_in(dial: Dial, start: int, size: int) -> float:
    """Return the seconds that a turn from one size to another takes."""
    dial.to(bytes=start)
    begun = time.perf_counter()
    dial.to(bytes=size)
    return time.perf_counter() - begun


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stock", type=Path, action="append", default=[])
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = Table("size, bytes", "down", "up", "memory over loaded", "tokens per s", box=None)
    before = mx.get_active_memory()
    model, _ = stock_loaded(options.folder)
    with Dial(model, options.folder) as dial:
        for stop in dial.curve(options.points):
            down = turned_in(dial, dial.largest, stop.asked)
            up = turned_in(dial, dial.least, stop.asked)
            gc.collect()
            held = mx.get_active_memory() - before
            other, alone = stock_loaded(options.folder, {"bytes": stop.asked})
            speed = decoding_speed(model, options.tokens, options.rounds)
            row = (f"{down:.4f} s", f"{up:.4f} s", f"{held / alone:.4f}", f"{speed:.1f}")
            table.add_row(f"{stop.nbytes:,}", *row)
            del other
    for folder in options.stock:
        other, alone = stock_loaded(folder)
        speed = decoding_speed(other, options.tokens, options.rounds)
        table.add_row(f"{alone:,} ({folder.name})", "", "", "", f"{speed:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
