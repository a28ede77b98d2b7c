"""Linear layers watched in both directions: their inputs, and the gradients at their outputs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core.stock import Linear

from plastic_runtime.grams import GramRecorder, LossGrams, Site
from plastic_runtime.host import host_product
from plastic_runtime.intercept import intercepted, modules_by_path
from plastic_runtime.labels import sampled_loss
from plastic_runtime.probes import LINEARS

Call = Callable[[mx.array], mx.array]
Modules = Mapping[str, nn.Module]


class LossRecorder:
    """Adds up the inputs and the output gradients of layers while parts of a model run.

    Args:
        linears: The linear layers that may run, by path. Where MLX computes on the CPU, products
            of the unsubclassed ones among them run in NumPy.
        wanted: Which of them to record.

    Attributes:
        inputs: The inputs, by path; layers that one array enters share a site.
        gradients: The gradients at the outputs, by path.
        tokens: Number of labels drawn.
    """

    def __init__(self, linears: Modules, wanted: Collection[str]) -> None:
        self.inputs = GramRecorder()
        self.gradients: dict[str, Site] = {}
        self.tokens = 0
        self._awaited: set[str] = set()
        self._linears = linears
        self._wanted = frozenset(wanted)
        self._on_host = on_host(linears)

    def pull_back(self, f: Call, x: mx.array, gradient: mx.array) -> mx.array:
        """One pass: ``f`` at ``x`` forwards, then backwards from the gradient at its output.

        Returns:
            The gradient at ``x``, evaluated.

        Raises:
            ValueError: If an input or a gradient is not finite (a note names the layer), or no
                gradient reaches a layer.
        """
        self.inputs.new_pass()

        def watched(x: mx.array, probe: mx.array) -> mx.array:
            with intercepted(self._linears, partial(self._around, probe)):
                return f(x)

        # The zero is for MLX to follow where a layer does not depend on x.
        _, (pulled, _) = mx.vjp(watched, [x, mx.array(0.0)], [gradient])
        mx.eval(pulled)
        if self._awaited:
            raise ValueError(
                f"no gradient reaches layer '{min(self._awaited)}': the logits do not depend on it "
                "or something after it cannot be differentiated; leave it out of `paths`."
            )
        return pulled

    def pull_back_loss(self, logits: Call, x: mx.array, key: mx.array) -> mx.array:
        """The same for the loss of labels drawn from ``logits(x)``; see `sampled_loss`."""

        def loss(x: mx.array) -> mx.array:
            z = logits(x)
            self.tokens += z.size // z.shape[-1]
            return sampled_loss(z, key)

        return self.pull_back(loss, x, mx.array(1.0))

    def pull_back_model(self, model: nn.Module, batch: mx.array, key: mx.array) -> None:
        """The same for a whole model."""
        self.pull_back_loss(lambda _: cast(mx.array, model(batch)), mx.array(0.0), key)

    def grams(self) -> dict[str, LossGrams]:
        """The means; the sums are used up."""
        sites = self.inputs.sites
        once = {id(site): site for site in sites.values()}
        means = {name: site.mean(site.tokens) for name, site in once.items()}
        return {
            path: LossGrams(means[id(sites[path])], site.mean(self.tokens))
            for path, site in self.gradients.items()
        }

    def _around(self, probe: mx.array, path: str, call: Call, x: mx.array) -> mx.array:
        if path in self._on_host:
            call = partial(host_product, linear=self._on_host[path])
        if path not in self._wanted:
            return call(x)
        self._awaited.add(path)
        y = self.inputs.around(path, call, x)
        return cast(mx.array, _tapped(y, probe, partial(self._record, path)))

    def _record(self, path: str, gradient: mx.array) -> None:
        try:
            self.gradients.setdefault(path, Site(gradient.shape[-1])).add(gradient)
        except ValueError as error:
            error.add_note(f"while measuring the gradients of layer '{path}'")
            raise
        self._awaited.discard(path)


def linear_layers(
    model: nn.Module, paths: Sequence[str] | None
) -> tuple[dict[str, nn.Module], list[str]]:
    """All linear layers by path, and the paths among them that are wanted, in the same order.

    Raises:
        ValueError: If a path is not that of a linear layer.
    """
    modules = modules_by_path(model)
    linears = {path: modules[path] for path in modules if isinstance(modules[path], LINEARS)}
    for path in paths or ():
        if path not in linears:
            raise ValueError(f"`paths` must be those of linear layers in the model, got '{path}'.")
    return linears, [path for path in linears if paths is None or path in paths]


def on_host(linears: Modules) -> dict[str, Linear]:
    """The layers whose products NumPy is to compute: stock ones, where MLX would on the CPU."""
    if mx.default_device() != mx.Device(mx.cpu):
        return {}
    stock = (nn.Linear, nn.QuantizedLinear)
    return {path: cast(Linear, m) for path, m in linears.items() if type(m) in stock}


def hosted(linears: Modules) -> AbstractContextManager[None]:
    """For the length of a block, products of the layers run in NumPy where that is quicker."""
    layers = on_host(linears)
    return intercepted(layers, lambda path, call, x: host_product(x, layers[path]))


def _tapped(
    y: mx.array | list[mx.array], probe: mx.array, record: Callable[[mx.array], None]
) -> Any:
    """``y`` itself, whose gradient goes to ``record`` as the backward pass meets it."""

    @mx.custom_function
    def tap(y: mx.array, probe: mx.array) -> mx.array:
        return y

    @tap.vjp
    def backward(primals: Any, gradient: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        record(gradient)
        return gradient, mx.zeros_like(primals[1])

    if isinstance(y, mx.array):
        return tap(y, probe)
    # Some fused projections return their output in parts.
    ends = np.cumsum([part.shape[-1] for part in y])[:-1].tolist()
    return cast(mx.array, tap(mx.concatenate(y, axis=-1), probe)).split(ends, axis=-1)
