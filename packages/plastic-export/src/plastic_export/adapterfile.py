"""A correction as an adapter of stock mlx-lm: one rank, laid over a quantised checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastic_core.correction import UNPACKED
from plastic_runtime.files import FormatError, TensorSpec, read_header, read_json, write_json

from plastic_export.lossplan import BitsPlan
from plastic_export.manifest import MANIFEST
from plastic_export.matrices import module_path
from plastic_export.shards import Shards

FOLDER = "adapters"
FILE = "adapters.safetensors"
CONFIG = "adapter_config.json"
_METADATA = {"format": "mlx"}


def check_adapter(plan: BitsPlan, file: Path) -> None:
    """Refuse corrections that mlx-lm could not lay over a quantised checkpoint.

    Raises:
        FormatError: If one is packed, or stands without a backbone.
    """
    for name, offer in plan.chosen.items():
        if offer.rank and (offer.bits is None or offer.factor_bits != UNPACKED):
            backbone = "no backbone" if offer.bits is None else "a backbone"
            reason = (
                f"{name!r} takes {backbone} and factors in {offer.factor_bits} bits, "
                "which an adapter cannot hold"
            )
            remedy = f"take one of its offers with `bits` and {UNPACKED} `factor_bits`"
            raise FormatError.about(file, reason, remedy)


def adapter_shards(folder: Path, specs: Sequence[TensorSpec], *, keep: bool = False) -> Shards:
    """The file of the adapter's tensors, to be written one by one; no specs, no file."""
    if specs:
        (folder / FOLDER).mkdir(exist_ok=True)
    stem = Path(FILE).stem
    return Shards(folder / FOLDER, specs, _METADATA, stem=stem, limit=2**63, keep=keep)


def write_adapter_config(folder: Path, plan: BitsPlan) -> None:
    """Write what mlx-lm needs to know beside the tensors: the rank, and every layer by path.

    Layers without a correction are not among the keys, so that they cost nothing.
    """
    keys = [module_path(name) for name, offer in plan.chosen.items() if offer.rank]
    config = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": plan.rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
    }
    write_json(folder / FOLDER / CONFIG, config)


def adapter_of(folder: Path) -> Path | None:
    """The adapter that belongs to a checkpoint that this package wrote; None where there is none.

    Raises:
        FormatError: If its manifest, its configuration or its file is damaged.
    """
    adapter, manifest = folder / FOLDER, folder / MANIFEST
    if not (adapter.is_dir() and manifest.is_file()):
        return None
    options: Any = read_json(manifest).get("options")
    if not isinstance(options, dict) or options.get("format") != "adapter":
        return None
    read_json(adapter / CONFIG)
    read_header(adapter / FILE)
    return adapter
