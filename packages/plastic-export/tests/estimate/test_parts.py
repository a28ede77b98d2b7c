"""The parts of a calibration: what each sums, hands on and spools."""

from __future__ import annotations

from plastic_export.estimate.model_shape import ModelShape, WeightShape
from plastic_export.estimate.parts import Calibrated, calibration_parts, lower_bytes
from plastic_export.estimate.phases import FORWARD, PULLING

SIDE, WIDE, VOCABULARY = 64, 256, 512


def weight(name: str, outputs: int, inputs: int, matrices: int = 1) -> WeightShape:
    return WeightShape(name, outputs, inputs, matrices, 2 * matrices * outputs * inputs)


def block(number: int) -> list[WeightShape]:
    place = f"layers.{number}"
    return [
        weight(f"{place}.q", SIDE, SIDE),
        weight(f"{place}.k", 32, SIDE),
        weight(f"{place}.down", SIDE, WIDE),
    ]


EMBEDDING, HEAD = weight("embed", VOCABULARY, SIDE), weight("head", VOCABULARY, SIDE)
MODEL = ModelShape((EMBEDDING, *block(0), *block(1), HEAD))
SHARED = {"layers.0.k": "layers.0.q", "layers.1.k": "layers.1.q"}


def calibrated(widest: int = 10**6, **shared: object) -> Calibrated:
    return Calibrated(MODEL.weights, frozenset({"embed"}), SHARED, widest)


def triangle(side: int) -> int:
    return 4 * side * (side + 1) // 2


def test_every_sum_is_handed_on_once() -> None:
    enter, first, second, leave, *back, before = calibration_parts(
        MODEL, calibrated(), tokens=8, pulled=4
    )
    assert enter.handed == 8 * VOCABULARY  # how often each token came, in float64
    assert first.handed == second.handed == triangle(SIDE) + triangle(WIDE)
    assert leave.handed == triangle(SIDE) + triangle(VOCABULARY)
    assert [part.handed for part in back] == 2 * [2 * triangle(SIDE) + triangle(32)]
    assert before.handed == triangle(SIDE)


def test_tied_weights_are_summed_at_both_ends() -> None:
    tied = ModelShape(MODEL.weights[:-1])
    alone = Calibrated(tied.weights, frozenset({"embed"}), SHARED, 10**6)
    parts = calibration_parts(tied, alone, tokens=8, pulled=4)
    both = calibration_parts(MODEL, calibrated(), tokens=8, pulled=4)
    assert [part.handed for part in parts] == [part.handed for part in both]
    assert [part.work for part in parts] == [part.work for part in both]


def test_work_is_that_of_the_products() -> None:
    parts = calibration_parts(MODEL, calibrated(), tokens=8, pulled=4)
    products = SIDE * SIDE + 32 * SIDE + SIDE * WIDE
    assert parts[1].work.products == 8 * (FORWARD * products + (SIDE**2 + WIDE**2) / 2)
    sums = (2 * SIDE**2 + 32**2) / 2
    assert parts[4].work.products == 4 * (PULLING * FORWARD * products + sums)


def test_what_enters_the_blocks_is_written_and_read() -> None:
    enter, first, _, leave, back, *_ = calibration_parts(MODEL, calibrated(), tokens=8, pulled=4)
    assert enter.spooled == 4 * SIDE * (8 + 4)
    assert first.spooled == 4 * SIDE * (8 + 8 + 4)
    assert leave.spooled == 4 * SIDE * (8 + 4)
    assert back.spooled == 4 * SIDE * (4 + 4 + 4)


def test_long_sides_are_in_blocks_or_diagonals() -> None:
    assert lower_bytes(4096, 1024) == 4 * triangle(1024)
    assert lower_bytes(4096, 1024, blocks=False) == 4 * 4096
    assert lower_bytes(64, 128, count=4) == 4 * triangle(64)
    assert lower_bytes(64, 128, count=5) == triangle(64)  # one for all


def test_without_blocks_all_is_one_part_beside_the_head() -> None:
    head = ModelShape((HEAD,))
    whole = Calibrated(head.weights, frozenset(), {}, 10**6)
    assert len(calibration_parts(head, whole, tokens=8, pulled=4)) == 2
