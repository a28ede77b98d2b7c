"""The arrangement of an output, proved before it is written: mlx-lm loads it as it does its source.

A folder of empty tensors with the names, types and shapes of the output is loaded by mlx-lm, and
every parameter of the model is traced back to the files. What is stored anew must arrive as it is
written. All else must be computed by the same operations from the same tensors as it is from the
source, or arrive as the source's model holds it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from plastic_core.files import FormatError, TensorSpec

from plastic_export.checkpoint.tensors import module_path
from plastic_export.format.config import output_config, restored_config
from plastic_export.format.layout import Contents, Layout
from plastic_export.source.arrangement import arrangements
from plastic_export.source.source import Source
from plastic_export.source.trace import trace_of_specs


def arranged(source: Source, contents: Contents) -> Layout:
    """Return the layout of an output that mlx-lm loads as it loads its source.

    Args:
        source: The source.
        contents: What becomes of its matrices.

    Raises:
        FormatError: If there is none; the message names a parameter that would differ.

    Cost:
        One lazy load of empty tensors, or three; see `trace_loading`.
    """
    layout, faults = _tried(source, contents)
    if layout is not None:
        return layout
    folder, model_type = source.checkpoint.folder, source.checkpoint.config.get("model_type")
    reason = (
        f"what mlx-lm's {model_type!r} model makes of its tensors while it loads them cannot be "
        f"kept in an output: {faults[0].text}"
    )
    is_chosen = faults[0].name in contents.anew
    remedy = f"convert it first: mlx_lm.convert --hf-path {folder} --mlx-path COPY"
    raise FormatError.about(folder, reason, f"exclude it, or {remedy}" if is_chosen else remedy)


def unkept_layers(source: Source, contents: Contents) -> set[str]:
    """Return the layers that no output can store anew, since mlx-lm changes what is stored of them.

    A model may normalise the weight of its head whenever it is loaded, packed or not.

    Args:
        source: The source.
        contents: What becomes of its matrices.

    Returns:
        The names of their weights; none where an output can be written.
    """
    layout, faults = _tried(source, contents)
    if layout is not None:
        return set()
    blamed = {fault.name.rpartition(".")[0] for fault in faults}
    return {name for name in contents.anew if module_path(name) in blamed}


class _Fault(NamedTuple):
    """A parameter that mlx-lm would make differently of an output, and how; no name for all."""

    name: str
    text: str


def _tried(source: Source, contents: Contents) -> tuple[Layout | None, list[_Fault]]:
    """Return the first layout without a fault; without one, the faults of the first layout."""
    first = list[_Fault]()
    for arrangement in arrangements(source, contents.anew):
        layout = Layout.of(source, contents, arrangement)
        faults = list(_faults(source, layout)) if source.trace else []
        if not faults:
            return layout, []
        first = first or faults
    return None, first


def _faults(source: Source, layout: Layout) -> Iterator[_Fault]:
    """Yield what mlx-lm would make differently of an output, or of what `restore` makes of it."""
    contents, config = layout.contents, output_config(source, layout)
    parts = (part for parts in contents.parts.values() for part in parts.in_model)
    written = {spec.name for part in parts for spec in part.specs}
    arriving = {contents.place_of(name) for name in layout.arrangement.as_loaded}
    files = layout.files["model"]
    yield from _differences(source, files, config, {*arriving, *written})
    if contents.format.parks:
        config = restored_config(config, contents)
        arriving = {*layout.arrangement.as_loaded, *contents.anew}
        yield from _differences(source, layout.as_they_are, config, arriving)


def _differences(
    source: Source,
    specs: Iterable[TensorSpec],
    config: Mapping[str, Any],
    arriving: Container[str],
) -> Iterator[_Fault]:
    """Yield the parameters that mlx-lm would make differently of these tensors.

    Args:
        source: The source.
        specs: The tensors of the output.
        config: Its configuration.
        arriving: The tensors that must be parameters as they are.
    """
    try:
        found = trace_of_specs(specs, config)
    except FormatError as error:
        yield _Fault("", str(error))
        return
    for name, origin in found.origins.items():
        if name in arriving:
            if not origin.is_copy or origin.tensors != (name,):
                yield _Fault(name, f"{name!r} would be changed once more")
        elif name not in source.origins:
            yield _Fault(name, f"{name!r} would be new")
        elif origin.formula != source.origins[name].formula:
            yield _Fault(name, f"{name!r} would be made in another way")
    for path, packing in found.packings.items():
        if f"{path}.scales" not in arriving and source.packings.get(path) != packing:
            yield _Fault(path, f"{path!r} would be unpacked in another way")
