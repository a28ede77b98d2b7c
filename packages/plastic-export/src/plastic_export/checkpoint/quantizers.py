"""The tools that quantise checkpoints: which of their forms are read here, and how they say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError

_BY_MLX_LM = {"mxfp4", "mxfp8", "bitnet"}
_MADE_PLAIN = {"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "gptq", "awq"}
_BY_TRANSFORMERS = {"bitsandbytes", "higgs"}  # whose `dequantize` knows them
_ORIGINAL = "take the original that it was made from, `base_model` in its card"


class Quantizer:
    """What a configuration says of the tool that quantised a checkpoint.

    Attributes:
        settings: Its ``quantization_config``, empty where there is none.
        method: The name of the tool, None where nothing is quantised by another tool than MLX.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        found = config.get("quantization_config") or _inner(config).get("quantization_config")
        nested = found.get("quantization") if isinstance(found, Mapping) else None
        self.settings: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        self.method: str | None = None
        if found and not config.get("quantization"):
            tool = self.settings.get("quant_method", "modelopt" if nested else None)
            self.method = str(tool or (found if not self.settings else "an unknown tool"))

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Height and width of the blocks that share a scale, as far as they are stated."""
        shapes = [self.settings.get("weight_block_size")]
        shapes += [weights.get("block_structure") for weights in self._groups()]
        return [(int(s[0]), int(s[1])) for s in shapes if isinstance(s, list) and len(s) == 2]

    @property
    def bits(self) -> set[int]:
        """The widths of integers that are stated."""
        return {int(w["num_bits"]) for w in self._groups() if isinstance(w.get("num_bits"), int)}

    def _groups(self) -> Iterator[Mapping[str, Any]]:
        groups = self.settings.get("config_groups")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                yield weights

    def check(self, file: Path, quantised: int, total: int) -> None:
        """Refuse what neither mlx-lm nor this package reads.

        Args:
            file: The configuration's file, for the message.
            quantised: Bytes of the tensors that are no floats.
            total: Bytes of all.

        Raises:
            FormatError: If it is such a tool, or a variant of a known one.
        """
        fault = self._fault()
        if fault is None:
            return
        share = f", {quantised / total:.0%} of its bytes" if total else ""
        reason = f"the checkpoint is quantised by {self.method!r:.60}{share}, and {fault}"
        raise FormatError.about(file, reason, self._remedy(file))

    def _fault(self) -> str | None:
        said = {k: str(v).lower() for k, v in self.settings.items() if isinstance(v, str)}
        if self.method is None or self.method in _BY_MLX_LM | {"fp8", "fbgemm_fp8"}:
            return None
        if self.method not in _MADE_PLAIN:
            return "neither mlx-lm nor this package reads that"
        if self.method == "gptq" and said.get("checkpoint_format", "gptq") not in (
            "gptq",
            "gptq_v2",
        ):
            return f"its layout {said['checkpoint_format']!r} is not read here"
        if self.method == "awq" and said.get("version", "gemm") != "gemm":
            return f"its layout {said['version']!r} is not read here"
        return None

    def _remedy(self, file: Path) -> str:
        if self.method not in _BY_TRANSFORMERS:
            return _ORIGINAL
        load = f"AutoModelForCausalLM.from_pretrained({str(file.parent)!r}).dequantize()"
        return (
            f"python -c \"from transformers import *; {load}.save_pretrained('COPY')\" makes a copy"
        )


def _inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else {}
