"""A curve goes into a manifest and comes back, whole or cut."""

from __future__ import annotations

import json
from dataclasses import asdict

from plastic_runtime.dialling.component_curve import ComponentCurve

CURVE = ComponentCurve((0, 2, 5), (0.5, 0.25, 0.125), (0.4, 0.3, 0.2), 0.15, 7.0)


def test_json_gives_it_back() -> None:
    assert ComponentCurve.of(json.loads(json.dumps(asdict(CURVE)))) == CURVE


def test_a_part_of_it_ends_with_an_error_of_its_own() -> None:
    part = CURVE.until(2, 0.9)
    assert part == ComponentCurve((0, 2), (0.5, 0.25), (0.4, 0.3), 0.9, 7.0)
    assert CURVE.until(5, 0.15) == CURVE
