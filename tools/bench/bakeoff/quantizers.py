"""The quantisers that mlx-lm ships, run by their own functions on our calibration text.

``gptq_quantize``, ``awq_quantize``, ``dwq_quantize`` and ``estimate_sensitivities`` with
``estimate_threshold`` are called as mlx-lm's commands call them, with groups of 64, on the same
matrices as every other method; each writes a stock folder. What is done from outside:

- the model computes in float32 and is stored in the type of the source;
- where MLX computes on the CPU, products of linear layers and attention run in NumPy, forwards and
  backwards, with gradients of weights, scales and biases (reference BLAS and
  ``mx.quantized_matmul`` take hours), and so do the sums of GPTQ's Hessians and the one ``einsum``
  of AWQ;
- GPTQ packs 2, 4 and 8 bits alone: for the other widths its packing is replaced;
- what is not among the matrices (embeddings, say) is hidden from the quantisers, and the bits per
  weight that dynamic quantisation aims at are those of the matrices alone;
- dynamic quantisation may end one matrix over its target: then the least sensitive one goes down;
- DWQ would train every unquantised layer along: embeddings and the like are frozen, norms are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import Adam
from mlx_lm import utils
from mlx_lm.quant import awq, dwq, dynamic_quant, gptq
from plastic_core import linalg
from plastic_core.factors import BITS
from plastic_export import Calibration, open_checkpoint

from bakeoff.hostpatches import divergences_of, quick

GROUP, SEED, BATCH = 64, 123, 8
AT_ONCE = 4  # windows of DWQ's updates, mlx-lm's default: eight do not fit 24 GB here
SCALES = 32 / GROUP  # bits per weight of a scale and a bias of 16 bits


class Unsupported(ValueError):
    """A method that cannot do what is asked; the message says why."""


@dataclass(frozen=True)
class Task:
    """The checkpoint to quantise, and the text to do it on.

    Attributes:
        source: Folder of the checkpoint.
        paths: Module paths of the matrices.
        calibration: Text and windows, those of ``plastic plan``.
        steps: What DWQ reads, in 8 windows that are read again and again as needed.
        rates: The rates of DWQ; the one that ends best on the windows held back, every eighth as
            for ``plastic heal``, is taken.
    """

    source: Path
    paths: frozenset[str]
    calibration: Calibration
    steps: int = 200
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)

    def tokens(self) -> mx.array:
        """The windows that ``plastic plan`` measures the Grams on, shape (windows, window)."""
        with open_checkpoint(self.source) as checkpoint:
            return self.calibration.tokens(checkpoint)


def gptq_bits(task: Task, out: Path, bits: int) -> None:
    """mlx-lm's GPTQ."""
    model, packing = Loaded.of(task), gptq.quantize if bits in (2, 4, 8) else _packed
    with quick(), patch.object(gptq, "quantize", packing):
        _hide(model.module, task.paths, property(_missing))
        gptq.gptq_quantize(model.module, task.tokens(), bits, GROUP, bits, GROUP)
        model.save(out)


def awq_bits(task: Task, out: Path, bits: int) -> None:
    """mlx-lm's AWQ."""
    model = Loaded.of(task)
    kind = model.config["model_type"]
    if kind not in awq.AWQ_MODEL_CONFIGS:
        raise Unsupported(f"mlx-lm's AWQ does not know models of type {kind!r}")
    with quick():
        _hide(model.module, task.paths, lambda self, *args, **kwargs: self)
        config, head = awq.AWQ_MODEL_CONFIGS[kind], {"embed_bits": bits, "embed_group_size": GROUP}
        awq.awq_quantize(model.module, task.tokens(), config, bits=bits, group_size=GROUP, **head)
        model.save(out)


def dwq_bits(task: Task, out: Path, bits: int) -> None:
    """mlx-lm's DWQ from its start, rounding to nearest."""
    windows = linalg.to_numpy(task.tokens())
    length = windows.shape[1] + 1
    rows = np.pad(windows, [(0, 0), (0, 1)]).tolist()  # the last token of each is not read
    kept_back = max(BATCH, len(rows) // 8)
    if len(rows) < BATCH + kept_back:
        raise Unsupported(f"DWQ needs {2 * BATCH} windows of text, found {len(rows)}")
    held_out = rows[:: len(rows) // kept_back][:kept_back]
    rest = [row for row in rows if row not in held_out]
    orders = [np.random.default_rng([SEED, i]).permutation(len(rest)) for i in range(task.steps)]
    train = [(rest[i], 0) for i in np.concatenate(orders)[: task.steps * BATCH]]
    valid, inputs = [(row, 0) for row in held_out], mx.array(held_out)[:, :-1]
    teacher, found = Loaded.of(task).module, list[tuple[float, Loaded]]()
    with quick():
        for rate in task.rates:
            model = Loaded.of(task, dict.fromkeys(task.paths, bits))
            optimizer = Adam(learning_rate=rate, bias_correction=True)
            dwq.dwq_quantize(
                model.module,
                lambda batch, index, split: teacher(batch),
                optimizer,
                train,
                valid,
                batch_size=AT_ONCE,
                max_seq_length=length,
                seed=SEED,
                dtype=model.dtype,
            )
            batches = [inputs[i : i + AT_ONCE] for i in range(0, kept_back, AT_ONCE)]
            losses = [float(divergences_of(model.module(x), teacher(x)).mean()) for x in batches]
            found.append((sum(losses), model))
        min(found, key=lambda pair: pair[0])[1].save(out)


def dynamic_bits(task: Task, out: Path, bits_per_weight: float) -> None:
    """mlx-lm's dynamic quantisation between the bits below and above the target."""
    low = max((b for b in BITS if b + SCALES < bits_per_weight), default=None)
    high = min((b for b in BITS if b + SCALES > bits_per_weight), default=None)
    if low is None or high is None:
        raise Unsupported(f"there are no bits on both sides of {bits_per_weight:g} per weight")
    model, widths = Loaded.of(task), (low, GROUP, high, GROUP)
    counted = partial(_bits_per_weight, paths=task.paths)
    with quick(), patch.object(dynamic_quant, "compute_bits_per_weight", counted):
        _hide(model.module, task.paths, property(_missing))
        found = dict(dynamic_quant.estimate_sensitivities(model.module, task.tokens(), *widths))
        threshold = dynamic_quant.estimate_threshold(model.module, found, bits_per_weight, *widths)
    sizes = {path: m.weight.size for path, m in _quantizable(model.module) if path in found}
    while True:
        fine = {path for path, sensitivity in found.items() if sensitivity > threshold}
        extra = sum(sizes[path] for path in fine) * (high - low) / sum(sizes.values())
        if low + SCALES + extra <= bits_per_weight:
            break
        threshold = min(found[path] for path in fine)
    bits = {path: high if path in fine else low for path in found}
    Loaded.of(task, bits).save(out)


class Loaded(NamedTuple):
    """A model in float32, the type it is stored in, and what else a checkpoint holds."""

    module: nn.Module
    dtype: mx.Dtype
    tokenizer: Any
    config: dict[str, Any]
    source: Path

    @classmethod
    def of(cls, task: Task, bits: Mapping[str, int] | None = None) -> Loaded:
        """Load the source; given bits by path, rounded to nearest as mlx-lm does it."""
        module, tokenizer, config = utils.load(str(task.source), lazy=True, return_config=True)
        modules = dict(module.named_modules())
        dtype = modules[min(task.paths)].weight.dtype
        if bits is not None:
            packing = {path: {"group_size": GROUP, "bits": b} for path, b in bits.items()}
            nn.quantize(module, class_predicate=lambda path, _: packing.get(path, False))
            for _, kept in _quantizable(module):
                kept.freeze()
        module.set_dtype(mx.float32)
        return cls(module, dtype, tokenizer, config, task.source)

    def save(self, out: Path) -> None:
        """Write a stock folder in the type of the source."""
        for _, module in self.module.named_modules():
            module.pop("input_feat", None)  # AWQ leaves it at layers it did not quantise
        self.module.set_dtype(self.dtype)
        config = awq.update_config(self.module, self.config)
        utils.save(out, self.source, self.module, self.tokenizer, config)


def _quantizable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, m) for path, m in model.named_modules() if hasattr(m, "to_quantized")]


def _hide(model: nn.Module, paths: frozenset[str], to_quantized: Any) -> None:
    """Replace ``to_quantized`` of every layer that is not among the matrices."""
    for path, module in _quantizable(model):
        if path not in paths:
            kind = type(module)
            hidden = type(kind.__name__, (kind,), {"to_quantized": to_quantized})
            object.__setattr__(module, "__class__", hidden)


def _missing(module: nn.Module) -> Callable[..., nn.Module]:
    raise AttributeError("to_quantized")


def _bits_per_weight(model: nn.Module, paths: frozenset[str]) -> float:
    """Bits of the matrices on disk over their entries."""
    packed = [m for path, m in model.named_modules() if path in paths]
    sizes = [m.weight.size * 32 // m.bits for m in packed]
    stored = sum((m.bits + SCALES) * size for m, size in zip(packed, sizes, strict=True))
    return float(stored / sum(sizes))


def _packed(w: mx.array, bits: int, scales: mx.array, biases: mx.array) -> mx.array:
    """``gptq.quantize`` for any bits: codes one behind the other, lowest bit first."""
    groups = mx.unflatten(w, -1, (scales.shape[-1], -1))
    codes = mx.round((groups - biases[..., None]) / scales[..., None])
    whole = linalg.to_numpy(mx.clip(codes, 0, 2**bits - 1)).astype(np.uint8)
    stream = whole.reshape(*w.shape, 1) >> np.arange(bits, dtype=np.uint8) & 1
    flat = np.packbits(stream.reshape(len(whole), -1), axis=1, bitorder="little")
    return mx.array(flat.view(np.uint32))
