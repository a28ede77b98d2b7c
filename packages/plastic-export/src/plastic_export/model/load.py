"""Checkpoint folders as mlx-lm models, without running any code of the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from plastic_core.files import (
    Fingerprint,
    FormatError,
    changed,
    open_safetensors,
    read_json,
    sha256_file,
)
from plastic_core.linalg import on_cpu
from plastic_runtime.dialling import MANIFEST, read_manifest

from plastic_export.checkpoint.architecture import revealed
from plastic_export.checkpoint.plain_path import plain_path
from plastic_export.checkpoint.rope import warn_of_ignored_rope
from plastic_export.checkpoint.settings import suspects
from plastic_export.folder.adapter_files import adapter_of
from plastic_export.model.foreign_weights import sanitized
from plastic_export.model.library import brief, mlx_lm_utils
from plastic_export.model.merging import merge_corrections
from plastic_export.model.numpy_layers import use_numpy_products
from plastic_export.model.stock import built, stock_classes

MODEL_FILE = Path(__file__).parent / "plastic_model.py"
"""The model file that lies beside a factored checkpoint. This copy of it is what runs."""


def load_model(folder: str | Path, *, adapter: Path | None = None) -> nn.Module:
    """Load a checkpoint as mlx-lm would, every format that this package writes included.

    Code in the folder never runs: a factored checkpoint is built by this package's own model file.
    A folder that names any other is refused, and one whose own is not that of its manifest. The
    adapter of a checkpoint that this package wrote with one is laid over it, as ``--adapter-path``
    does.

    Args:
        folder: Folder in Hugging Face or mlx-community form.
        adapter: Folder of another adapter in mlx-lm's form, which is laid over it instead.

    Returns:
        The model in evaluation mode, its parameters in the types in which they are stored and
        not yet read: each is read when it is first used.

    Raises:
        FormatError: If the folder needs code of its own, is of a type that mlx-lm does not know,
            or if its weights are damaged or do not fit its configuration.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If a file is missing or cannot be read.

    Examples:
        >>> model = load_model("SRC")
        >>> model(mx.array([[5, 6, 7]])).shape
        (1, 3, 80)
    """
    return load_watched(folder, lambda weights: weights, adapter=adapter)


Watch = Callable[[dict[str, mx.array]], dict[str, mx.array]]
"""Is given the tensors of the files by name, and returns them as the model is to see them."""


def load_watched(
    folder: str | Path,
    watch: Watch,
    *,
    with_adapter: bool = True,
    adapter: Path | None = None,
    foreign: bool = True,
) -> nn.Module:
    """Load a checkpoint as `load_model` does, and see the tensors before mlx-lm changes them.

    Args:
        folder: Folder in Hugging Face or mlx-community form.
        watch: Called once, before the ``sanitize`` of mlx-lm's model. Nothing is read yet.
        with_adapter: Whether the adapter of a checkpoint of this package is laid over it.
        adapter: Folder of another adapter in mlx-lm's form, which is laid over it instead.
        foreign: Whether foreign weights are made plain, which mlx-lm itself does not do.

    Returns:
        The model, as `load_model` returns it.

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_model` does.

    Examples:
        >>> seen = {}
        >>> model = load_watched("SRC", lambda weights: seen.setdefault("weights", weights))
        >>> len(seen["weights"])
        21
    """
    folder, utils = Path(folder), mlx_lm_utils()
    file = folder / "config.json"
    config = revealed(read_json(file))
    is_factored = is_factored_format(config, file)
    if is_factored:
        _check_model_file(folder)
    classes = _factored_classes() if is_factored else stock_classes(config, file)
    warn_of_ignored_rope(config, file, built)
    checked = _check_weights(folder)
    own = adapter_of(folder) if with_adapter and adapter is None else None
    try:
        # model_file is withheld, so that mlx-lm asks for the classes instead of running it
        with plain_path(folder) as place:
            model, _ = utils.load_model(
                place,
                lazy=True,
                model_config={"model_file": None},
                get_model_classes=lambda config: (
                    _watched(classes[0], watch, config, file if foreign else None),
                    classes[1],
                ),
            )
            del model.sanitize
            if own is not None:
                utils.load_adapters(model, place / own.name).eval()
        if adapter is not None:
            with plain_path(adapter) as place:
                utils.load_adapters(model, place).eval()
        if _check_weights(folder) != checked:  # by name: mlx-lm opened them in between
            raise changed(folder)
    except (FormatError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # mlx-lm's own code, which raises what it likes
        reason = f"mlx-lm's {config['model_type']!r} model cannot be built from it: {brief(error)}"
        reason += suspects(config, classes[1])
        remedy = "check that config.json and the weights belong together"
        raise FormatError.about(folder, reason, remedy) from error
    loaded: nn.Module = model
    return loaded


def _watched(
    model_class: Any, watch: Watch, config: dict[str, Any], file: Path | None
) -> Callable[[Any], nn.Module]:
    """Return a constructor whose models show ``watch`` what they are about to sanitize.

    With the ``file`` of the configuration, for messages, they sanitize it with foreign weights made
    plain, and mlx-lm's ``config`` says no more of these.
    """

    def build(args: Any) -> nn.Module:
        model: nn.Module = model_class(args)
        own = getattr(model, "sanitize", lambda weights: weights)

        def sanitize(weights: dict[str, mx.array]) -> Any:
            seen = watch(weights)
            return own(seen) if file is None else sanitized(seen, model, own, config, file)

        model.sanitize = sanitize
        return model

    return build


def load_for_inference(folder: str | Path, *, adapter: Path | None = None) -> nn.Module:
    """Load a model for forward passes without gradients, made quick where MLX runs on the CPU.

    There bfloat16 is slow and so are matrix products: weights become float32 (exactly) and
    products run in NumPy, one for every layer, corrected or not. Elsewhere this is `load_model`.

    Args:
        folder: Folder in Hugging Face or mlx-community form.
        adapter: See `load_model`.

    Returns:
        The model in evaluation mode.

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_model` does.
    """
    model = load_model(folder, adapter=adapter)
    if on_cpu():
        model.set_dtype(mx.float32)
        merge_corrections(model)
        use_numpy_products(model)
    return model


def is_factored_format(config: Mapping[str, Any], file: Path) -> bool:
    """Tell whether a configuration is of our own format.

    Raises:
        FormatError: If it names any other model file, which is code.
    """
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


def _check_weights(folder: Path) -> dict[str, Fingerprint]:
    """Check every model*.safetensors of a folder, since mlx-lm trusts their headers."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        reason = "no weights: mlx-lm reads model*.safetensors and there is none"
        raise FormatError.about(folder, reason, "name the folder of a checkpoint")
    fingerprints = {}
    for path in files:
        with open_safetensors(path, home=folder) as file:
            fingerprints[path.name] = file.fingerprint
    return fingerprints
