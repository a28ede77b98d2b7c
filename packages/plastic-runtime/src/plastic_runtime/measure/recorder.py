"""Linear layers watched in both directions: their inputs, and the gradients at their outputs."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core.layer import Linear, is_stack, linear_from
from plastic_core.linalg import on_cpu

from plastic_runtime.distributed import RunningSum
from plastic_runtime.measure.grams import (
    LONGEST_DENSE_SIDE,
    AnySite,
    GramRecorder,
    LossGrams,
    RoutedSite,
    Site,
    TokenSite,
    flat_sites,
    go_on_from,
    is_dense,
)
from plastic_runtime.measure.intercept import (
    AS_LINEAR,
    BoundCall,
    intercepted,
    modules_by_path,
    tapped,
)
from plastic_runtime.measure.numpy_products import NumpyProduct, numpy_product
from plastic_runtime.measure.probes import LINEARS
from plastic_runtime.measure.sampled_loss import sampled_loss

EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
INPUT, OUTPUT = "input", "output"
Call = Callable[[mx.array], mx.array]
Modules = Mapping[str, nn.Module]


class LossRecorder:
    """Adds up the inputs and the output gradients of layers while parts of a model run.

    Args:
        linears: The layers that may run, by path: linear ones, embeddings, stacks of experts.
            Where MLX computes on the CPU, products of the unsubclassed ones among them run in NumPy
            (not those of experts).
        wanted: The paths to record. An embedding has two: its own, where it looks tokens up, and
            that with ``.as_linear``, where it is the output layer too.
        widest: The longest side of a dense Gram.
        needed: Whether a layer that no gradient reaches is refused, and not left out.
        both: Whether inputs are recorded where gradients are pulled back, and not just the
            gradients.

    Attributes:
        inputs: The inputs, by path; layers that one array enters share a site.
        gradients: The gradients at the outputs, by path.
        tokens: Number of labels drawn.
    """

    def __init__(
        self,
        linears: Modules,
        wanted: Collection[str],
        *,
        widest: int = LONGEST_DENSE_SIDE,
        needed: bool = True,
        both: bool = True,
    ) -> None:
        self.inputs = GramRecorder(widest)
        self._needed, self._both = needed, both
        self.gradients: dict[str, AnySite] = {}
        self.tokens = 0
        self._earlier: dict[str, RunningSum] = {}
        self._awaited: set[str] = set()
        self._linears = linears
        self._wanted = frozenset(wanted)
        self._spared: str | None = None
        self._in_numpy = {p: NumpyProduct(m) for p, m in numpy_linears(linears).items()}

    def pull_back(self, f: Call, x: mx.array, gradient: mx.array) -> mx.array:
        """Run one pass: ``f`` at ``x`` forwards, then backwards from the gradient at its output.

        Returns:
            The gradient at ``x``, evaluated.

        Raises:
            ValueError: If an input or a gradient is not finite (a note names the layer), or no
                gradient reaches a layer and each is needed.
        """
        self.inputs.new_pass()
        self._awaited.clear()
        pulled = self._pulled(f, x, gradient, self._around)
        if self._awaited and self._needed:
            raise ValueError(
                f"no gradient reaches layer '{min(self._awaited)}': the logits do not depend on it "
                "or something after it cannot be differentiated; leave it out of `paths`."
            )
        return pulled

    def pass_through(self, f: Call, x: mx.array) -> mx.array:
        """Run ``f`` at ``x`` forwards alone, record the inputs, and return what it gives.

        Raises:
            ValueError: If an input is not finite (a note names the layer).
        """
        self.inputs.new_pass()
        with intercepted(self._linears, self._forwards):
            y = f(x)
            mx.eval(y)
        return y

    def pass_up_to_last(self, f: Call, x: mx.array) -> None:
        """Run ``f`` at ``x`` forwards, and nothing behind the last input that is to be recorded.

        Raises:
            ValueError: If an input is not finite (a note names the layer).
        """
        missing = set(self._wanted)

        def forwards(path: str, bound: BoundCall, x: mx.array) -> mx.array:
            missing.discard(path)
            if missing or path not in self._wanted:
                return self._forwards(path, bound, x)
            self._record_input(path, bound, x)
            raise _AllRecorded

        self.inputs.new_pass()
        if missing:
            with suppress(_AllRecorded), intercepted(self._linears, forwards):
                f(x)

    def spare(self, f: Call, x: mx.array, gradient: mx.array) -> None:
        """Find out whether gradients depend on what the last layer in ``f`` computes.

        They do not where it is only added to something, as at the end of a block. Its product is
        left out of later passes then; MLX by itself computes nothing that is not needed.

        Args:
            f: As for `pull_back`, of which every pass through the same layers is alike.
            x: A few inputs, run twice; nothing is recorded.
            gradient: At the output.
        """
        ran = list[str]()

        def around(probe: mx.array, path: str, call: Call, x: mx.array) -> mx.array:
            if path not in self._in_numpy:
                return call(x)
            ran.append(path)
            return self._product(path, x)

        pulled = self._pulled(f, x, gradient, around)
        if ran:
            self._spared = ran[-1]
            without = self._pulled(f, x, gradient, around)
            if not mx.array_equal(pulled, without).item():
                self._spared = None

    def _pulled(
        self,
        f: Call,
        x: mx.array,
        gradient: mx.array,
        around: Callable[[mx.array, str, BoundCall, mx.array], mx.array],
    ) -> mx.array:
        """Return the gradient at ``x``, the layers computed by ``around``."""

        def watched(x: mx.array, probe: mx.array) -> mx.array:
            with intercepted(self._linears, partial(around, probe)):
                return f(x)

        # The zero is for MLX to follow where a layer does not depend on x.
        _, (pulled, _) = mx.vjp(watched, [x, mx.array(0.0)], [gradient])
        mx.eval(pulled)
        return pulled

    def _product(self, path: str, x: mx.array) -> mx.array:
        return self._in_numpy[path](x, forwards=path != self._spared)

    def pull_back_loss(self, logits: Call, x: mx.array, draw: np.random.Generator) -> mx.array:
        """Run the same for the loss of labels drawn from ``logits(x)``; see `sampled_loss`."""

        def loss(x: mx.array) -> mx.array:
            z = logits(x)
            self.tokens += z.size // z.shape[-1]
            return sampled_loss(z, draw)

        return self.pull_back(loss, x, mx.array(1.0))

    def pull_back_model(
        self, model: nn.Module, batches: Iterable[tuple[mx.array, np.random.Generator]]
    ) -> None:
        """The same for a whole model, on each of its inputs with what draws the labels."""
        for batch, draw in batches:
            self.pull_back_loss(partial(_logits, model, batch), mx.array(0.0), draw)

    def grams(self) -> dict[str, LossGrams]:
        """Return the means; the sums are used up."""
        sites, gradients = self.sums()
        sites = {path: sites[path] for path in gradients}
        once = {id(site): site for site in sites.values()}
        means = {name: site.mean(site.tokens) for name, site in once.items()}
        return {
            path: LossGrams(means[id(sites[path])], site.mean(self.tokens))
            for path, site in gradients.items()
        }

    def sums(self) -> tuple[dict[str, Site], dict[str, Site]]:
        """Return the sums of inputs and of gradients by path; experts by `flat_sites`."""
        passed = {path: Site.of(total) for path, (total, _) in self._earlier.items()}
        return flat_sites(self.inputs.sites), flat_sites(self.gradients) | passed

    def go_on_from(self, sums: Mapping[str, RunningSum], tokens: int) -> None:
        """Go on from the `running_sums` of a recorder for the same layers, in another process.

        Args:
            sums: Its sums. This recorder has none yet.
            tokens: Its number of labels.
        """
        for name, running in sums.items():
            kind, _, path = name.partition(".")
            (self.inputs.earlier if kind == INPUT else self._earlier)[path] = running
        self.tokens = tokens

    def running_sums(self) -> dict[str, RunningSum]:
        """Return every sum once, for `go_on_from`."""
        sites, gradients = self.sums()
        first = {id(site): path for path, site in reversed(sites.items())}
        sums = {f"{INPUT}.{path}": sites[path] for path in first.values()}
        sums |= {f"{OUTPUT}.{path}": site for path, site in gradients.items()}
        return {name: RunningSum(site.total, site.tokens) for name, site in sums.items()}

    def _around(self, probe: mx.array, path: str, bound: BoundCall, x: mx.array) -> mx.array:
        call = self._call(path, bound)
        if path not in self._wanted:
            return call(x)
        self._awaited.add(path)
        if self._both:
            self._record_input(path, bound, x)
        y = call(x)
        record = partial(self._record, path, self._indices(path, bound))
        return cast(mx.array, tapped(y, probe, record))

    def _forwards(self, path: str, bound: BoundCall, x: mx.array) -> mx.array:
        if path in self._wanted:
            self._record_input(path, bound, x)
        return self._call(path, bound)(x)

    def _call(self, path: str, bound: BoundCall) -> Call:
        return partial(self._product, path) if path in self._in_numpy else bound

    def _indices(self, path: str, bound: BoundCall) -> list[mx.array]:
        """Return the experts that a call of a stack names; nothing for what is none."""
        return [chosen_experts(bound)] if self._experts(path) else []

    def _record_input(self, path: str, bound: BoundCall, x: mx.array) -> None:
        module, experts = self._linears.get(path), self._experts(path)
        if isinstance(module, EMBEDDINGS):
            size = len(module.weight)
            self.inputs.record(path, f"of {size} tokens", partial(TokenSite, size), x)
        else:
            make = partial(self._site, x.shape[-1], experts, side=None)
            kind = f"for {experts} experts"
            self.inputs.record(path, kind, make, x, *self._indices(path, bound))

    def _experts(self, path: str) -> int:
        """Count the sums that a stack of experts needs; 0 for what is none."""
        module = self._linears.get(path)
        if module is None or not is_stack(module):
            return 0
        side, count = max(module.input_dims, module.output_dims), module.num_experts
        return count if is_dense(side, self.inputs.widest, count=count) else 1

    def _site(self, size: int, experts: int, *, side: int | None) -> AnySite:
        """Return a new site for vectors of a layer, or of so many experts; see `Site`."""
        options: Any = {"widest": self.inputs.widest, "side": side, "dtype": np.float32}
        return RoutedSite(size, experts, **options) if experts else Site(size, **options)

    def _record(self, path: str, indices: list[mx.array], _: mx.array, gradient: mx.array) -> None:
        if path not in self.gradients:
            site = self._site(gradient.shape[-1], self._experts(path), side=1)
            self.gradients[path] = go_on_from(self._earlier, path, site)
        known: Any = self.gradients[path]
        try:
            known.add(gradient, *indices)
        except ValueError as error:
            error.add_note(f"while measuring the gradients of layer '{path}'")
            raise
        self._awaited.discard(path)


class _AllRecorded(Exception):  # it is no error
    """Every input was recorded; what follows is not wanted."""


def _logits(model: nn.Module, batch: mx.array, _: mx.array) -> mx.array:
    return cast(mx.array, model(batch))


def chosen_experts(bound: BoundCall) -> mx.array:
    """Return the experts that a call of a stack names beside its input.

    Examples:
        >>> call = BoundCall(lambda module, x, indices: x, nn.Identity(), (mx.array([2]),), {})
        >>> chosen_experts(call).tolist()
        [2]
    """
    return cast(mx.array, bound.args[0] if bound.args else bound.kwargs["indices"])


def linear_layers(
    model: nn.Module, paths: Sequence[str] | None
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return all layers with Grams by path, and the paths that are wanted, in the same order.

    These are linear layers and, if their paths are given, stacks of experts and embeddings; the
    path of an embedding stands for both its uses: see `LossRecorder`.

    Raises:
        ValueError: If a path is not that of such a layer.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> layers, wanted = linear_layers(model, None)
        >>> list(layers), wanted
        (['layers.0', 'layers.1'], ['layers.1'])
    """
    modules = modules_by_path(model)
    kinds = (*LINEARS, *EMBEDDINGS)
    linears = {p: m for p, m in modules.items() if isinstance(m, kinds) or is_stack(m)}
    for path in paths or ():
        if path not in linears:
            raise ValueError(f"`paths` must be those of linear layers in the model, got '{path}'.")
    wanted = list[str]()
    for path, module in linears.items():
        if path in paths if paths is not None else isinstance(module, LINEARS):
            wanted += [path, f"{path}.{AS_LINEAR}"] if isinstance(module, EMBEDDINGS) else [path]
    return linears, wanted


def numpy_linears(linears: Modules) -> dict[str, Linear]:
    """Return the layers whose products NumPy computes where MLX would on the CPU, by path."""
    if not on_cpu():
        return {}
    in_numpy: dict[str, Linear] = {}
    for path, module in linears.items():
        if type(module) in (nn.Linear, nn.QuantizedLinear):
            in_numpy[path] = cast(Linear, module)
        elif type(module) is nn.Embedding:
            in_numpy[f"{path}.{AS_LINEAR}"] = linear_from(module.weight, None)
    return in_numpy


def using_numpy(linears: Modules, *, keep: bool = False) -> AbstractContextManager[None]:
    """Let products of the layers run in NumPy within a block, where that is quicker.

    Args:
        linears: The layers by path; see `linear_layers`.
        keep: Whether weights, once widened to float32, are kept until the end of the block.

    Examples:
        >>> linear, x = nn.Linear(4, 4), mx.ones((2, 4))
        >>> with using_numpy({"": linear}):
        ...     y = linear(x)
        >>> mx.allclose(y, linear(x)).item()
        True
    """
    layers = numpy_linears(linears)
    kept = {path: NumpyProduct(layer) for path, layer in layers.items()} if keep else {}

    def around(path: str, call: Call, x: mx.array) -> mx.array:
        if path in kept:
            return kept[path](x)
        return numpy_product(x, layers[path]) if path in layers else call(x)

    owners = {path.removesuffix(f".{AS_LINEAR}") for path in layers}
    return intercepted({path: linears[path] for path in owners}, around)
