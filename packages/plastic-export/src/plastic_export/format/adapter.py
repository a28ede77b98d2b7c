"""``"adapter"``: bits, and corrections as an adapter of stock mlx-lm, all of one rank."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from plastic_core.files import write_json
from plastic_core.rounding import UNPACKED

from plastic_export.checkpoint.tensors import module_path
from plastic_export.folder.adapter_files import CONFIG, FILE, FOLDER
from plastic_export.format.by_plan import PlanFormat
from plastic_export.format.parts import Part, Parts, packed_backbone
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import Candidate, Choice, Offer

RANKS = (4, 8, 16, 32, 64)
"""The ranks that are offered, of which a plan takes one for all matrices."""


class AdapterFormat(PlanFormat):
    """Backbones where the weights were, and corrections that mlx-lm lays over them."""

    name = "adapter"
    about = "bits and a stock adapter"
    beside = (f"{FOLDER}/{FILE}", f"{FOLDER}/{CONFIG}")
    choices = Choices(factor_bits=(UNPACKED,), ranks=RANKS)
    one_rank = True

    def check(self, choices: Mapping[str, Choice]) -> None:
        """Refuse corrections that mlx-lm could not lay over a quantised checkpoint."""
        ranks = {choice.rank for choice in choices.values() if choice.rank}
        if len(ranks) > 1:
            raise ValueError(f"an adapter has one rank, but the matrices have {sorted(ranks)}")
        for name, (bits, rank, factor_bits, _) in choices.items():
            if rank and (bits is None or factor_bits != UNPACKED):
                backbone = "no backbone" if bits is None else "a backbone"
                raise ValueError(
                    f"{name!r} takes {backbone} and factors in {factor_bits} bits, which an "
                    f"adapter cannot hold; take one of its offers with `bits` and {UNPACKED} "
                    "`factor_bits`"
                )

    def parts(self, m: Candidate, offer: Offer) -> Parts:
        """The backbone, and ``P.lora_a`` (in, rank) and ``P.lora_b`` (rank, out) beside it."""
        path, (out, in_) = module_path(m.name), m.shape
        backbone = packed_backbone(m, offer, path)
        if offer.rank == 0:
            return Parts(backbone)
        v, u = (offer.rank, in_), (offer.rank, out)
        return Parts(
            backbone,
            Part(f"{path}.lora_a", v, m.dtype, transposed=True, place="adapter"),
            Part(f"{path}.lora_b", u, m.dtype, place="adapter"),
        )

    def write_beside(self, folder: Path, chosen: Mapping[str, Offer]) -> None:
        """Write what mlx-lm needs to know: the rank, and every corrected layer by path.

        Layers without a correction are not among the keys, so that they cost nothing.
        """
        keys = [module_path(name) for name, offer in chosen.items() if offer.rank]
        if not keys:
            return
        rank = max(offer.rank for offer in chosen.values())
        parameters = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys}
        config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
        write_json(folder / FOLDER / CONFIG, config)

    def how_to_run(self, out: Path, offers: Iterable[Offer]) -> list[str]:
        """Say to run it with ``--adapter-path``, or that there is no adapter, and warn."""
        if not any(offer.rank for offer in offers):
            none = "no adapter  no correction is worth its bytes at this size: run it without one"
            return [none, *super().how_to_run(out, offers)]
        words = ["mlx_lm.generate", "--model", str(out), "--adapter-path", str(out / FOLDER)]
        return [
            f"run it     {shlex.join(words)} --prompt ...",
            "never fuse the adapter without --dequantize: quantising again rounds it away",
        ]
