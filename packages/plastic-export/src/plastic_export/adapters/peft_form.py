"""PEFT's form of an adapter: a rank and an alpha for every layer, or one for all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.files import FormatError, read_arrays, read_json

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.files import AdapterFiles
from plastic_export.adapters.one_scale import with_one_scale
from plastic_export.adapters.pairs import paired, refuse_others
from plastic_export.adapters.peft_patterns import pattern_key, pattern_value
from plastic_export.folder.adapter_files import CONFIG, PEFT_FILE

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight")
_OTHERS = {
    "lora_magnitude_vector": "the magnitudes of DoRA",
    "lora_embedding": "a factor of an embedding",
    "modules_to_save": "a whole module that was trained (modules_to_save)",
    ".bias": "a trained bias",
}
_UNREAD = {
    "use_dora": "it is of DoRA (use_dora), whose weight is no sum of a base and factors",
    "modules_to_save": "it holds whole modules (modules_to_save), which are no factors",
    "trainable_token_indices": "it holds rows of an embedding (trainable_token_indices)",
    "target_parameters": "it adapts parameters that are no layers (target_parameters)",
    "lora_bias": "its factors have biases (lora_bias)",
    "alora_invocation_tokens": "it is awake for some tokens alone (alora_invocation_tokens)",
}


def read_peft(folder: Path) -> Adapter:
    """Read a LoRA that PEFT or this package wrote.

    Raises:
        FormatError: If it is another kind of adapter, holds more than factors, or is damaged.
        OSError: If it cannot be read.
    """
    config, file = read_json(folder / CONFIG), folder / PEFT_FILE
    _check_config(folder / CONFIG, config)
    sides: dict[str, dict[str, mx.array]] = {"A": {}, "B": {}}
    others = {}
    for name, array in read_arrays(file)[0].items():
        if match := _FACTOR.fullmatch(name):
            sides[match[2]][match[1].removeprefix(PREFIX)] = array
        else:
            others[name] = next((w for key, w in _OTHERS.items() if key in name), "a weight")
    refuse_others(file, others)
    base = config.get("base_model_name_or_path")
    return Adapter(
        paired(file, sides, _Scales(folder / CONFIG, config)),
        base=base if isinstance(base, str) else None,
        revision=config.get("revision"),
        form="peft",
    )


def peft_files(adapter: Adapter, *, uniform: bool = False) -> AdapterFiles:
    """Return an adapter as PEFT loads it.

    With the rank that each layer has ``rank_pattern`` and ``alpha_pattern`` name them all, and
    ``lora_alpha`` is 0 where every scale is 1: llama.cpp takes that as the scale 1 whatever the
    rank. vLLM and SGLang know no patterns and take it as the scale 0; for these, and all others,
    ``uniform`` fills every layer up to one rank with zeros, which needs no patterns.

    Args:
        adapter: The adapter.
        uniform: One rank for all layers.

    Raises:
        ValueError: If every rank is 0.
    """
    layers, scale = dict(adapter.awake().layers), 1.0
    rank = max(pair.rank for pair in layers.values())
    if uniform or len({(pair.rank, pair.scale) for pair in layers.values()}) == 1:
        layers, scale = with_one_scale(layers)
        layers = {path: pair.padded(rank) for path, pair in layers.items()}
        alpha, ranks, alphas = _number(scale * rank), {}, {}
    else:
        ranks = {pattern_key(path): pair.rank for path, pair in layers.items()}
        alphas = {pattern_key(p): _number(pair.rank * pair.scale) for p, pair in layers.items()}
        is_one = all(pair.scale == 1 for pair in layers.values())
        alpha = 0 if is_one else _number(rank * with_one_scale(layers)[1])
    tensors = {}
    for path, pair in layers.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = pair.A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = pair.B
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "inference_mode": True,
        "r": rank,
        "rank_pattern": ranks,
        "lora_alpha": alpha,
        "alpha_pattern": alphas,
        "use_rslora": False,
        "target_modules": list(layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    return AdapterFiles(PEFT_FILE, tensors, config, "pt")


class _Scales:
    """The scale of every layer, from a configuration of PEFT."""

    def __init__(self, file: Path, config: Mapping[str, Any]) -> None:
        self.file, self.config = file, config
        self.root = bool(config.get("use_rslora"))

    def __call__(self, path: str, rank: int) -> float:
        named, alpha = (
            self._value("rank_pattern", path, "r"),
            self._value("alpha_pattern", path, "lora_alpha"),
        )
        if named != rank:
            reason = f"layer '{path}': its factors have rank {rank}, its configuration says {named}"
            raise FormatError.about(self.file, reason, "put back the files that PEFT wrote")
        return alpha / (sqrt(rank) if self.root else rank)

    def _value(self, patterns: str, path: str, default: str) -> float:
        keys = self.config.get(patterns) or {}
        if not isinstance(keys, Mapping):
            reason = f"its {patterns} is {keys!r}, no mapping of layers"
            raise FormatError.about(self.file, reason, "put back the file that PEFT wrote")
        try:
            value = pattern_value(keys, path, self.config.get(default))
        except re.error as error:
            reason = f"a key of {patterns} is no regular expression ({error})"
            raise FormatError.about(self.file, reason, "put it right") from None
        if not isinstance(value, int | float) or isinstance(value, bool):
            reason = f"layer '{path}': {default} is {value!r}, no number"
            raise FormatError.about(self.file, reason, "put back the file that PEFT wrote")
        return value


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no plain LoRA, by the name that PEFT has for it."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FormatError.about(file, f"its peft_type is {kind!r}", "take an adapter of LORA")
    for name, why in _UNREAD.items():
        if config.get(name):
            raise FormatError.about(file, why, "take a plain LoRA")
    if (bias := config.get("bias", "none")) != "none":
        reason = f"it trained biases (bias={bias!r}), which are no factors"
        raise FormatError.about(file, reason, "take one with bias='none'")


def _number(value: float) -> float:
    """Return an integer where it is one, as other readers expect."""
    return int(value) if value == int(value) else value
