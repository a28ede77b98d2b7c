"""Write a compressed checkpoint: every tensor of the source is read once and streamed to its place.

By rank and by plan, in every format: what differs is in the layout and in the format's own file.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import mlx.core as mx
from plastic_core.files import Journal, copy_file, partial_of
from plastic_runtime import LossGrams, Track
from plastic_runtime.dialling import MANIFEST, SLEEP, ComponentCurve, MatrixRecord, read_manifest
from plastic_runtime.distributed import Team, await_file, check_alike, dealt

from plastic_export.checkpoint.packing import least_mlx
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.compression.encoded_shares import EncodedShares, Tensors
from plastic_export.compression.encoding import Encoder
from plastic_export.evaluation.output_check import FailedCheckError, OutputCheck, OutputChecker
from plastic_export.exact.exactness import EXACT, write_exact
from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.folder.card_file import SOURCE_CARD
from plastic_export.folder.manifest import run_identity, write_manifest
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.places import Place, open_place
from plastic_export.folder.shards import Shards, bytes_of_files
from plastic_export.folder.steps import Steps
from plastic_export.format.config import write_config
from plastic_export.format.errors import Errors
from plastic_export.format.layout import Contents, Layout, offer_of
from plastic_export.format.protocol import Encoded
from plastic_export.format.table import FORMATS
from plastic_export.hub.output_card import write_output_card
from plastic_export.hub.source_card import carried_card
from plastic_export.model.tokenizer import warn_of_tokenizer_code
from plastic_export.plan.offers import Candidate
from plastic_export.source.arrangement import Item
from plastic_export.source.source import Source

P = TypeVar("P")


@dataclass(frozen=True)
class Compressed(Generic[P]):
    """The result of ``compress`` or ``execute_plan``.

    Attributes:
        out: The folder that was written.
        format: Name of its format.
        plan: What was carried out: a `Plan` of ranks, or the `BitsPlan` of one budget.
        matrices: One record per matrix: bits, rank, bytes, errors.
        source_bytes: Bytes of the weight files of the source.
        model_bytes: Bytes of the model files written.
        adapter_bytes: Bytes of the adapter's tensors; 0 where there is none.
        sleep_bytes: Bytes of ``sleep.safetensors``; 0 where nothing sleeps.
        exact_bytes: Bytes of ``exact.safetensors``; 0 without ``exact``.
        checked: What running it showed; None without ``check``.

    Examples:
        >>> result = compress("SRC", "OUT", keep=0.5)
        >>> result.model_bytes < result.source_bytes < result.model_bytes + result.sleep_bytes
        True
    """

    out: Path
    format: str
    plan: P
    matrices: tuple[MatrixRecord, ...]
    source_bytes: int
    model_bytes: int
    adapter_bytes: int = 0
    sleep_bytes: int = 0
    exact_bytes: int = 0
    checked: OutputCheck | None = None

    @property
    def needs_model_file(self) -> bool:
        """Whether mlx-lm asks for ``--trust-remote-code`` before it runs it."""
        return FORMATS[self.format].needs_model_file(map(offer_of, self.matrices))

    def how_to_run(self) -> list[str]:
        """The lines that say how to run it."""
        return FORMATS[self.format].how_to_run(self.out, [offer_of(r) for r in self.matrices])


class Recipe(NamedTuple):
    """The recipe of an output: what is to be written.

    Attributes:
        source: The source.
        layout: Where every tensor goes.
        grams: The Grams of a matrix, or of each of a stack; None where none was measured.
        notes: What the records of the matrices say besides, by tensor name.
    """

    source: Source
    layout: Layout
    grams: Callable[[Candidate], Iterable[LossGrams | None]]
    notes: Mapping[str, Mapping[str, Any]] = {}


def write_compressed(
    checkpoint: Checkpoint,
    out: str | Path,
    options: Mapping[str, Any],
    decide: Callable[[Journal], Recipe],
    *,
    checker: OutputChecker | None,
    force: bool,
    track: Track,
    nbytes: int | None = None,
    team: Team | None = None,
) -> tuple[Path, OutputCheck | None]:
    """Write the folder of a compressed checkpoint, or go on with one that was cut.

    Args:
        checkpoint: The open source.
        out: The folder; nothing appears there before everything is written and synced.
        options: All that the output depends on besides the source; ``"exact"`` is one of them.
        decide: What is to be written, decided once the journal is open.
        checker: Judges the folder before it is published, one that was finished earlier as well.
        force: Replace ``out`` where it is an earlier output, and what a run with other arguments
            left.
        track: Wraps the long loops.
        nbytes: Bytes of all tensors, if they are known before the journal is open.
        team: The processes that write together, of which this is the first; the others call
            `help_writing`. By default this one alone.

    Returns:
        The finished folder, which is ``out``, and what the checker says of it.
    """
    exact, team = bool(options["exact"]), team or Team()
    output = OutputFolder(out, force=force, source=checkpoint.folder, resume=True)
    check_room(checkpoint, output, nbytes, exact=exact)
    card = carried_card(checkpoint.folder)
    copied = checkpoint.side_files() | ({} if card is None else {SOURCE_CARD: card})
    output.check_names(FORMATS[options["format"]].beside, copied)
    with output as folder, no_cache():
        identity = run_identity(checkpoint, options)
        check_alike(team, output.path, identity)
        if checker is not None:
            checker.run_source()  # what cannot be run is refused before the work
        if team.told(output.begin(identity)):
            recipe = decide(output.started)
            contents = recipe.layout.contents
            records, digests = write_tensors(recipe, folder, output.started, track, team)
            write_config(folder, recipe.source, recipe.layout)
            contents.format.write_beside(folder, contents.chosen)
            warn_of_tokenizer_code(checkpoint.folder)
            checkpoint.copy_side_files(folder)
            if card is not None:
                copy_file(card, folder / SOURCE_CARD, home=checkpoint.folder)
            if exact:
                names = recipe.layout.renamed
                digests |= write_exact(checkpoint, folder, contents, names, track=track)
            checkpoint.check_unchanged()
            beside = _arranged(recipe) | _needs(records)
            write_manifest(folder, identity | beside, records, digests)
        checked = _checked(output, checker)
        if output.folder != output.path:  # else it is finished, and its card with it
            write_output_card(output.folder, output.path, checkpoint, checked)
    team.gathered(None)
    return output.path, checked


def help_writing(
    checkpoint: Checkpoint,
    out: str | Path,
    options: Mapping[str, Any],
    recipe: Recipe,
    *,
    track: Track,
    team: Team,
) -> Path:
    """Compute a share of what the first process writes by `write_compressed`.

    Returns:
        The folder, once it is finished.

    Raises:
        OSError: If the system refuses.
    """
    path = Path(os.path.abspath(out))
    with no_cache():
        check_alike(team, path, run_identity(checkpoint, options))
        if team.told(None):
            _compute_shares(recipe, EncodedShares(partial_of(path)), (), track, team)
    team.gathered(None)  # the folder is finished
    await_file(path / MANIFEST)
    return path


def _checked(output: OutputFolder, checker: OutputChecker | None) -> OutputCheck | None:
    """Run what was written; without its manifest, what fails does not look finished."""
    if checker is None:
        return None
    try:
        return checker.check(output.folder, output.path)
    except FailedCheckError as error:
        if output.folder == output.path:
            error.add_note("it was written by an earlier run, and stays")
        else:
            (output.folder / MANIFEST).unlink()
        raise


def compressed(
    done: Path, out: str | Path, plan: P, checkpoint: Checkpoint, checked: OutputCheck | None
) -> Compressed[P]:
    """Return what was done, from the manifest of the finished folder ``done``."""
    manifest = read_manifest(done)
    return Compressed(
        out=Path(out),
        format=manifest.format,
        plan=plan,
        matrices=tuple(manifest.matrices.values()),
        source_bytes=sum(path.stat().st_size for path in checkpoint.weight_files),
        model_bytes=bytes_of_files(done, "model*.safetensors"),
        adapter_bytes=bytes_of_files(done, f"{FOLDER}/{FILE}"),
        sleep_bytes=bytes_of_files(done, SLEEP),
        exact_bytes=bytes_of_files(done, EXACT),
        checked=checked,
    )


def _needs(records: Iterable[MatrixRecord]) -> dict[str, Any]:
    """Return what the manifest says of the engines that an output needs, if not any will do."""
    least = least_mlx(widths_of(records))
    return {} if least is None else {"needs": {"mlx": f">={least}"}}


def widths_of(records: Iterable[MatrixRecord]) -> set[int]:
    """Return the bits in which anything of these matrices is packed."""
    return {bits for r in records for bits in (r.bits, r.factor_bits) if bits}


def _arranged(recipe: Recipe) -> dict[str, Any]:
    """Return what the manifest says of the arrangement, where it is not that of the source."""
    tensors = {t.name: [t.dtype, list(t.shape)] for t in recipe.layout.as_they_are}
    plain = {t.name for t in recipe.source.checkpoint.tensors.values()} - recipe.source.dead
    renamed = recipe.layout.renamed
    if recipe.source.trace is None or (not renamed and tensors.keys() == plain):
        return {}
    return {"arranged": {"tensors": tensors, "renamed": renamed}}


def _compute_shares(
    recipe: Recipe, shares: EncodedShares, missing: Sequence[str], track: Track, team: Team
) -> None:
    """Compute some of the matrices that are missing, as the first process knows them."""
    contents = recipe.layout.contents
    names = team.told([name for name in missing if name not in shares])
    costs = [contents.matrices[n].weights * sum(contents.matrices[n].shape) for n in names]
    mine = [names[number] for number in dealt(costs, team.size)[team.rank]]
    encoder = Encoder(recipe.source, contents, recipe.grams, mine)
    for name in track(mine, "compressing"):
        tensors = Tensors()
        measured = _write_matrix(name, contents, tensors.file, encoder.encoded(name))
        shares.put(name, tensors, measured.record())
    team.gathered(None)  # all shares are there


def write_tensors(
    recipe: Recipe, folder: Path, journal: Journal, track: Track, team: Team
) -> tuple[tuple[MatrixRecord, ...], dict[str, str]]:
    """Stream every tensor of the source to its new place.

    Args:
        recipe: What is to be written.
        folder: Existing folder; tensors that a run which was cut wrote there are passed over.
        journal: The journal of the run.
        track: Wraps the loop over the tensors.
        team: The processes that write together, of which this is the first. Each leaves what it
            computed in the folder, and this one puts it in its place.

    Returns:
        The records of all matrices, and the SHA-256 of every tensor written, by name.

    Cost:
        About three times the largest matrix in float32, besides its Grams; of smaller ones, as many
        side by side as there are cores.
    """
    layout = recipe.layout
    framework = layout.contents.format.framework
    measured = dict.fromkeys(layout.contents.matrices, MeasuredMatrix())
    with ExitStack() as stack:
        files: dict[Place, Shards] = {
            place: stack.enter_context(
                open_place(place, folder, specs, framework=framework, keep=True)
            )
            for place, specs in layout.files.items()
        }
        steps = Steps(journal, *files.values())
        results = {name: steps.finished(name) for name in layout.arrangement.steps}
        missing = [
            item.name
            for name, items in layout.arrangement.steps.items()
            for item in items
            if item.is_layer and results[name] is None
        ]
        shares = EncodedShares(folder)
        if team.size > 1:
            _compute_shares(recipe, shares, missing, track, team)
        left = [name for name in missing if name not in shares]
        encoder = Encoder(recipe.source, layout.contents, recipe.grams, left)
        for name in track(list(layout.arrangement.steps), "compressing"):
            if (result := results[name]) is None:
                result = _step(layout.arrangement.steps[name], recipe, files, encoder, shares)
                steps.add(name, result)
                for layer in result:
                    shares.drop(layer)
            measured |= {layer: MeasuredMatrix.of(found) for layer, found in result.items()}
    shares.remove()
    digests = {name: d for shards in files.values() for name, d in shards.digests.items()}
    records = (_record(name, layout.contents, found) for name, found in measured.items())
    return tuple(replace(r, **recipe.notes.get(r.name, {})) for r in records), digests


def _step(
    items: Iterable[Item],
    recipe: Recipe,
    files: Mapping[Place, Shards],
    encoder: Encoder,
    shares: EncodedShares,
) -> dict[str, dict[str, Any]]:
    """Write what has its turn at one tensor of the source; return what its layers measure."""
    source, contents, measured = recipe.source, recipe.layout.contents, {}
    for item in items:
        if item.is_layer and item.name in shares:
            measured[item.name] = shares.move(item.name, files)
            continue
        if item.is_layer:
            done = encoder.encoded(item.name)
            written = _write_matrix(item.name, contents, files.__getitem__, done)
            measured[item.name] = written.record()
            continue
        data = source.checkpoint.raw(item.tensor) if item.tensor else source.raw(item.name)
        files["model"].write(contents.place_of(item.name), data)
    return measured


class _Taking(Protocol):
    """Takes tensors, as files do."""

    def write(self, name: str, data: mx.array) -> None: ...


def _write_matrix(
    name: str,
    contents: Contents,
    files: Callable[[Place], _Taking],
    encoded: Sequence[Encoded],
) -> MeasuredMatrix:
    """Write what one matrix or stack becomes, and return what is known of what it stands for."""
    pieces, backbones = encoded[-1].pieces, list[Any](one.pieces.backbone for one in encoded)
    if contents.matrices[name].experts:  # offered no corrections: backbones are all that they have
        pieces = pieces._replace(backbone=backbones)
    for part, stored in contents.parts[name].paired(pieces):
        for tensor_name, tensor in part.tensors(stored):
            files(part.place).write(tensor_name, tensor)
    return MeasuredMatrix(Errors.of_stack([one.errors for one in encoded]), encoded[-1].curve)


class MeasuredMatrix(NamedTuple):
    """What is known of a matrix once it is written: its errors, and its curve."""

    errors: Errors = Errors()
    curve: ComponentCurve | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> MeasuredMatrix:
        """Return what the journal holds."""
        curve = record["curve"]
        return cls(Errors(**record["errors"]), None if curve is None else ComponentCurve.of(curve))

    def record(self) -> dict[str, Any]:
        """Return what the journal is to hold."""
        curve = None if self.curve is None else asdict(self.curve)
        return {"errors": self.errors._asdict(), "curve": curve}


def _record(name: str, contents: Contents, measured: MeasuredMatrix) -> MatrixRecord:
    """Return the record of a matrix; without an error, it was left as it is."""
    errors = measured.errors
    m, offer, parts = contents.matrices[name], contents.chosen[name], contents.parts[name]
    return MatrixRecord(
        name=name,
        shape=m.shape,
        dtype=m.dtype,
        source_bytes=m.source_bytes,
        stored_bytes=offer.nbytes,
        relative_error=errors.relative,
        spectral_error=errors.spectral,
        restored_error=errors.restored,
        bits=offer.bits,
        group_size=offer.group_size,
        rank=offer.rank,
        parked=parts.parked,
        factor_bits=offer.factor_bits,
        factor_group_sizes=parts.factor_group_sizes,
        experts=m.experts,
        predicted_kl=offer.cost,
        curve=measured.curve,
    )


@contextmanager
def no_cache() -> Iterator[None]:
    """Let MLX give back the memory of every array at once: matrices differ, nothing is reused."""
    limit = mx.set_cache_limit(0)
    try:
        yield
    finally:
        mx.set_cache_limit(limit)


def check_room(
    checkpoint: Checkpoint, output: OutputFolder, nbytes: int | None = None, *, exact: bool = False
) -> None:
    """Refuse before the work what has no room for its end.

    Args:
        checkpoint: The open source.
        output: Where it is written.
        nbytes: Bytes of all tensors to be written. Where these are not known, awake and asleep
            together may take three times the source.
        exact: Whether to keep what `restore` needs for every bit: it may take the source once
            more, and as much again while it is written.

    Raises:
        OSError: Naming the folder, what is needed and what is free.
    """
    parent = next(p for p in output.path.parents if p.exists())
    source = sum(p.stat().st_size for p in checkpoint.weight_files)
    needed = (3 * source if nbytes is None else nbytes) + (2 * source if exact else 0)
    needed += 2**17 + 2**12 * len(checkpoint.tensors)  # manifest, journal, configuration
    needed += sum(p.stat().st_size for p in checkpoint.side_files().values()) - output.left_bytes()
    free = shutil.disk_usage(parent).free
    if free < needed:
        reason = f"{needed} bytes may be needed and {free} are free; choose another disk"
        raise OSError(errno.ENOSPC, reason, str(output.path))
