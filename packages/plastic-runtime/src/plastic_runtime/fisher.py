"""What the loss knows of every linear layer: Grams of its inputs and of its output gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core.stock import Linear

from plastic_runtime.gramcache import GramCache
from plastic_runtime.grams import Gram, GramRecorder, Site
from plastic_runtime.host import host_product
from plastic_runtime.intercept import intercepted, modules_by_path
from plastic_runtime.probes import LINEARS

Call = Callable[[mx.array], mx.array]


class LossGrams(NamedTuple):
    r"""The two factors of a layer's Fisher information.

    A change D of the layer's weight raises the KL divergence to the model by about
    :math:`\tfrac12 \mathrm{tr}(C D R D^T)` nats per token.

    Attributes:
        input: ``R = E[x x^T]``, shape ``(in, in)``, the mean over all inputs of the layer.
        output: ``C = E[g g^T]``, shape ``(out, out)``: the sum over all outputs of the layer,
            divided by the tokens of the text. A layer that each token passes twice has the sum
            of both, a layer that half of the tokens pass has half.
    """

    input: Gram
    output: Gram


def loss_grams(
    model: nn.Module,
    batches: Iterable[mx.array],
    *,
    seed: int = 0,
    paths: Sequence[str] | None = None,
    cache: Path | None = None,
) -> dict[str, LossGrams]:
    r"""Run a language model forwards and backwards and accumulate the Grams of its linear layers.

    The gradient of a layer is :math:`g = \partial L / \partial y` at its output y, for every
    token, where L is the negative log-likelihood, summed over all positions, of labels drawn
    from the model's own distribution: the Fisher information, not the empirical one. Batch i
    draws with the i-th key split off ``mx.random.key(seed)``. No gradient of a weight is made.

    The model is run as it is, in its own types: pass one in float32, after ``model.eval()``. It
    is put back exactly, also when a pass fails.

    Args:
        model: Maps tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``.
        batches: Its inputs. One batch is held with all its activations.
        seed: Decides the labels.
        paths: Paths of the layers wanted, each an ``nn.Linear``, ``nn.QuantizedLinear`` or
            ``RankLayer``; by default all of them. Stacks of experts are not measured.
        cache: File that keeps the sums after every batch, complete or not at all. A later call
            with the same model, seed, paths and batches goes on after the last one in it, to
            bit for bit the same result; more batches may follow. Its folder exists.

    Returns:
        Both Grams, float64, of every layer that was run, by path. Layers that one and the same
        array enters, as the query, key and value projections do, share one input Gram.

    Raises:
        ValueError: If a path is not that of a linear layer, ``batches`` is empty, an input or a
            gradient has NaN or infinities (a note names the layer), no gradient reaches a layer,
            or ``cache`` is of another model, seed, choice of layers or text, or damaged.
        OSError: If ``cache`` cannot be read or written.

    References:
        Martens and Grosse, *Optimizing neural networks with Kronecker-factored approximate
        curvature*, 2015, arXiv 1503.05671, section 3; Kunstner, Balles and Hennig, *Limitations
        of the empirical Fisher approximation*, 2019, arXiv 1905.12558, section 2.

    Note:
        About three forward passes, and ``2 (in^2 + out^2)`` operations in float64 per token and
        layer. The sums take ``8 (in^2 + out^2)`` bytes per layer: leave a head with a large
        vocabulary out of ``paths``. Where MLX computes on the CPU, products of unsubclassed
        ``nn.Linear`` and ``nn.QuantizedLinear`` run in NumPy, forwards and backwards.
    """
    linears = {p: m for p, m in modules_by_path(model).items() if isinstance(m, LINEARS)}
    wanted = _wanted(linears, paths)
    sums = _Sums(model, linears, wanted)
    draws: Iterable[tuple[mx.array, mx.array]] = zip(batches, _keys(seed), strict=False)
    store = None
    if cache is not None:
        store = GramCache(cache, model, {"seed": seed, "layers": wanted})
        sums.restore(store.arrays, store.meta)
        draws = store.rest(draws)
    for batch, key in draws:
        sums.add(batch, key)
        if store is not None:
            store.save(*sums.state())
    if not sums.tokens:
        raise ValueError("`batches` must hold at least one batch.")
    return sums.grams()


class _Sums:
    """What a run has added up, and the interception of the layers that adds to it."""

    def __init__(
        self, model: nn.Module, linears: Mapping[str, nn.Module], wanted: Sequence[str]
    ) -> None:
        self.tokens = 0
        self._inputs = GramRecorder()
        self._gradients: dict[str, Site] = {}
        self._awaited: set[str] = set()
        self._model = model
        self._linears = linears
        self._wanted = wanted
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        stock = (nn.Linear, nn.QuantizedLinear)
        self._on_host = {p: m for p, m in linears.items() if on_cpu and type(m) in stock}

    def add(self, batch: mx.array, key: mx.array) -> None:
        """One pass forwards and one backwards."""
        self._inputs.new_pass()
        mx.grad(self._loss)(mx.array(0.0), batch, key)
        if self._awaited:
            raise ValueError(
                f"no gradient reaches layer '{min(self._awaited)}': the logits do not depend on it "
                "or something after it cannot be differentiated; leave it out of `paths`."
            )

    def grams(self) -> dict[str, LossGrams]:
        """The means; the sums are used up."""
        sites = self._inputs.sites
        inputs = {id(s): s for s in sites.values()}
        means = {name: _mean(site, site.tokens) for name, site in inputs.items()}
        return {
            path: LossGrams(means[id(sites[path])], _mean(site, self.tokens))
            for path, site in self._gradients.items()
        }

    def state(self) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
        """The sums, each input site under its first path, and what JSON can say of them."""
        sites = self._inputs.sites
        first = {id(site): path for path, site in reversed(sites.items())}
        arrays = {f"input.{path}": sites[path].total for path in first.values()}
        arrays |= {f"output.{path}": site.total for path, site in self._gradients.items()}
        counts = {path: sites[path].tokens for path in first.values()}
        shared = {path: first[id(site)] for path, site in sites.items()}
        return arrays, {"tokens": self.tokens, "counts": counts, "sites": shared}

    def restore(self, arrays: Mapping[str, NDArray[np.float64]], meta: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if not arrays:
            return
        self.tokens = meta["tokens"]
        first = {p: Site.of(arrays[f"input.{p}"], n) for p, n in meta["counts"].items()}
        self._inputs.sites = {path: first[name] for path, name in meta["sites"].items()}
        self._gradients = {path: Site.of(arrays[f"output.{path}"], 0) for path in meta["sites"]}

    def _loss(self, probe: mx.array, batch: mx.array, key: mx.array) -> mx.array:
        """What is differentiated, with a zero as the argument for MLX to follow."""

        def around(path: str, call: Call, x: mx.array) -> mx.array:
            if path in self._on_host:
                call = partial(host_product, linear=cast(Linear, self._on_host[path]))
            if path not in self._wanted:
                return call(x)
            self._awaited.add(path)
            y = self._inputs.around(path, call, x)
            return cast(mx.array, _tapped(y, probe, partial(self._record, path)))

        with intercepted(self._linears, around):
            logits = self._model(batch).astype(mx.float32)
        labels = mx.random.categorical(mx.stop_gradient(logits), key=key)
        self.tokens += labels.size
        return nn.losses.cross_entropy(logits, labels, reduction="sum")

    def _record(self, path: str, gradient: mx.array) -> None:
        try:
            self._gradients.setdefault(path, Site(gradient.shape[-1])).add(gradient)
        except ValueError as error:
            error.add_note(f"while measuring the gradients of layer '{path}'")
            raise
        self._awaited.discard(path)


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


def _wanted(linears: Mapping[str, nn.Module], paths: Sequence[str] | None) -> list[str]:
    for path in paths or ():
        if path not in linears:
            raise ValueError(f"`paths` must be those of linear layers in the model, got '{path}'.")
    return [path for path in linears if paths is None or path in paths]


def _keys(seed: int) -> Iterator[mx.array]:
    key = mx.random.key(seed)
    while True:
        key, drawn = mx.random.split(key)
        yield drawn


def _mean(site: Site, tokens: int) -> Gram:
    site.total /= max(tokens, 1)  # in place: the sums may be most of the memory
    return Gram(site.total, tokens)
