"""PEFT's own AdaLoRA, MiSS and HiRA, in an environment of their own with PyTorch on the CPU.

uv makes the environment when it is first asked for. It is handed the windows of tokens of every
batch in their order, and those that are measured, as a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from kept.measurements import Figures, NotMeasured
from plastic_core.files import write_json
from real_model import CACHE
from training.setting import SCALE, TrainingBench

from finetune.stock import stock_bytes

VERSION = "0.21.2"
PACKAGES = (f"peft=={VERSION}", "torch", "safetensors")
PEFT_METHODS = ("adalora", "miss", "hira")
SCRIPT = Path(__file__).with_name("peft_apart.py")


def peft_trained(method: str) -> Callable[[TrainingBench, int, int], Figures]:
    """Return a method that trains by PEFT."""

    def run(bench: TrainingBench, rank: int, seed: int) -> Figures:
        o = bench.options
        task = {
            "method": method,
            "source": str(o.source),
            "rank": rank,
            "ceiling": stock_bytes(bench, rank),
            "scale": SCALE,
            "seed": seed,
            "rates": [float(bench.rate(mx.array(step))) for step in range(o.steps)],
        }
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            write_json(place / "task.json", task)
            batches = np.stack([np.array(batch) for batch in bench.batches(seed)])
            replace(bench.texts, train=batches).save(place / "windows.npz")
            return printed_apart(place)

    return run


def printed_apart(place: Path) -> Figures:
    """Return what the script prints in PEFT's environment as its last line.

    Raises:
        NotMeasured: If it fails; what was said last is named.
    """
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [str(peft_python()), str(SCRIPT), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise NotMeasured(f"PEFT {VERSION}: {said[-1]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def peft_python() -> Path:
    """Return the Python of PEFT's environment, made first if it is not there."""
    place = CACHE / f"peft-{VERSION}"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, place], check=True)
        install = ["uv", "pip", "install", "--quiet", "--python", str(python), *PACKAGES]
        subprocess.run(install, check=True)
    return python
