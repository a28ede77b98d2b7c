"""Rotary settings of a configuration that mlx-lm's model does not take up.

transformers 5 writes them as ``rope_parameters``, before that they were entries of their own. A
model that reads the older entries alone is built with its defaults from a newer configuration, and
runs: fluent at first, wrong far from the beginning.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from plastic_export.checkpoint.warning import warn_about

NEW = "rope_parameters"
_THETA = ("rope_theta", "rotary_emb_base", "rope_base")
_LOCAL_THETA = ("rope_local_base_freq", "local_rope_theta", "rope_local_theta", "swa_rope_theta")
_PART = ("partial_rotary_factor", "rotary_pct", "rope_pct")
_UNSCALED = ("default", "mrope", None)  # mrope places images; text is as with the default
_LOCAL = "sliding_attention"
_OUTCOME = (
    "the model that runs, here and in stock mlx-lm, is not the one of the configuration: write the "
    "older entries (rope_theta, rope_scaling) beside it"
)
Build = Callable[[dict[str, Any]], nn.Module]
Settings = dict[str, Any]


def warn_of_ignored_rope(config: Mapping[str, Any], file: Path, build: Build) -> None:
    """Warn of rotary settings that make no difference to the model, or not the one they should.

    Models are built and compared: of the configuration, of the same with the older entries of the
    same meaning, and of that without scaling. No weight is computed.

    Args:
        config: Content of config.json.
        file: Its place.
        build: Makes mlx-lm's model of a configuration.
    """
    if reason := _reason(json.dumps(config), build):
        warn_about(file, f"mlx-lm's {config.get('model_type')!r} model {reason}", _OUTCOME)


@lru_cache(maxsize=16)  # a model is loaded more than once, and built twice or thrice here
def _reason(text: str, build: Build) -> str | None:
    config: Settings = json.loads(text)
    older = with_older_entries(config)
    if older == config and not any(map(_is_scaled, _levels(config))):
        return None
    try:
        own = rotary_state(build(config))
    except Exception:  # which whoever loads the model reports
        return None
    return _difference(own, older, build) or _unscaled(own, older, build)


def _difference(own: Settings, older: Settings, build: Build) -> str | None:
    """Say how the model of the older entries differs, if it does."""
    try:
        meant = rotary_state(build(copy.deepcopy(older)))
    except Exception as error:
        return f"ignores {NEW!r}, which asks for what it cannot do: {error}"
    names = {path.rpartition(".")[2]: path for path in own if _differ(own[path], meant.get(path))}
    told = ", ".join(_told(name, own[path], meant.get(path)) for name, path in names.items())
    return f"ignores {NEW!r}: it takes {told}" if names else None


def _told(name: str, own: Any, meant: Any) -> str:
    """Say what a setting is, and what it should be where both are a number or a word."""
    if isinstance(own, np.ndarray):
        return f"other {name.strip('_')}"
    return f"{name} {own}" if meant is None else f"{name} {own} for {meant}"


def _unscaled(own: Settings, older: Settings, build: Build) -> str | None:
    """Say that a scaling is ignored, if the model without it is the same."""
    scaled = [level for level in _levels(older) if _is_scaled(level)]
    if not scaled:
        return None
    kind = _type(scaled[0]["rope_scaling"])
    for level in scaled:
        level["rope_scaling"] = None
        level.pop(NEW, None)
    try:
        without = rotary_state(build(older))
    except Exception:  # it cannot be built without, so it takes it up
        return None
    same = own.keys() == without.keys() and not any(_differ(own[p], without[p]) for p in own)
    return f"ignores the scaling of its rotary embedding, {kind!r}" if same else None


def with_older_entries(config: Mapping[str, Any]) -> Settings:
    """Return a copy of a configuration with ``rope_parameters`` written as older entries, too."""
    older = copy.deepcopy(dict(config))
    for level in _levels(older):
        if isinstance(parameters := level.get(NEW), dict):
            level |= _older(parameters)
    return older


def _older(parameters: Settings) -> Settings:
    kinds = {name: part for name, part in parameters.items() if isinstance(part, dict)}
    if not kinds:
        return _entries(parameters)
    far = next((part for name, part in kinds.items() if name != _LOCAL), {})
    local = {name: kinds[_LOCAL]["rope_theta"] for name in _LOCAL_THETA} if _LOCAL in kinds else {}
    return local | _entries(far)


def _entries(parameters: Settings) -> Settings:
    entries: Settings = {}
    if "rope_theta" in parameters:
        entries |= dict.fromkeys(_THETA, parameters["rope_theta"])
    if "partial_rotary_factor" in parameters:
        entries |= dict.fromkeys(_PART, parameters["partial_rotary_factor"])
    if (kind := _type(parameters)) not in _UNSCALED:
        entries["rope_scaling"] = parameters | {"type": kind, "rope_type": kind}
    return entries


def _levels(config: Any) -> list[Settings]:
    """Return a configuration and those nested in it, but not the parts of a setting."""
    inner = [v for n, v in config.items() if isinstance(v, dict) and n.endswith("_config")]
    return [config, *(level for part in inner for level in _levels(part))]


def _is_scaled(level: Mapping[str, Any]) -> bool:
    scaling = level.get("rope_scaling")
    return isinstance(scaling, dict) and _type(scaling) not in _UNSCALED


def _type(parameters: Mapping[str, Any]) -> Any:
    return parameters.get("rope_type", parameters.get("type"))


def rotary_state(model: nn.Module) -> Settings:
    """Return all that the layers of a model hold beside weights: numbers, words, frequencies."""
    state: Settings = {}
    modules: list[tuple[str, nn.Module]] = model.named_modules()  # type: ignore[no-untyped-call]
    for path, module in modules:
        for name, value in vars(module).items():
            if isinstance(value, bool | int | float | str):
                state[f"{path}.{name}"] = value
        for name, value in module.items():
            if name.startswith("_") and isinstance(value, mx.array):
                state[f"{path}.{name}"] = np.asarray(value.astype(mx.float32))
    return state


def _differ(one: Any, other: Any) -> bool:
    return not np.array_equal(np.asarray(one), np.asarray(other))
