"""The measurements by name: each runs in a process of its own."""

from __future__ import annotations

from kept.measurements import Kind

from costs.made_up import calibrated, compressed_made_up
from costs.one_matrix import foreseen, fully_rounded, priced, sampled
from costs.prices import planned_twice
from costs.real import ours, peer

KINDS: dict[str, Kind] = {
    "ours": ours,
    "peer": peer,
    "price": priced,
    "round": fully_rounded,
    "sample": sampled,
    "foresee": foreseen,
    "calibrate": calibrated,
    "prices": planned_twice,
    "grow": compressed_made_up,
}
