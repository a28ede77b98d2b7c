"""The tools that quantise checkpoints: which of their forms are read here, and how they say so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import FormatError

_BY_MLX_LM = {"mxfp4", "mxfp8", "bitnet"}
_MADE_PLAIN = {"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "gptq", "awq", "auto-round"}
_PACKED_BY_MLX_LM = {"pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"}
_FORMATS = ("checkpoint_format", "format")
_LAYOUTS = {
    "gptq": (_FORMATS, {"": "gptq", "gptq": "gptq", "gptq_v2": "gptq_v2"}),
    "awq": (("version", *_FORMATS), {"": "awq", "gemm": "awq"}),
    "auto-round": (
        ("packing_format",),
        {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"},
    ),
}
"""Of tools that pack integers in words: the settings that name the layout, and those read here."""

_ROTATIONS = ("transform_config", "rotation_config", "hadamard_config")
_OTHER_ALGORITHM = re.compile("AWQ|^INT|^W4|^MXFP4")  # of ModelOpt
_BY_TRANSFORMERS = {"bitsandbytes", "higgs"}  # whose `dequantize` knows them
_WITH_TRANSFORMERS = (
    "import transformers as t; s = {}; m = t.AutoModelForCausalLM.from_pretrained(s);"
    " m.dequantize().save_pretrained('COPY');"
    " t.AutoTokenizer.from_pretrained(s).save_pretrained('COPY')"
)
_WITH_MLX_LM = (
    "import plastic_export as p, mlx_lm.utils as u; s = u.Path({}); c = u.load_config(s);"
    " [d.pop('quantization_config', 0) for d in (c, c.get('text_config', dict()))];"
    " u.save('COPY', s, u.dequantize_model(p.load_model(s)), u.load_tokenizer(s), c)"
)
"""Programs of one line that write a plain copy of a folder."""


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
            name = str(tool or (found if not self.settings else "an unknown tool"))
            self.method = name.removeprefix("intel/")

    @property
    def is_made_plain(self) -> bool:
        """Tell whether its weights are made plain here, unless mlx-lm's model takes them over."""
        return self.method in _MADE_PLAIN

    @property
    def is_taken_over(self) -> bool:
        """Tell whether mlx-lm knows MLX's packing for its codes, if the model takes them over."""
        if self.method == "compressed-tensors":
            return self.settings.get("format") in _PACKED_BY_MLX_LM
        if self.method == "modelopt":
            return self.algorithm == "NVFP4"
        return self.method is not None

    @property
    def layout(self) -> str | None:
        """The layout of its words: "gptq" (version 1), "gptq_v2", "awq", or none that is read."""
        _, layouts = _LAYOUTS.get(str(self.method), ((), {}))
        return layouts.get(self._stated_layout)

    @property
    def _stated_layout(self) -> str:
        settings, _ = _LAYOUTS.get(str(self.method), ((), {}))
        return next((str(self.settings[k]).lower() for k in settings if self.settings.get(k)), "")

    @property
    def algorithm(self) -> str | None:
        """The algorithm of ModelOpt, which writes its settings flat or nested."""
        nested = self.settings.get("quantization")
        settings = nested if isinstance(nested, Mapping) else self.settings
        algorithm = settings.get("quant_algo")
        return algorithm if isinstance(algorithm, str) else None

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
        is_rotated = any(map(self.settings.get, _ROTATIONS))
        is_idle = quantised == 0 and not self._is_known and not is_rotated
        if fault is None or is_idle:  # mlx-lm does not look at what such a tool says
            return
        share = f", {quantised / total:.0%} of its bytes" if total else ""
        reason = f"the checkpoint is quantised by {self.method!r:.60}{share}, and {fault}"
        raise FormatError.about(file, reason, self.remedy(file.parent))

    @property
    def _is_known(self) -> bool:
        return self.method in _BY_MLX_LM | _MADE_PLAIN

    def _fault(self) -> str | None:
        if self.method == "bitnet" and not mx.metal.is_available():
            return "mlx-lm's layers for it run on Metal alone"
        if self.method is not None and not self._is_known:
            return "neither mlx-lm nor this package reads that"
        if self.method in _LAYOUTS and self.layout is None:
            return f"its layout {self._stated_layout!r:.60} is not read here"
        if rotation := next((k for k in _ROTATIONS if self.settings.get(k)), None):
            return f"mlx-lm applies no {rotation!r} to what enters its layers"
        if self.algorithm is not None and _OTHER_ALGORITHM.search(self.algorithm):
            return f"its algorithm {self.algorithm!r:.60} is not read here"
        return None

    def remedy(self, folder: Path) -> str:
        """Return how to come by a copy that is read: a command, where one makes it."""
        source = repr(str(folder))
        if self.method in _BY_TRANSFORMERS:
            return "make a plain copy: " + _python(_WITH_TRANSFORMERS.format(source))
        if self._fault() is not None:
            return "take the original that it was made from, `base_model` in its card"
        if self.method in _MADE_PLAIN:
            return "make a plain copy: " + _python(_WITH_MLX_LM.format(source))
        convert = ["mlx_lm.convert", "--hf-path", str(folder), "--mlx-path", "COPY"]
        return f"make a copy that MLX packs: {shlex.join(convert)}"


def _python(script: str) -> str:
    is_easy = not set(script) & set('"$`\\!')
    return "python -c " + (f'"{script}"' if is_easy else shlex.quote(script))


def _inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else {}
