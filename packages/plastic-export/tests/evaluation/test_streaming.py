"""Predictions block by block, to the bits of the model that is held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_export.evaluation import streaming
from plastic_export.evaluation.measures import log_probabilities
from plastic_export.evaluation.streaming import Spool, log_probabilities_by_blocks
from plastic_export.model.load import load_for_inference
from plastic_runtime import Weighted, untracked

T = TypeVar("T")
Windows = list[NDArray[Any]]


def tokens_of() -> list[mx.array]:
    rng = np.random.default_rng(0)
    return [mx.array(rng.integers(0, 60, (rows, 9)), mx.int32) for rows in (2, 2, 1)]


def both(folder: Path) -> tuple[Windows, Windows]:
    batches = tokens_of()
    model = load_for_inference(folder)
    whole = [np.asarray(w) for b in batches for w in log_probabilities(model, b, 50)]
    parts = log_probabilities_by_blocks(folder, batches, 50, untracked)
    return whole, [np.asarray(window) for batch in parts for window in batch]


def test_block_by_block_gives_the_same_bits(checkpoint_folder: Path) -> None:
    for whole, parts in zip(*both(checkpoint_folder), strict=True):
        np.testing.assert_array_equal(whole, parts)


def test_blocks_run_in_their_order_and_not_in_that_of_their_names(
    make_llama: Callable[..., Path],
) -> None:
    folder = make_llama(num_hidden_layers=12)  # 10 stands before 2 in the alphabet
    for whole, parts in zip(*both(folder), strict=True):
        np.testing.assert_array_equal(whole, parts)


def test_a_model_that_is_no_chain_is_run_as_a_whole(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming.BlockChain, "of", lambda *_: None)
    for whole, parts in zip(*both(checkpoint_folder), strict=True):
        np.testing.assert_array_equal(whole, parts)


def test_no_block_is_held_after_its_turn(checkpoint_folder: Path) -> None:
    held: list[int] = []

    def track(items: Sequence[T], description: str) -> Iterable[T]:
        for item in items:
            yield item
            mx.clear_cache()
            held.append(mx.get_active_memory())

    for _ in log_probabilities_by_blocks(checkpoint_folder, tokens_of(), 50, track):
        pass
    assert len(held) > 1
    assert max(held) - min(held) < 64 * 64 * 4  # bytes of one matrix


def test_a_spool_returns_types_and_bits() -> None:
    arrays = [mx.array([1.5, -0.0], mx.bfloat16), mx.array([[2**-24]], mx.float16)]
    with Spool() as spool:
        for array in arrays:
            spool.write(array)
        for array in arrays:
            found = spool.read()
            assert (found.dtype, found.tolist()) == (array.dtype, array.tolist())


def test_steps_weigh_what_they_multiply(checkpoint_folder: Path) -> None:
    seen: list[Weighted[Any]] = []

    def track(items: Sequence[T], description: str) -> Iterable[T]:
        assert isinstance(items, Weighted)
        seen.append(items)
        return items

    assert len(list(log_probabilities_by_blocks(checkpoint_folder, tokens_of(), 50, track))) == 3
    (steps,) = seen
    assert [*steps] == ["model.layers.0", "model.layers.1", 0, 1, 2]
    head, tokens = 4 * 80 * 64, [18, 18, 9]
    assert steps.weights[2:] == [head * n for n in tokens]
    block = 4 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    assert steps.weights[:2] == 2 * [block * sum(tokens)]
