"""Checkpoint folders of the zoo: random weights, a configuration and a tokenizer."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING, _get_classes
from transformers import AutoTokenizer

from zoo import dense, experts, latent, recurrent, vision
from zoo.forms import Config, Publish, Weights
from zoo.sources import SOURCES

TEXTS = Path(__file__).resolve().parents[1] / "data" / "stdlib-llama"
TEXT = (TEXTS / "calibration.txt").read_text()[:3000]
FORMS = ("mlx", "published")
KINDS = (dense, experts, latent, recurrent, vision)
CONFIGS: dict[str, Config] = {name: c for kind in KINDS for name, c in kind.CONFIGS.items()}
PUBLISHED: dict[str, Publish] = {name: f for kind in KINDS for name, f in kind.PUBLISHED.items()}
for _name, _target in MODEL_REMAPPING.items():  # types that are others under a second name
    if _name not in CONFIGS:
        CONFIGS[_name] = CONFIGS[_target]
        PUBLISHED |= {_name: PUBLISHED[_target]} if _target in PUBLISHED else {}
EVERYWHERE: Config = {"bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16"}


def forms_of(model_type: str) -> tuple[str, ...]:
    """Return the forms in which a type is stored."""
    usual = FORMS if model_type in PUBLISHED else FORMS[:1]
    return (*usual, *SOURCES.get(model_type, {}))


def build_checkpoint(folder: Path, model_type: str, form: str) -> Path:
    """Write a tiny random checkpoint of a type in a form, the same bits each time."""
    config = {"model_type": model_type, **EVERYWHERE, **CONFIGS[model_type]}
    weights = random_parameters(config)
    for name, twin in dense.TWINS.get(model_type, {}).items():
        weights[name] = weights[twin]
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    if form != "mlx":
        publish = SOURCES[model_type][form] if form not in FORMS else PUBLISHED[model_type]
        weights, config = publish(weights, config)
    folder.mkdir(parents=True)
    for name, content in tokenizer_files().items():
        (folder / name).write_text(content)
    write_weights(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_weights(file: Path, weights: Weights) -> None:
    """Write tensors; the header calls bytes with scales numbers of FP8, which MLX has not."""
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name in weights:
        if f"{name}_scale_inv" in weights and weights[name].dtype == mx.uint8:
            header[name]["dtype"] = "F8_E4M3"
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    file.write_bytes(len(written).to_bytes(8, "little") + written + content[start:])


def random_parameters(config: Config) -> Weights:
    """Draw every parameter of the model that mlx-lm builds from a configuration."""
    mx.random.seed(0)  # some parameters are drawn as the model is built
    model_class, arguments_class = _get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    keep = getattr(model, "cast_predicate", lambda name: True)
    weights = {}
    for name, initial in cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())):
        drawn = draw(name, initial)
        is_float = mx.issubdtype(drawn.dtype, mx.floating)
        weights[name] = drawn.astype(mx.bfloat16) if is_float and keep(name) else drawn
    return weights


def draw(name: str, initial: mx.array) -> mx.array:
    """Draw a matrix so that it keeps the scale of what enters it, a vector near its first values.

    Codes of packed weights are random bits, other integers those with which the model begins.
    """
    key = mx.random.key(zlib.crc32(name.encode()))
    if initial.dtype in (mx.uint8, mx.uint32):
        columns = initial.shape[-1] * initial.itemsize
        return mx.random.randint(0, 256, (*initial.shape[:-1], columns), mx.uint8, key).view(
            initial.dtype
        )
    if not mx.issubdtype(initial.dtype, mx.floating):
        return initial
    noise: mx.array = mx.random.normal(initial.shape, key=key)
    if initial.ndim < 2:
        return initial + 0.1 * noise
    inputs = initial.shape[-2] if initial.shape[-1] == 1 else initial.shape[-1]
    return noise / math.sqrt(inputs)  # a convolution has (channels, kernel, 1)


@cache
def tokenizer_files() -> dict[str, str]:
    """Return the tokenizer of the shipped checkpoint as files that fit a model of any type."""
    with TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(TEXTS).save_pretrained(folder)
        files = {file.name: file.read_text() for file in Path(folder).iterdir()}
    name = "tokenizer_config.json"
    fast = json.loads(files[name]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return files | {name: json.dumps(fast)}
