"""What arrays are computed from: copies, stacks, and all that is neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from plastic_export.source.graph import origins

Leaves = dict[str, mx.array]


@pytest.fixture
def leaves(tmp_path: Path) -> Leaves:
    """Six matrices, read from a file when they are first used."""
    file = str(tmp_path / "six.safetensors")
    mx.save_safetensors(file, {name: mx.arange(12).reshape(3, 4) * 1.0 for name in "abcdef"})
    found: Leaves = mx.load(file)
    return found


def changed_in_place(x: Leaves) -> mx.array:
    same = mx.stop_gradient(x["a"])
    same += 1.0
    return same


COPIES: list[Callable[[Leaves], mx.array]] = [
    lambda x: x["a"],
    lambda x: mx.stop_gradient(x["a"]),
    lambda x: mx.contiguous(x["a"]),
    lambda x: x["a"].astype(mx.float32),
]
STACKS: list[Callable[[Leaves], mx.array]] = [
    lambda x: mx.stack([x["a"], x["b"]]),
    lambda x: mx.concatenate([x["a"][None], x["b"][None]]),
]
COMPUTED: list[Callable[[Leaves], mx.array]] = [
    lambda x: x["a"] + x["b"],
    lambda x: mx.concatenate([x["a"], x["b"]]),
    lambda x: mx.stack([x["a"], 2 * x["b"]]),
    lambda x: mx.where(x["a"] > 1, x["b"], 0),
]


@pytest.mark.parametrize("make", COPIES)
def test_what_changes_no_bit_is_a_copy(leaves: Leaves, make: Callable[[Leaves], mx.array]) -> None:
    origin = origins(leaves, {"made": make(leaves)})["made"]
    assert (origin.tensors, origin.is_copy, origin.is_stack) == (("a",), True, False)


@pytest.mark.parametrize("make", STACKS)
def test_matrices_along_a_new_axis_are_a_stack(
    leaves: Leaves, make: Callable[[Leaves], mx.array]
) -> None:
    origin = origins(leaves, {"made": make(leaves)})["made"]
    assert (origin.tensors, origin.is_copy, origin.is_stack) == (("a", "b"), False, True)


@pytest.mark.parametrize("make", COMPUTED)
def test_all_else_is_computed_from_what_it_uses(
    leaves: Leaves, make: Callable[[Leaves], mx.array]
) -> None:
    origin = origins(leaves, {"made": make(leaves)})["made"]
    assert (origin.tensors, origin.is_copy, origin.is_stack) == (("a", "b"), False, False)


def test_one_that_was_changed_in_place_is_no_copy(leaves: Leaves) -> None:
    origin = origins(leaves, {"made": changed_in_place(leaves)})["made"]
    assert (origin.tensors, origin.is_copy) == (("a",), False)


def test_the_outputs_of_one_operation_are_told_apart(leaves: Leaves) -> None:
    first, _, third = mx.split(leaves["a"], 3)
    found = origins(leaves, {"third": third, "first": first, "again": first})
    assert found["third"].formula != found["first"].formula == found["again"].formula
    assert {origin.tensors for origin in found.values()} == {("a",)}


def test_what_was_evaluated_comes_from_nowhere(leaves: Leaves) -> None:
    made = leaves["a"] + 1
    mx.eval(made)
    assert origins(leaves, {"made": made})["made"].tensors == ()


def test_nothing_is_read_and_nothing_evaluated(leaves: Leaves) -> None:
    before = mx.get_active_memory()
    huge = mx.broadcast_to(leaves["a"].sum(), (2**20, 2**20)) + leaves["b"].sum()
    assert origins(leaves, {"huge": huge})["huge"].tensors == ("a", "b")
    assert mx.get_active_memory() - before < 2**20


def test_the_formula_names_the_operations_and_their_inputs(leaves: Leaves) -> None:
    a, b = leaves["a"], leaves["b"]
    made = {"ab": a - b, "ba": b - a, "again": a - b, "other": a + b}
    formulas = {name: origin.formula for name, origin in origins(leaves, made).items()}
    assert formulas["ab"] == formulas["again"]
    assert len(set(formulas.values())) == 3
