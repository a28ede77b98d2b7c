"""Which layers share an input: those that a Llama says, and no other."""

from __future__ import annotations

from pathlib import Path

from plastic_export.calibration.shared_inputs import shared_inputs
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.checkpoint.tensors import is_weight


def test_a_llama_shares_within_a_block(checkpoint_folder: Path) -> None:
    with open_checkpoint(checkpoint_folder) as checkpoint:
        names = [name for name in checkpoint.tensors if is_weight(name, checkpoint.tensors)]
        shared = shared_inputs(checkpoint, names)
    sharing = {name: first for name, first in shared.items() if name != first}
    pairs = {("k", "q"), ("v", "q"), ("up", "gate")}
    kinds = {(name.split(".")[4][:-5], first.split(".")[4][:-5]) for name, first in sharing.items()}
    first_of = {frozenset(pair) for pair in pairs}
    assert {frozenset(pair) for pair in kinds} <= first_of | {frozenset({"k", "v"})}
    assert len(sharing) == 2 * 3
    assert all(name.split(".")[2] == first.split(".")[2] for name, first in sharing.items())
