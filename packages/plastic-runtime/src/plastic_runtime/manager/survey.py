"""The measurements that the policy needs: of the layers, and of what sleeps."""

import math
from collections.abc import Iterable, Mapping

import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core.files import noting

from plastic_runtime.manager.state import LayerView
from plastic_runtime.manager.targets import RankTarget, plastic_spectrum
from plastic_runtime.measure.grams import Gram
from plastic_runtime.sleep.sleep_dict import SleepDict
from plastic_runtime.surgery.gradient_factors import GradientFactors, gradient_factors
from plastic_runtime.surgery.growth import predicted_decrease
from plastic_runtime.surgery.probe_loss import Loss, find_rank_layers
from plastic_runtime.surgery.scores import factor_slope, relevance_score
from plastic_runtime.surgery.sleepers import sleeping_benefit

FROM_GRADIENTS = {
    "descent": lambda layer, gradient: predicted_decrease(layer, gradient, 1),
    "gradient": factor_slope,
}
"""Scores of a layer by what passes it: one pass for all of them, and for growth too."""
SCORES = (*FROM_GRADIENTS, "relevance")


def layer_views(
    model: nn.Module,
    *,
    target: RankTarget,
    score: str,
    loss: Loss | None,
    gradients: Mapping[str, GradientFactors],
    grams: Mapping[str, Gram],
) -> list[LayerView]:
    """Return what the policy needs to know of every ``RankLayer``.

    Args:
        model: Any module; not changed.
        target: How a spectrum names a rank.
        score: One of ``SCORES``.
        loss: Probe for the score. Without one, the score is how evenly the spectrum fills the
            rank. A score that is not finite counts as 0.
        gradients: What passes the layers on the probe batch, finite, from ``gradient_factors``. A
            layer without one has the score 0.
        grams: Input Grams by path; a layer without one is read by its plain spectrum.

    Returns:
        One view per layer, in the order of their paths.
    """
    scores = {} if loss is None else _scores(model, score, loss, gradients)
    views = []
    for path, layer in find_rank_layers(model).items():
        gram = grams[path].matrix if path in grams else None
        with noting(f"in layer {path!r}"):
            spectrum = plastic_spectrum(layer, gram=gram)
        layer_score = scores.get(path, _evenness(spectrum))
        views.append(
            LayerView(
                path=path,
                rank=layer.rank,
                max_rank=layer.max_rank,
                bytes_per_rank=layer.bytes_per_rank,
                score=layer_score if math.isfinite(layer_score) else 0.0,
                target=target.rank(spectrum, layer.shape),
            )
        )
    return views


def benefits(
    model: nn.Module, sleep: SleepDict, ids: Mapping[str, Iterable[int]], loss: Loss | None
) -> dict[int, float]:
    """Return by id what sleeping components would bring.

    Args:
        model: The model they belong to; not changed.
        sleep: Where they sleep.
        ids: The ids of the components, by the path of their layer.
        loss: Probe for ``sleeping_benefit``. Without one, or where its gradient is not finite,
            the benefit is the size ``|S|`` of the component.
    """
    gradients = {} if loss is None else gradient_factors(model, loss)
    worth = {}
    for path, sleepers in ids.items():
        known = path in gradients and gradients[path].finite
        for i in sleepers:
            parked = sleep.get(i)
            worth[i] = sleeping_benefit(parked, gradients[path]) if known else abs(float(parked.S))
    return worth


def _scores(
    model: nn.Module, score: str, loss: Loss, gradients: Mapping[str, GradientFactors]
) -> dict[str, float]:
    """Return the score of every layer by path."""
    if score not in FROM_GRADIENTS:
        return relevance_score(model, loss)
    layers = find_rank_layers(model)
    passed = {path: FROM_GRADIENTS[score](layers[path], g) for path, g in gradients.items()}
    return dict.fromkeys(layers, 0.0) | passed


def _evenness(spectrum: NDArray[np.float64]) -> float:
    """Stable rank over rank: near 1 where every component is used alike (heuristic)."""
    if spectrum.size == 0 or spectrum[0] == 0:
        return 1.0
    return float(np.mean(np.square(spectrum / spectrum[0])))
