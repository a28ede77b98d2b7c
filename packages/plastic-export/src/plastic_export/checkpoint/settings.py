"""The numbers of a configuration, against what mlx-lm's model declares for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from plastic_core.files import FormatError

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_FEW = 1000  # layers, which are built in no time
_LARGEST = 2**31 - 1  # MLX counts in 32 bits
_REMEDY = "correct it, or download the file again"


def check_settings(config: Mapping[str, Any], arguments: type, file: str | Path) -> None:
    """Refuse a setting that is no number where mlx-lm's model declares one.

    Args:
        config: Content of config.json.
        arguments: mlx-lm's ``ModelArgs`` of the model.
        file: The configuration's file, for the message.

    Raises:
        FormatError: Naming the first such setting, or a whole number that MLX cannot count to.
    """
    for name, value, kinds in _numbers(config, arguments):
        if isinstance(value, str | list | dict):
            raise _wrong(file, name, value, "mlx-lm's model takes a number")
        if value is not None and float not in kinds and abs(value) > _LARGEST:
            raise _wrong(file, name, value, f"MLX counts to {_LARGEST}")


def check_layers(config: Mapping[str, Any], tensors: int, file: Path) -> None:
    """Refuse more layers than there are tensors: to build them would not end.

    Raises:
        FormatError: Naming the setting.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in _LAYERS:
            count = part.get(name)
            if isinstance(count, int) and count > max(tensors, _FEW):
                raise _wrong(file, name, count, f"the weights are {tensors} tensors")


def suspects(config: Mapping[str, Any], arguments: type) -> str:
    """Return the settings that may be why a model cannot be built or run, in words to be added."""
    odd = {
        name: value
        for name, value, kinds in _numbers(config, arguments)
        if _is_odd(value, kinds, getattr(arguments, name, ...))
    }
    odd |= {
        name: value
        for name, value, kinds in _declared(config, arguments)
        if kinds == {dict} and not isinstance(value, dict | None)
    }
    named = (
        f"{name!r} is {'null' if value is None else value!r:.60}" for name, value in odd.items()
    )
    return f" ({', '.join(named)})" if odd else ""


def _is_odd(value: Any, kinds: set[Any], default: Any) -> bool:
    """Tell whether a number is absent, not positive, endless, or no whole one where it should."""
    if value is None:
        return default is not None
    if not math.isfinite(value) or not 0 < value < _LARGEST:
        return True
    return float not in kinds and value != int(value)


def _numbers(config: Mapping[str, Any], arguments: type) -> Iterator[tuple[str, Any, set[Any]]]:
    """Yield the settings for which numbers are declared: name, value, and the declared types."""
    for name, value, kinds in _declared(config, arguments):
        if kinds <= {int, float}:
            yield name, value, kinds


def _declared(config: Mapping[str, Any], arguments: type) -> Iterator[tuple[str, Any, set[Any]]]:
    """Yield the settings that are declared: name, value, and types but that of null."""
    for name, hint in get_type_hints(arguments).items():
        is_union = get_origin(hint) in (Union, UnionType)
        hints = get_args(hint) if is_union else (hint,)
        if name in config:
            yield name, config[name], {get_origin(h) or h for h in hints} - {type(None)}


def _wrong(file: str | Path, name: str, value: Any, reason: str) -> FormatError:
    return FormatError.about(file, f"{name!r} is {value!r:.60}, and {reason}", _REMEDY)
