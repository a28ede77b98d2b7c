"""mlx-lm's model of a configuration, and the layers of it that can be stored otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
from plastic_core.files import FormatError
from plastic_core.layer import is_stack

from plastic_export.checkpoint.settings import check_settings, suspects
from plastic_export.checkpoint.tensors import Kind
from plastic_export.model.library import brief, mlx_lm_utils


class StockModel(NamedTuple):
    """mlx-lm's model of a configuration, its weights never computed.

    Attributes:
        module: The model.
        kinds: Path, kind and number of experts of every linear layer, embedding and stack.
    """

    module: nn.Module
    kinds: list[tuple[str, Kind, int]]


def stock_model(config: dict[str, Any], file: str | Path = "config.json") -> StockModel:
    """Build mlx-lm's model of a configuration and find the layers that can be quantised.

    Args:
        config: Content of config.json.
        file: Its place, for the message.

    Raises:
        FormatError: If mlx-lm has no such model, or cannot build one from the configuration.
        ModuleNotFoundError: If mlx-lm is not installed.
    """
    _, arguments = stock_classes(config, file)
    try:
        model = built(config)
    except Exception as error:  # mlx-lm's own code, which raises what it likes
        reason = f"mlx-lm's {config['model_type']!r} model cannot be built: {brief(error)}"
        reason += suspects(config, arguments)
        raise FormatError.about(file, reason, "correct the configuration") from error
    stock = StockModel(model, [])
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            stock.kinds.append((path, "linear", 0))
        elif type(module) is nn.Embedding:
            stock.kinds.append((path, "embedding", 0))
        elif is_stack(module) and hasattr(module, "to_quantized"):
            stock.kinds.append((path, "experts", module.num_experts))
    return stock


def built(config: dict[str, Any]) -> Any:
    """Build mlx-lm's model; its code raises what it likes."""
    model_class, args_class = stock_classes(config, "config.json")
    return model_class(args_class.from_dict(config))


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


def stock_classes(config: dict[str, Any], file: str | Path) -> tuple[Any, Any]:
    """Return the classes of mlx-lm itself; where it has none, a folder's own code is no way out."""
    model_type, utils = config.get("model_type"), mlx_lm_utils()
    try:
        model_class, args_class = utils._get_classes(config)
    except SystemExit:  # as its module for olmo does
        reason = f"mlx-lm's {model_type!r} model needs a package that is not installed"
        raise FormatError.about(file, reason, "install what it asks for") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _check_import(error.__cause__, file)
        reason = f"mlx-lm has no model of type {model_type!r}"
        if "auto_map" in config:
            reason += ", and 'auto_map' names code of the folder, which is never run"
        remedy = "take an architecture that mlx-lm knows, or a newer mlx-lm"
        raise FormatError.about(file, reason, remedy) from None
    check_settings(config, args_class, file)
    return model_class, args_class


def _check_import(cause: BaseException | None, file: str | Path) -> None:
    """Refuse a model that is there, and could not be imported."""
    missing = isinstance(cause, ModuleNotFoundError) and str(cause.name).startswith("mlx_lm.models")
    if isinstance(cause, ImportError) and not missing:
        reason = f"mlx-lm's model could not be imported: {brief(cause)}"
        raise FormatError.about(file, reason, "install mlx-lm anew, or raise the limits") from cause
