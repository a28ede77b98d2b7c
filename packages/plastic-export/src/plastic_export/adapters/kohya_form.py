"""The form of kohya's scripts: one file, names with underscores for dots, an alpha per layer."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
from plastic_core.files import FormatError, read_arrays
from plastic_core.linalg import as_vector

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.files import AdapterFiles
from plastic_export.adapters.pairs import paired, refuse_others
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import module_path

KOHYA_FILE = "lora.safetensors"
KOHYA_NAMES = ("lora_down.weight", "lora_up.weight", "alpha")
_SIDES = {"lora_down": "A", "lora_up": "B"}
_FACTOR = re.compile(r"(.+)\.(lora_down|lora_up)\.weight")
_PREFIX = re.compile(r"lora_(?:unet_|te\d?_|transformer_|llm_)?")
_OTHERS = {
    "dora_scale": "the magnitudes of DoRA",
    "hada_": "a factor of LoHa",
    "lokr_": "a factor of LoKr",
    "lora_mid": "the core of a convolution",
}


def read_kohya(file: Path, base: Checkpoint | None = None) -> Adapter:
    """Read a LoRA that kohya's scripts wrote.

    Args:
        file: The file.
        base: The language model that it is for: layers then have the paths that they have there.

    Raises:
        FormatError: If it is another kind of adapter, damaged, or a name has no layer, or two,
            in the base.
        OSError: If it cannot be read.
    """
    sides: dict[str, dict[str, mx.array]] = {"A": {}, "B": {}}
    alphas, others = dict[str, float](), {}
    for name, array in read_arrays(file)[0].items():
        if match := _FACTOR.fullmatch(name):
            sides[_SIDES[match[2]]][match[1]] = array
        elif name.endswith(".alpha") and array.size == 1:
            alphas[name.removesuffix(".alpha")] = as_vector(array.reshape(1), name).item()
        else:
            others[name] = next((w for key, w in _OTHERS.items() if key in name), "a weight")
    refuse_others(file, others)
    layers = paired(file, sides, lambda name, rank: alphas.get(name, float(rank)) / rank)
    if base is None:
        return Adapter(layers, form="kohya")
    paths = _paths(base)
    named = {_path(file, name, paths): pair for name, pair in layers.items()}
    if len(named) < len(layers):
        reason = "two of its layers are one in the base"
        raise FormatError.about(file, reason, "name the base that it was trained on")
    return Adapter(named, form="kohya")


def kohya_name(path: str) -> str:
    """Return the name of a layer in this form; one that was read in this form stays as it was.

    Examples:
        >>> kohya_name("model.layers.0.mlp.up_proj")
        'lora_te_model_layers_0_mlp_up_proj'
    """
    return path if _PREFIX.match(path) else f"lora_te_{path.replace('.', '_')}"


def kohya_files(adapter: Adapter) -> AdapterFiles:
    """Return an adapter as kohya's scripts load it; see `read_kohya` for the names.

    Raises:
        ValueError: If every rank is 0.
    """
    tensors = {}
    for path, pair in adapter.awake().layers.items():
        name = kohya_name(path)
        tensors[f"{name}.lora_down.weight"] = pair.A
        tensors[f"{name}.lora_up.weight"] = pair.B
        tensors[f"{name}.alpha"] = mx.array(pair.rank * pair.scale, mx.float32)
    return AdapterFiles(KOHYA_FILE, tensors, None, "pt")


def _paths(base: Checkpoint) -> dict[str, str]:
    """Return the paths of all matrices of a checkpoint, by themselves with underscores for dots."""
    paths = {module_path(name) for name, t in base.tensors.items() if len(t.shape) > 1}
    return {path.replace(".", "_"): path for path in paths}


def _path(file: Path, name: str, paths: dict[str, str]) -> str:
    """Return the path that a name stands for: all of it, or its end where that is of one alone."""
    rest = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
    if rest in paths:
        return paths[rest]
    found = [path for flat, path in paths.items() if flat.endswith(f"_{rest}")]
    if len(found) != 1:
        what = f"{len(found)} layers" if found else "no layer"
        reason = f"layer '{name}' has {what} of its name in the base"
        raise FormatError.about(file, reason, "name the base that it was trained on")
    return found[0]
