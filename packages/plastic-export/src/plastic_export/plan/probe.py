"""The measured cost of changes of some weights on a few windows, to correct prices by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from plastic_core.layer import is_stack, linear_from
from plastic_core.linalg import on_cpu, to_numpy
from plastic_runtime.distributed import Team
from plastic_runtime.measure import (
    AS_LINEAR,
    BlockChain,
    BoundCall,
    chosen_experts,
    intercepted,
    linear_layers,
    modules_by_path,
    numpy_product,
    using_numpy,
)

from plastic_export.calibration.loss_grams import use_float32
from plastic_export.calibration.text import Calibration
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.evaluation.measures import (
    LogProbabilities,
    log_probabilities_of,
    rows_at_once,
    token_divergences,
)
from plastic_export.model.load import load_model
from plastic_export.model.numpy_attention import use_numpy_attention
from plastic_export.model.text import evenly_spread

PROBED_TOKENS = 512
"""How many tokens are measured, about (heuristic: twice as many gave SmolLM2-135M 1,570 for 1,540
millinats at 2.5 bits per weight)."""
TRIED_TOKENS = 1024
"""How many tokens a whole plan is tried on, about, those that are probed among them (heuristic)."""
REFERENCE_BYTES = 2**30
"""Bytes of log-probabilities of the unchanged model that are held."""
CHECKED_TOKENS = 8
"""How many tokens tell whether the blocks of a model are a chain."""
KEPT_BYTES = 2**28
"""Bytes of what enters the blocks of the unchanged model that are held."""


class WeightChange(NamedTuple):
    """What is added to the weight of a layer.

    Attributes:
        path: Path of a linear layer, an embedding or a stack of experts.
        weight: What is added, shape ``(out, in)``, of an embedding ``(tokens, width)``.
        expert: The expert whose weight is changed, in a stack.
    """

    path: str
    weight: NDArray[np.float32]
    expert: int = 0


class PriceProbe:
    """Measures the divergence that changes of some layers cause together.

    Predictions rest on the Kronecker form of the Fisher information: inputs and output gradients
    of a layer are taken to be independent, tokens too, and changes to be small. How wrong that is
    differs between kinds of layers, and at 2 bits from what it is at more.

    Args:
        model: Maps tokens to logits, its activations in float32. It is put back exactly after
            every measurement.
        tokens: Windows, shape ``(windows, length)``; as many of them are used as
            `REFERENCE_BYTES` hold.
        further: More of them, which `token_divergences` reads as well.

    Note:
        A `divergence` runs the blocks from the first that is changed on, and the head.
    """

    def __init__(self, model: nn.Module, tokens: mx.array, further: mx.array | None = None) -> None:
        self._model = model
        self._modules = modules_by_path(model)
        self._linears, _ = linear_layers(model, None)
        width = model(tokens[:1, :1]).shape[-1]
        fitting = max(1, REFERENCE_BYTES // (4 * tokens.shape[1] * width))
        rows = rows_at_once(tokens.shape[1], width)
        more = tokens[:0] if further is None else further
        batches = _batches(tokens[:fitting], rows)
        self._chain = BlockChain.of(model, self._linears, (), batches[0][:1, :CHECKED_TOKENS])
        room = KEPT_BYTES // len(batches)
        with self._quickly():
            self._probed = [self._unchanged(batch, room) for batch in batches]
            left = more[: max(0, fitting - len(tokens))]
            self._further = [self._unchanged(batch, 1) for batch in _batches(left, rows)]

    @classmethod
    def of(cls, checkpoint: Checkpoint, calibration: Calibration) -> PriceProbe:
        """Probe a checkpoint on windows of the calibration text that it is not calibrated on.

        Where the text has no others, on some of the same: a factor is the same on both (measured:
        1.38 and 1.41 for the head of a model of 5.8 M parameters, 1.29 and 1.35 elsewhere).

        Raises:
            FormatError: If the model or the text cannot be read.
            ValueError: If the text is shorter than one window.
        """
        everything = calibration.all_tokens(checkpoint)
        probed, tried = (
            probed_rows(len(everything), calibration.windows, max(1, tokens // calibration.window))
            for tokens in (PROBED_TOKENS, TRIED_TOKENS)
        )
        further = np.setdiff1d(tried, probed)[: len(tried) - len(probed)]
        model = load_model(checkpoint.folder)
        use_float32(model)
        return cls(model, everything[mx.array(probed)], everything[mx.array(further)])

    def divergence(self, changes: Sequence[WeightChange]) -> float:
        """Return KL(model || model with all the changes), nats per token, not negative."""
        first, found = self._first_block({c.path for c in changes}), list[NDArray[np.float64]]()
        with self._quickly(), self._changed(changes):
            for batch in self._probed:
                log_p = log_probabilities_of(self._logits(batch, first))
                found.append(token_divergences(batch.log_q, log_p))
        return max(float(np.concatenate(found).mean()), 0.0)

    def token_divergences(
        self,
        paths: Iterable[str],
        changes: Callable[[list[str]], Sequence[WeightChange]],
        team: Team | None = None,
    ) -> NDArray[np.float64]:
        """Return the divergence at every token where many layers are changed, block by block.

        Args:
            paths: All layers that are changed.
            changes: Returns the changes of some of them. What it returned of a block is let go of
                when that has run, what is outside the blocks after the last one. A model that is no
                chain of blocks is changed as a whole.
            team: The processes that do it together, each with the same arguments: one block each in
                turn, so that the next ones find out their changes meanwhile. What is outside the
                blocks, and a model that is no chain, is done by each.

        Returns:
            Nats per token, shape ``(windows, tokens)``, the same bits for any number of processes.
        """
        team, chain = team or Team(), self._chain
        inside, outside = self._by_block(paths)
        with self._quickly(), self._changed(changes(outside)):
            log_p = self._run_changed(chain, inside, changes, team) if chain else self._run_whole()
            found = [
                token_divergences(batch.log_q, p)
                for batch, p in zip(self._all, log_p, strict=False)  # none but in the last process
            ]
        whole = np.concatenate(found) if found else np.zeros((0, 0))
        if chain is None or team.size == 1:
            return whole
        length = self._all[0].tokens.shape[1] - 1
        return np.concatenate(team.gathered_arrays(whole.reshape(-1))).reshape(-1, length)

    @property
    def _all(self) -> list[_Probed]:
        return [*self._probed, *self._further]

    def _by_block(self, paths: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
        """Return the paths that lie in every block, and those in none."""
        inside: dict[str, list[str]] = {p: [] for p in (self._chain.blocks if self._chain else ())}
        outside = list[str]()
        for path in paths:
            block = self._chain.block_of(path) if self._chain else None
            (inside[block] if block else outside).append(path)
        return inside, outside

    def _run_whole(self) -> Iterator[LogProbabilities]:
        for batch in self._all:
            yield log_probabilities_of(self._model(batch.tokens[:, :-1]))

    def _run_changed(
        self,
        chain: BlockChain,
        inside: Mapping[str, list[str]],
        changes: Callable[[list[str]], Sequence[WeightChange]],
        team: Team,
    ) -> Iterator[LogProbabilities]:
        """Run block after block, all windows through each while it is changed.

        What leaves a block goes to the process that has the next one; the last yields.
        """
        seen, count = [batch.tokens[:, :-1] for batch in self._all], len(inside)
        entries = [chain.entry(tokens) for tokens in seen]
        states = [x for x, _ in entries]
        for number, paths in enumerate(inside.values()):
            if number % team.size != team.rank:
                continue
            with self._changed(changes(paths)):
                if number and team.size > 1:
                    states = [_received(team, (number - 1) % team.size, x) for x in states]
                states = [calls[number](x) for x, (_, calls) in zip(states, entries, strict=True)]
                mx.eval(states)
            if number + 1 < count and team.size > 1:
                for x in states:
                    team.post_array((number + 1) % team.size, to_numpy(x).reshape(-1))
        if (count - 1) % team.size != team.rank:
            return
        for tokens, x in zip(seen, states, strict=True):
            yield log_probabilities_of(chain.logits_from(tokens, x))

    def _changed(self, changes: Sequence[WeightChange]) -> AbstractContextManager[None]:
        """Let layers compute what they would with changed weights, inside the block."""
        added = dict[str, list[tuple[mx.array, int]]]()
        for change in changes:
            added.setdefault(change.path, []).append((mx.array(change.weight), change.expert))

        def around(path: str, call: BoundCall, x: mx.array) -> mx.array:
            own = path.removesuffix(f".{AS_LINEAR}")
            y: mx.array = call(x)
            for weight, expert in added[own]:
                y = y + _effect(weight, expert, self._modules[own], call, x).astype(y.dtype)
            return y

        return intercepted({path: self._modules[path] for path in added}, around)

    @contextmanager
    def _quickly(self) -> Iterator[None]:
        with using_numpy(self._linears), use_numpy_attention():
            yield

    def _first_block(self, paths: Iterable[str]) -> int | None:
        """Return the number of the first block that is changed; None where all is to be run."""
        if self._chain is None:
            return None
        places = {path: number for number, path in enumerate(self._chain.blocks)}
        blocks = [self._chain.block_of(path) for path in paths]
        return None if None in blocks else min(places[block] for block in blocks if block)

    def _unchanged(self, tokens: mx.array, room: int) -> _Probed:
        """Run the model as it is; keep what enters so many blocks as fit into ``room`` bytes."""
        inputs, seen = dict[int, mx.array](), tokens[:, :-1]
        if self._chain is None:
            return _Probed(tokens, log_probabilities_of(self._model(seen)), inputs)
        x, calls = self._chain.entry(seen)
        step = 1 + 4 * x.size * len(calls) // room
        for number, call in enumerate(calls):
            if number % step == 0:
                inputs[number] = x
            x = call(x)
            mx.eval(x)
        return _Probed(tokens, log_probabilities_of(self._chain.logits_from(seen, x)), inputs)

    def _logits(self, batch: _Probed, first: int | None) -> mx.array:
        seen = batch.tokens[:, :-1]
        if self._chain is None or first is None:
            logits: mx.array = self._model(seen)
            return logits
        start = max(number for number in batch.inputs if number <= first)
        x, (_, calls) = batch.inputs[start], self._chain.entry(seen)
        for call in calls[start:]:
            x = call(x)
        return self._chain.logits_from(seen, x)


def _received(team: Team, of: int, like: mx.array) -> mx.array:
    """Return what a process sends, in float32 as all activations here are."""
    values = team.received_array(of, like.size, np.float32)
    return mx.array(values.reshape(like.shape))


def _batches(tokens: mx.array, rows: int) -> list[mx.array]:
    return [tokens[start : start + rows] for start in range(0, len(tokens), rows)]


class _Probed(NamedTuple):
    """Windows; what the unchanged model holds of them; what enters some of its blocks."""

    tokens: mx.array
    log_q: LogProbabilities
    inputs: dict[int, mx.array]


def _effect(
    change: mx.array, expert: int, module: nn.Module, call: BoundCall, x: mx.array
) -> mx.array:
    """Return ``x @ change.T``, what a change adds to the output of a layer.

    For an embedding, where tokens are looked up, their rows of the change; for a stack, what is
    added where its expert was chosen.
    """
    if not mx.issubdtype(x.dtype, mx.floating):
        return change[x]
    wide, linear = x.astype(mx.float32), linear_from(change, None)
    added: mx.array = numpy_product(wide, linear) if on_cpu() else linear(wide)
    if is_stack(module):
        added = mx.where((chosen_experts(call) == expert)[..., None, None], added, 0.0)
    return added


def probed_rows(windows: int, calibrated: int, wanted: int) -> NDArray[np.intp]:
    """Choose the windows of a text to probe on, away from the ``calibrated`` ones.

    Args:
        windows: The number of windows of the text.
        calibrated: At most so many are calibrated on.
        wanted: At most so many are probed on.

    Returns:
        Numbers, evenly spread over the windows that are left; over all of them where none is.
    """
    taken = min(windows, calibrated)
    used = evenly_spread(taken, windows)  # as `text_windows` takes them
    left = np.setdiff1d(np.arange(windows), used)
    pool = left if len(left) else used
    return pool[evenly_spread(min(wanted, len(pool)), len(pool))]
