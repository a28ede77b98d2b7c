"""AutoRound by its own code: signed gradient descent on every rounding, exported for mlx-lm.

It runs in an environment of its own that uv makes when it is first asked for, on the CPU, with its
default tuning but for the number of steps: batches of 8 windows, rates and activations as it
chooses. Its data set is the windows of tokens that every other method reads, registered under a
name of its own, in that order. Scales and offsets are those of MLX's format, groups of 64, so
roundings are tuned with offsets (``sym=False``), which take no more bytes.

AutoRound tunes linear layers alone. Where embeddings are in the budget (a tied head among them)
they are rounded to nearest at its bits afterwards; rows without embeddings are the fair comparison.

Its mixed scheme chooses among 2, 3, 4, 6 and 8 bits by its own sensitivities, for an average such
that scales and offsets fit into the budget too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from plastic_core.files import export_safetensors, read_json, write_json
from plastic_export.checkpoint import module_path

from bakeoff.bench import BakeOff, whole_bits
from bakeoff.quantizers import GROUP, SCALES, SEED, Unsupported
from bakeoff.written import Written, weigh

VERSION = "0.16.1"
OPTIONS = (2, 3, 4, 6, 8)  # bits of the mixed scheme
HEAD = "lm_head"


def run_apart(*words: object) -> str:
    """Return what Python prints in the environment of AutoRound.

    A process that ran into the limit of processor time takes this one with it.

    Raises:
        Unsupported: If it fails; what was said last is named.
    """
    packages = ["--with", f"auto-round=={VERSION}", "--with", "torch"]
    place = ["uv", "run", "--quiet", "--no-project", "--python", sys.executable, *packages]
    known = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        [*place, "python", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=known | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        os.kill(os.getpid(), signal.SIGXCPU)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unsupported(f"auto-round {VERSION} by uv: {said[-1]}")
    return done.stdout


def installed() -> None:
    """Make the environment, before a clock starts."""
    run_apart("-c", "import auto_round")


def auto_round(bench: BakeOff, out: Path, budget: float) -> Written:
    """One width for all matrices."""
    bits = whole_bits(budget)
    return tuned(bench, out, (bits,), bits)


def auto_round_mixed(bench: BakeOff, out: Path, budget: float) -> Written:
    """Its mixed scheme, of the same average."""
    average = budget - SCALES
    if not OPTIONS[0] < average < OPTIONS[-1]:
        raise Unsupported(f"AutoRound mixes no bits to {budget:g} per weight in groups of {GROUP}")
    return tuned(bench, out, OPTIONS, average)


def tuned(bench: BakeOff, out: Path, bits: tuple[int, ...], average: float) -> Written:
    """Tune the linear layers among the matrices, round the others to nearest."""
    linear = {module_path(m.name) for m in bench.matrices if m.kind == "linear"}
    others = bench.task.paths - linear
    if others and average != int(average):
        raise Unsupported(f"embeddings rounded to nearest take no {average:g} bits")
    exported, file = out.with_name("exported"), out.with_name("task.json")
    layers = bench.source.layers.values()
    every = {module_path(layer.name) for layer in layers if layer.kind == "linear"}
    task = {
        "source": str(bench.task.source),
        "windows": np.asarray(bench.task.tokens()).tolist(),
        "bits": bits,
        "average": average,
        "group_size": GROUP,
        "left": sorted(every - linear - {HEAD}),
        "head": HEAD in linear,
        "steps": bench.steps,
        "seed": SEED,
    }
    write_json(file, task)
    printed = run_apart(Path(__file__).with_name("autoround_apart.py"), file, exported)
    (found,) = (config.parent for config in exported.rglob("config.json"))
    _publish(bench, found, out, dict.fromkeys(others, int(average)))
    versions: dict[str, str] = json.loads(printed.splitlines()[-1])
    return weigh(out)._replace(versions=versions)


def _publish(bench: BakeOff, exported: Path, out: Path, rest: dict[str, int]) -> None:
    """Write what AutoRound exported beside the source's own configuration and tokenizer."""
    tensors = dict[str, mx.array]()
    for file in sorted(exported.glob("*.safetensors")):
        tensors |= mx.load(str(file))  # type: ignore[arg-type]
    packing: dict[str, Any] = read_json(exported / "config.json")["quantization"]
    for path, bits in rest.items():
        codes, scales, biases = mx.quantize(tensors.pop(f"{path}.weight"), GROUP, bits)
        parts = {"weight": codes, "scales": scales, "biases": biases}
        tensors |= {f"{path}.{name}": part for name, part in parts.items()}
        packing[path] = {"group_size": GROUP, "bits": bits}
    out.mkdir()
    export_safetensors(out / "model.safetensors", tensors, metadata={"format": "mlx"})
    config = bench.checkpoint.config | {"quantization": packing, "quantization_config": packing}
    write_json(out / "config.json", config)
    bench.checkpoint.copy_side_files(out)
