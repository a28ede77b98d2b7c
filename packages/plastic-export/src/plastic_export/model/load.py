"""Checkpoint folders as mlx-lm models and tokenizers, without running any code of the folder."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import (
    Fingerprint,
    FormatError,
    changed,
    open_safetensors,
    read_json,
    sha256_file,
)
from plastic_core.layer import is_stack
from plastic_core.linalg import on_cpu

from plastic_export.checkpoint.tensors import Kind
from plastic_export.folder.adapter_files import adapter_of
from plastic_export.folder.manifest import MANIFEST, read_manifest
from plastic_export.model.merging import merge_corrections
from plastic_export.model.numpy_layers import use_numpy_products

MODEL_FILE = Path(__file__).parent / "plastic_model.py"
"""The model file that lies beside a factored checkpoint. This copy of it is what runs."""

_MESSAGE = 200  # characters of a foreign error that are worth repeating


def load_model(folder: str | Path) -> nn.Module:
    """Load a checkpoint as mlx-lm would, every format that this package writes included.

    Code in the folder never runs: a factored checkpoint is built by this package's own model file.
    A folder that names any other is refused, and one whose own is not that of its manifest. The
    adapter of a checkpoint that this package wrote with one is laid over it, as ``--adapter-path``
    does.

    Args:
        folder: Folder in Hugging Face or mlx-community form.

    Returns:
        The model in evaluation mode, its parameters in the types in which they are stored and
        not yet read: each is read when it is first used.

    Raises:
        FormatError: If the folder needs code of its own, is of a type that mlx-lm does not know,
            or if its weights are damaged or do not fit its configuration.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If a file is missing or cannot be read.
    """
    folder, utils = Path(folder), _mlx_lm()
    file = folder / "config.json"
    config = read_json(file)
    is_factored = _is_factored(config, file)
    if is_factored:
        _check_model_file(folder)
    classes = _factored_classes() if is_factored else _stock_classes(config, file)
    checked = _check_weights(folder)
    adapter = adapter_of(folder)
    try:
        # model_file is withheld, so that mlx-lm asks for the classes instead of running it
        model, _ = utils.load_model(
            folder,
            lazy=True,
            model_config={"model_file": None},
            get_model_classes=lambda config: classes,
        )
        if adapter is not None:
            utils.load_adapters(model, adapter).eval()
        if _check_weights(folder) != checked:  # by name: mlx-lm opened them in between
            raise changed(folder)
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = f"mlx-lm's {config['model_type']!r} model cannot be built from it: {_brief(error)}"
        remedy = "check that config.json and the weights belong together"
        raise FormatError.about(folder, reason, remedy) from error
    loaded: nn.Module = model
    return loaded


def load_for_inference(folder: str | Path) -> nn.Module:
    """Load a model for forward passes without gradients, made quick where MLX runs on the CPU.

    There bfloat16 is slow and so are matrix products: weights become float32 (exactly) and
    products run in NumPy, one for every layer, corrected or not. Elsewhere this is `load_model`.

    Args:
        folder: Folder in Hugging Face or mlx-community form.

    Returns:
        The model in evaluation mode.

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_model` does.
    """
    model = load_model(folder)
    if on_cpu():
        model.set_dtype(mx.float32)
        merge_corrections(model)
        use_numpy_products(model)
    return model


class StockModel(NamedTuple):
    """mlx-lm's model of a configuration, its weights never computed.

    Attributes:
        module: The model.
        kinds: Path, kind and number of experts of every linear layer, embedding and stack.
    """

    module: nn.Module
    kinds: list[tuple[str, Kind, int]]


def stock_model(config: dict[str, Any]) -> StockModel:
    """Build mlx-lm's model of a configuration and find the layers that can be quantised.

    Args:
        config: Content of config.json.

    Raises:
        FormatError: If mlx-lm has no such model, or cannot build one from the configuration.
        ModuleNotFoundError: If mlx-lm is not installed.
    """
    model_class, args_class = _stock_classes(config, "config.json")
    try:
        model = model_class(args_class.from_dict(config))
    except (ValueError, TypeError, KeyError) as error:
        reason = f"mlx-lm's {config['model_type']!r} model cannot be built: {_brief(error)}"
        raise FormatError.about("config.json", reason, "correct the configuration") from error
    found = StockModel(model, [])
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            found.kinds.append((path, "linear", 0))
        elif type(module) is nn.Embedding:
            found.kinds.append((path, "embedding", 0))
        elif is_stack(module) and hasattr(module, "to_quantized"):
            found.kinds.append((path, "experts", module.num_experts))
    return found


def linear_paths(config: dict[str, Any]) -> set[str]:
    """Return the paths of the ``nn.Linear`` layers of mlx-lm's model of this configuration.

    Only these can be stored factored. No weight is read and none is computed.

    Args:
        config: Content of config.json.

    Returns:
        Module paths such as ``"model.layers.0.self_attn.q_proj"``.

    Raises:
        FormatError, ModuleNotFoundError: As `stock_model` does.
    """
    return {path for path, kind, _ in stock_model(config).kinds if kind == "linear"}


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a checkpoint as mlx-lm would, offline and without code of the folder.

    Args:
        folder: Folder in Hugging Face or mlx-community form.

    Returns:
        mlx-lm's ``TokenizerWrapper``.

    Raises:
        FormatError: If there is no tokenizer, or none that the installed libraries can read.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If config.json is missing or cannot be read.
    """
    folder, utils = Path(folder), _mlx_lm()
    config = read_json(folder / "config.json")
    offline = {"trust_remote_code": False, "local_files_only": True}
    try:
        return utils.load_tokenizer(folder, offline, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = f"its tokenizer cannot be loaded: {_brief(error)}"
        remedy = "put the tokenizer's files beside the weights; code of the folder is never run"
        raise FormatError.about(folder, reason, remedy) from error


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file, line ends as they are.

    Raises:
        FormatError: If it is not UTF-8; the message says where.
        OSError: If it does not exist or cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text at byte {error.start}"
        raise FormatError.about(path, reason, "convert it to UTF-8") from None


def text_windows(
    tokenizer: Any, text: str, *, length: int = 256, limit: int | None = None
) -> mx.array:
    """Cut a text into consecutive windows of tokens that do not overlap.

    Each window is for a model with an empty context, so each begins with the token that begins
    every text, if the tokenizer puts one. The rest of the last window is left out.

    Args:
        tokenizer: A tokenizer of `load_tokenizer`.
        text: Any text of at least one window.
        length: Tokens per window, at least 2.
        limit: Take this many windows at most, spread evenly over the text.

    Returns:
        Token ids, int32, of shape (windows, length), in the order of the text.

    Raises:
        ValueError: If the text is shorter than one window, or ``length`` or ``limit`` too small.
    """
    if length < 2:
        raise ValueError(f"`length` must be at least 2 tokens, got {length}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 window, got {limit}.")
    start = [i for i in tokenizer.encode("")[:1] if i == tokenizer.bos_token_id]
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    step = length - len(start)
    count = len(ids) // step
    if count == 0:
        raise ValueError(
            f"the text has {len(start) + len(ids)} tokens, fewer than one window of {length}; "
            "take a longer text or a shorter window"
        )
    taken = count if limit is None else min(limit, count)
    windows = np.array(ids[: count * step], np.int32).reshape(count, step)
    spread = windows[evenly_spread(taken, count)]
    return mx.array(np.hstack([np.tile(np.array(start, np.int32), (taken, 1)), spread]))


def evenly_spread(taken: int, count: int) -> NDArray[np.intp]:
    """``taken`` of the numbers below ``count``, at least as many, increasing."""
    return np.arange(taken) * count // taken


def _mlx_lm() -> ModuleType:
    try:
        import mlx_lm.utils
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("mlx_lm"):
            raise
        message = (
            "running a model needs mlx-lm; install the extra: pip install 'plastic-export[lm]'"
        )
        raise ModuleNotFoundError(message, name="mlx_lm") from None
    utils: ModuleType = mlx_lm.utils
    return utils


def _is_factored(config: dict[str, Any], file: Path) -> bool:
    """Tell whether it is of our own format; any other model file is refused here."""
    model_file = config.get("model_file")
    if model_file is not None and (model_file != MODEL_FILE.name or "plastic" not in config):
        reason = f"'model_file' names {model_file!r}, code of the folder, which is never run"
        remedy = "take a checkpoint of an architecture that mlx-lm knows by itself"
        raise FormatError.about(file, reason, remedy)
    return model_file is not None


def _check_model_file(folder: Path) -> None:
    """Refuse a folder whose model file, which mlx-lm would run, is not the one of its manifest."""
    file = folder / MODEL_FILE.name
    stated = read_manifest(folder).files if (folder / MANIFEST).is_file() else {}
    if MODEL_FILE.name not in stated:
        return
    if not file.is_file() or sha256_file(file) != stated[MODEL_FILE.name]["sha256"]:
        reason = "not the model file that was written with it" if file.is_file() else "missing"
        remedy = "do not run it; `plastic verify` lists what else has changed"
        raise FormatError.about(file, reason, remedy)


def _factored_classes() -> tuple[Any, Any]:
    from plastic_export.model import plastic_model

    return plastic_model.Model, plastic_model.ModelArgs


def _stock_classes(config: dict[str, Any], file: str | Path) -> tuple[Any, Any]:
    """Return the classes of mlx-lm itself; where it has none, a folder's own code is no way out."""
    model_type = config.get("model_type")
    try:
        model_class, args_class = _mlx_lm()._get_classes(config)
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = f"mlx-lm has no model of type {model_type!r}"
        if "auto_map" in config:
            reason += ", and 'auto_map' names code of the folder, which is never run"
        remedy = "take an architecture that mlx-lm knows, or a newer mlx-lm"
        raise FormatError.about(file, reason, remedy) from None
    return model_class, args_class


def _check_weights(folder: Path) -> dict[str, Fingerprint]:
    """Check every model*.safetensors of a folder, since mlx-lm trusts their headers."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        reason = "no weights: mlx-lm reads model*.safetensors and there is none"
        raise FormatError.about(folder, reason, "name the folder of a checkpoint")
    found = {}
    for path in files:
        with open_safetensors(path, home=folder) as file:
            found[path.name] = file.fingerprint
    return found


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}..."
