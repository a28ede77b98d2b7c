"""A correction as an adapter of stock mlx-lm: one rank, laid over a quantised checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plastic_core.files import FormatError, TensorSpec, write_json
from plastic_core.rounding import UNPACKED

from plastic_export.checkpoint.tensors import module_path
from plastic_export.folder.adapter_files import CONFIG, FILE, FOLDER
from plastic_export.folder.shards import Shards
from plastic_export.plan.offers import BitsPlan

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
