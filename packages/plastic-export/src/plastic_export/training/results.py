"""What a finished run writes: its adapters, and what they are at smaller sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from plastic_core import RankLayer

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.base_name import BaseName
from plastic_export.folder.adapter_files import SIZES_FILE
from plastic_export.training.adapters import round_as_stored, write_adapters
from plastic_export.training.course import Course
from plastic_export.training.sizes.curve import RunSize, measure_sizes
from plastic_export.training.sizes.sizes_file import SizesFile
from plastic_export.training.sizes.worth import Worth, order_by_worth


class Results(NamedTuple):
    """What was written.

    Attributes:
        adapter: Adapter of one rank, for mlx-lm.
        peft: The same in the form of PEFT.
        loss: The validation loss of what both hold, in nats per token.
        sizes: The same at smaller sizes, the whole first; empty where nothing could be priced.
    """

    adapter: Path
    peft: Path
    loss: float
    sizes: tuple[RunSize, ...]


def write_results(course: Course, layers: Mapping[str, RankLayer], base: BaseName) -> Results:
    """Write the adapters of the state that the model is in, and measure them at smaller sizes.

    Args:
        course: The parts of the run.
        layers: Its layers by path; their components come out rounded, in the order of their worth.
        base: What the base is called.

    Raises:
        ValueError: If a factor does not fit into float16, or every rank is 0.
        FormatError: If an adapter there is not what this run wrote.
        OSError: If the system refuses.
    """
    worth = _worth(course, layers)
    adapter = Adapter(round_as_stored(layers), base.name, base.revision)
    loss = course.validation_loss()
    stock, peft = write_adapters(course.out, adapter)
    if worth is None:
        return Results(stock, peft, loss, ())
    sizes: tuple[RunSize, ...] = ()
    trimmed = {path: pair.trimmed() for path, pair in adapter.layers.items()}
    if any(pair.rank for pair in trimmed.values()):
        held = replace(adapter, layers=trimmed)
        sizes = measure_sizes(layers, held, worth, course.validation_loss, loss)
    SizesFile.of(course.out, worth, sizes).write(course.out / SIZES_FILE)
    return Results(stock, peft, loss, sizes)


def _worth(course: Course, layers: Mapping[str, RankLayer]) -> Worth | None:
    try:
        return order_by_worth(course.model, layers, course.probe_loss)
    except ValueError as error:
        course.say(f"warning: {error}: the adapters cannot be dialled")
        return None
