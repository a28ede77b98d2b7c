"""The architecture of a factored configuration, hidden from tools that know no factors.

transformers and other loaders go by ``model_type`` and ``architectures``. Where layers are stored
as factors they would build the dense model of that name, find no weights for those layers, and run
it with random matrices. So a factored config.json names an architecture that nobody knows, and a
quantisation without a method, which transformers refuses to load and mlx-lm takes for none. What
stood there is kept under ``plastic``, where this package looks. ``model_type`` stays: transformers
chooses tokenizers by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ARCHITECTURES, _QUANTIZATION = "architectures", "quantization_config"
_STOCK = "stock"
_OWN = "plastic"


def hidden(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that only the model file and this package can build a model from.

    Args:
        config: Content of config.json, with an entry ``plastic``.

    Examples:
        >>> factored = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "plastic": {}}
        >>> config = hidden(factored)
        >>> config["architectures"], config["quantization_config"]
        (['PlasticLlamaForCausalLM'], {})
        >>> revealed(config) == factored
        True
    """
    stock = {_ARCHITECTURES: config[_ARCHITECTURES]} if _ARCHITECTURES in config else {}
    changed = {name: _renamed(value) for name, value in stock.items()}
    if not config.get(_QUANTIZATION):
        stock |= {_QUANTIZATION: config[_QUANTIZATION]} if _QUANTIZATION in config else {}
        changed[_QUANTIZATION] = {}
    return {**config, **changed, _OWN: {**config[_OWN], _STOCK: stock}}


def revealed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the names of the stock model; any other as it is.

    Args:
        config: Content of config.json, as `hidden` made it or as another release or tool did.
    """
    own = config.get(_OWN)
    if not isinstance(own, Mapping) or not isinstance(own.get(_STOCK), Mapping):
        return dict(config)
    kept = {name: value for name, value in own.items() if name != _STOCK}
    given = {k: v for k, v in config.items() if (k, v) != (_QUANTIZATION, {})}
    return {**given, **own[_STOCK], _OWN: kept}


def _renamed(value: Any) -> Any:
    """Return a name, or several, with a prefix."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    return f"Plastic{value}" if isinstance(value, str) else value
