"""The input Grams of a model, which comes out of the measurement as it went in."""

from collections.abc import Iterable
from typing import Any

import mlx.nn as nn
from plastic_core import RankLayer, projections

from plastic_runtime.measure.grams import Gram, GramRecorder, flat_sites
from plastic_runtime.measure.intercept import intercepted, modules_by_path

LINEARS = (nn.Linear, nn.QuantizedLinear, RankLayer)


def input_grams(
    model: nn.Module, batches: Iterable[Any], *, paths: Iterable[str] | None = None
) -> dict[str, Gram]:
    """Run a model and accumulate ``E[x x^T]`` over the inputs of its layers.

    Every ``model(batch)`` is one forward pass. Layers that one and the same array enters, as the
    query, key and value projections do, share one Gram: the same object under each path. A stack
    of experts has one Gram over all that enters it. The model is put back exactly, also when a
    pass fails.

    Args:
        model: Any module; it is run as it is, so call ``model.eval()`` first where that matters.
        batches: Inputs of the model, such as token windows of shape ``(batch, length)``.
        paths: Paths of the layers wanted; by default every linear layer, ``RankLayer`` and
            projection with experts. Fewer paths, less memory.

    Returns:
        The Gram of every layer that was run on floating-point inputs, by path.

    Raises:
        ValueError: If a path is not in the model, ``batches`` is empty, or an input has NaN or
            infinities; a note names the layer.

    Note:
        Products and sums are float64, on the CPU, outside MLX: ``2 tokens in^2`` operations and
        ``8 in^2`` bytes per site. Each input is evaluated at once and then let go.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> input_grams(model, [mx.array([[1.0, 0.0], [3.0, 0.0]])])["layers.0"].matrix.tolist()
        [[5.0, 0.0], [0.0, 0.0]]
    """
    recorder = GramRecorder()
    with intercepted(_modules(model, paths), recorder.around):
        for batch in batches:
            recorder.new_pass()
            model(batch)
    if not recorder.passes:
        raise ValueError("`batches` must hold at least one batch.")
    sites = flat_sites(recorder.sites)
    grams = {id(site): site.gram() for site in sites.values()}
    return {path: grams[id(site)] for path, site in sites.items()}


def _modules(model: nn.Module, paths: Iterable[str] | None) -> dict[str, nn.Module]:
    if paths is not None:
        return {path: _module(model, path) for path in paths}
    modules = modules_by_path(model)
    wanted = {path for path, m in modules.items() if isinstance(m, LINEARS)}
    wanted |= {p.path for p in projections(model)}
    return {path: m for path, m in modules.items() if path in wanted}


def _module(model: nn.Module, path: str) -> nn.Module:
    modules = modules_by_path(model)
    if path not in modules:
        raise ValueError(f"`path` must be that of a module in the model, got '{path}'.")
    return modules[path]
