"""The architecture of a factored configuration, hidden from tools that know no factors.

transformers and other loaders go by ``model_type`` and ``architectures``. Where layers are stored
as factors they would build the dense model of that name, find no weights for those layers, and run
it with random matrices. So a factored config.json has names that nobody knows, and the names of the
stock model stand under ``plastic``, where this package and the model file look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = ("model_type", "architectures")
_STOCK = "stock"
_OWN = "plastic"
_PREFIX = {"model_type": "plastic_", "architectures": "Plastic"}


def hidden(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that only the model file and this package can build a model from.

    Args:
        config: Content of config.json, with an entry ``plastic``.

    Examples:
        >>> factored = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "plastic": {}}
        >>> config = hidden(factored)
        >>> config["model_type"], config["architectures"]
        ('plastic_llama', ['PlasticLlamaForCausalLM'])
        >>> revealed(config) == factored
        True
    """
    stock = {name: config[name] for name in _NAMES if name in config}
    named = {name: _renamed(value, _PREFIX[name]) for name, value in stock.items()}
    return {**config, **named, _OWN: {**config[_OWN], _STOCK: stock}}


def revealed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the names of the stock model; any other as it is.

    Args:
        config: Content of config.json, as `hidden` made it or as another release or tool did.
    """
    own = config.get(_OWN)
    if not isinstance(own, Mapping) or not isinstance(own.get(_STOCK), Mapping):
        return dict(config)
    kept = {name: value for name, value in own.items() if name != _STOCK}
    return {**config, **own[_STOCK], _OWN: kept}


def _renamed(value: Any, prefix: str) -> Any:
    """Return a name, or several, with the prefix."""
    if isinstance(value, list):
        return [_renamed(item, prefix) for item in value]
    return f"{prefix}{value}" if isinstance(value, str) else value
