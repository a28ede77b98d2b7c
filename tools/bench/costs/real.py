"""A whole compression of a real model: by this project, and by mlx-lm's own quantisers.

All methods store the same matrices, the embedding among them, and read the same tokens: a text is
cut down to what is asked for, and all of it is used. Times are of the method alone: ours of the two
commands, interpreter, trace and check of the output included; mlx-lm's of its function, loading and
saving included. The divergence is measured afterwards, beside the time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bakeoff import quantizers
from bakeoff.quantizers import SCALES, Task
from kept.limit import at_most
from kept.measurements import Figures
from meters import spent
from plastic_export import Calibration, evaluate, load_tokenizer, open_checkpoint
from plastic_export.checkpoint import module_path
from plastic_export.compression import plannable
from plastic_export.model import read_text
from plastic_export.source import Source

PEERS: dict[str, Callable[[Task, Path, Any], None]] = {
    "gptq": quantizers.gptq_bits,
    "awq": quantizers.awq_bits,
    "dwq": quantizers.dwq_bits,
    "dynamic": quantizers.dynamic_bits,
}
RATES = (3e-4,)  # of DWQ: one run
MEASURED = 8  # windows of the held-out text


def ours(
    source: str,
    text: str,
    heldout: str,
    windows: int,
    window: int,
    format: str,
    bits_per_weight: float,
) -> Figures:
    """``plastic plan`` and ``plastic compress`` with default settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut, plan, out = cut_text(source, text, windows * window, folder), folder / "p.json", "out"
        options = ["--calibration", cut, "--windows", windows, "--window", window]
        options += ["--bits-per-weight", bits_per_weight, "--format", format, "--out", plan]
        planned, _ = spent(lambda: plastic("plan", source, *options))
        written, _ = spent(lambda: plastic("compress", source, folder / out, "--plan", plan))
        found = {"plan": planned, "compress": written}
        seconds = {"cpu": planned.cpu + written.cpu, "wall": planned.wall + written.wall}
        return seconds | found | {"kl": divergence_from(source, folder / out, heldout)}


def peer(
    source: str,
    text: str,
    heldout: str,
    windows: int,
    window: int,
    method: str,
    bits_per_weight: float,
    steps: int,
    limit: int | None = None,
) -> Figures:
    """One of mlx-lm's quantisers, at groups of 64, stopped after ``limit`` processor seconds."""
    with tempfile.TemporaryDirectory() as name, open_checkpoint(source) as checkpoint:
        matrices = plannable(Source.of(checkpoint), embeddings=True)
        cut, out = cut_text(source, text, windows * window, Path(name)), Path(name) / "out"
        paths = frozenset(module_path(m.name) for m in matrices)
        task = Task(Path(source), paths, Calibration(cut, window, windows), steps, RATES)
        bits = bits_per_weight if method == "dynamic" else int(bits_per_weight - SCALES)
        with at_most(limit):
            seconds, _ = spent(lambda: PEERS[method](task, out, bits))
        return {**seconds._asdict(), "kl": divergence_from(source, out, heldout)}


def plastic(*words: object) -> None:
    """Run the command, as its users do."""
    command = [str(Path(sys.executable).with_name("plastic")), *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def cut_text(source: str, text: str, tokens: int, folder: Path) -> Path:
    """Write the beginning of a text that holds so many tokens, and few more."""
    tokenizer = load_tokenizer(source)
    ids = tokenizer.encode(read_text(text), add_special_tokens=False, verbose=False)
    if len(ids) < tokens:
        sys.exit(f"error: {text} holds {len(ids)} tokens, fewer than {tokens}; take a longer text")
    file = folder / "calibration.txt"
    file.write_text(tokenizer.decode(ids[: tokens + tokens // 64]), encoding="utf-8")
    return file


def divergence_from(source: str, folder: Path, text: str) -> float:
    """KL divergence of a checkpoint from its source, in nats per token."""
    (found,) = evaluate(folder, [text], reference=source, windows=MEASURED)
    return found.kl or 0.0
