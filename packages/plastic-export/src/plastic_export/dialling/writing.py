"""Write a compressed folder at another size, from what it stores alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastic_core.files import (
    FormatError,
    check_unheld,
    copy_file,
    partial_of,
    read_json,
    write_json,
)
from plastic_runtime import Track, untracked
from plastic_runtime.dialling import MANIFEST, SLEEP, Manifest, MatrixRecord, read_manifest

from plastic_export.compression.verification import verify
from plastic_export.dialling.certificates import StoredSides, turned_record
from plastic_export.dialling.rows import Bytes, ComponentRows, from_rows
from plastic_export.dialling.spending import FileBytes, Purse
from plastic_export.dialling.tensors import Turn
from plastic_export.dialling.turning import (
    Ranks,
    Turnable,
    turnable_matrices,
    turned_contents,
)
from plastic_export.evaluation.output_check import run_alone
from plastic_export.exact.carrying import carry_exact
from plastic_export.exact.exactness import EXACT
from plastic_export.folder.card_file import SOURCE_CARD
from plastic_export.folder.manifest import write_manifest
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.places import open_place
from plastic_export.folder.shards import Shards, bytes_of_files, shard_bytes
from plastic_export.format.config import turned_config
from plastic_export.format.layout import Contents, candidate_of, offer_of
from plastic_export.format.parts import Part
from plastic_export.format.table import FORMATS
from plastic_export.hub.output_card import write_output_card
from plastic_export.hub.source_card import carried_card
from plastic_export.model.load import MODEL_FILE
from plastic_export.plan.budgets import Budget
from plastic_export.plan.offers import totals_of

_OWN = ("schema", "matrices", "tensors", "rows", "files", "sha256")
"""What a manifest says of its folder; all else it says of how that was made."""


@dataclass(frozen=True)
class Dialled:
    """The result of ``dial``.

    Attributes:
        dest: The folder that was written.
        format: Name of its format.
        asked: The budget that was asked for; ``"full"`` for none.
        matrices: One record per matrix.
        turned: Names of the matrices that have other ranks than before.
        before_bytes: Bytes of the model files of the folder that was dialled.
        model_bytes: Bytes of the model files written.
        sleep_bytes: Bytes of ``sleep.safetensors``; 0 where nothing sleeps.
        exact_bytes: Bytes of ``exact.safetensors``; 0 where it is not there.
        is_exact_lost: Whether the folder that was dialled has it, and components are gone that it
            needs.
        checked: How many tokens of text ran through it, with finite predictions, before it was
            published; 0 where nothing was run.

    Examples:
        >>> result = dial("FACTORED", "SMALL", Budget("keep", 0.3), park=True)
        >>> result.bits_per_weight < 0.3 * 16, verify("SMALL")
        (True, [])
    """

    dest: Path
    format: str
    asked: str
    matrices: tuple[MatrixRecord, ...]
    turned: tuple[str, ...]
    before_bytes: int
    model_bytes: int
    sleep_bytes: int
    exact_bytes: int = 0
    is_exact_lost: bool = False
    checked: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per entry of the matrices, scales and factors counted."""
        weights = sum(candidate_of(r).weights for r in self.matrices)
        return 8 * sum(r.stored_bytes for r in self.matrices) / weights

    @property
    def predicted_kl(self) -> float:
        """The sum of the prices, nats per token; 0 where ranks were not chosen by prices."""
        return sum(r.predicted_kl for r in self.matrices)

    def how_to_run(self) -> list[str]:
        """The lines that say how to run it."""
        return FORMATS[self.format].how_to_run(self.dest, [offer_of(r) for r in self.matrices])


def dial(
    out: str | Path,
    dest: str | Path,
    budget: Budget | None = None,
    *,
    park: bool = False,
    force: bool = False,
    check: bool = True,
    track: Track = untracked,
) -> Dialled:
    """Write a compressed folder at another size, from what it stores alone.

    The budget is spent anew over the components that are stored, by the prices that ``compress``
    left in the manifest. Backbones, codes and scales of what stays are the same bits. What is cut
    is gone in ``dest``, unless it is parked there; then it can be dialled up again, to the bits
    that it had. Of the format ``"factored"`` the strategy chooses the ranks, as ``compress`` does.
    ``exact.safetensors`` goes along where no component is gone, and `restore` is exact from there.

    Args:
        out: Folder written by ``compress``, of a format with components. It is verified first.
        dest: Folder to write; must not exist, or be empty.
        budget: The size; None wakes everything that is stored.
        park: Whether what is cut sleeps in ``dest``.
        force: Replace ``dest`` where it is an earlier output.
        check: Run one window of text through what is written before it is published. Needs mlx-lm.
        track: Wraps the long loops.

    Raises:
        FormatError: If ``out`` is damaged, has no components or no prices of them, or ``dest`` lies
            in it.
        ValueError: If the budget is below the least that ``out`` can be dialled to, or above what
            it stores; both are named.
        FailedCheckError: If what was written cannot be run. It is not published.
        BusyError: If another process is writing ``out`` or ``dest``.
        OSError: If reading or writing fails. Nothing is left behind.

    Cost:
        Reads every byte of ``out`` twice, and holds the largest tensor or the components of one
        matrix.

    Examples:
        >>> small = dial("FACTORED", "SMALL", Budget("keep", 0.3), park=True)
        >>> large = dial("SMALL", "LARGE", Budget("keep", 0.5), park=True)
        >>> before = read_manifest(Path("FACTORED")).matrices
        >>> small.model_bytes < large.model_bytes
        True
        >>> all(r.rank == before[r.name].rank for r in large.matrices)
        True
    """
    folder, place = Path(out), Path(dest)
    check_unheld(partial_of(folder))
    check_outside(folder, place)
    manifest = read_manifest(folder)
    matrices = turnable_matrices(folder, manifest)
    is_exact = EXACT in manifest.files
    output = OutputFolder(place, force=force, source=folder)
    if defects := verify(folder, track=track):
        raise FormatError(defects[0])
    with ComponentRows(folder) as rows:
        before = Contents.of_manifest(manifest)

        def turn(ranks: Ranks) -> Turn:
            after = turned_contents(before, matrices, ranks, park=park)
            return Turn(rows.model.tensors, before, after)

        purse = _purse(manifest, before, matrices, lambda ranks: _file_bytes(turn(ranks)))
        ranks = purse.all() if budget is None else purse.ranks_within(budget)
        turned, asked = turn(ranks), "full" if budget is None else str(budget)
        with output as target:
            records, digests = _write_tensors(target, turned, rows, manifest, matrices, track)
            _write_beside(target, folder, turned, rows)
            lost = any(r.components < manifest.matrices[r.name].components for r in records)
            if is_exact and not lost:
                digests |= carry_exact(folder, target, turned.moved())
            identity = _identity(folder, records, asked, lost=lost)
            write_manifest(target, identity, records, digests)
            write_output_card(target, output.path, rows.model, None)
            rows.model.check_unchanged()
            tokens = run_alone(target, place) if check else 0
    return Dialled(
        dest=place,
        format=manifest.format,
        asked=asked,
        matrices=records,
        turned=tuple(r.name for r in records if r.rank != manifest.matrices[r.name].rank),
        before_bytes=bytes_of_files(folder, "model*.safetensors"),
        model_bytes=bytes_of_files(place, "model*.safetensors"),
        sleep_bytes=bytes_of_files(place, SLEEP),
        exact_bytes=bytes_of_files(place, EXACT),
        is_exact_lost=is_exact and lost,
        checked=tokens,
    )


def check_outside(folder: Path, dest: Path) -> None:
    """Refuse a place within the folder that is dialled."""
    if dest.resolve().is_relative_to(folder.resolve()):
        reason = f"it lies in {str(folder)!r}, the folder that is dialled"
        raise FormatError.about(dest, reason, "choose another folder")


def _purse(
    manifest: Manifest, before: Contents, matrices: dict[str, Turnable], file_bytes: FileBytes
) -> Purse:
    others = [r.stored_bytes for r in manifest.matrices.values() if r.name not in matrices]
    return Purse(
        matrices=matrices,
        totals=totals_of(list(before.matrices.values()), 0),
        unturned_bytes=sum(others),
        file_bytes=file_bytes,
    )


def _file_bytes(turn: Turn) -> int:
    return shard_bytes(turn.specs(), {"format": turn.after.format.framework})


def _write_tensors(
    target: Path,
    turn: Turn,
    rows: ComponentRows,
    manifest: Manifest,
    matrices: dict[str, Turnable],
    track: Track,
) -> tuple[tuple[MatrixRecord, ...], dict[str, str]]:
    """Write model files and what sleeps; return all records, and the digests."""
    framework, records = turn.after.format.framework, dict(manifest.matrices)
    with (
        open_place("model", target, turn.specs(), framework=framework) as model,
        open_place("sleep", target, turn.asleep_specs()) as sleep,
    ):
        for name, copied in track(list(turn.items()), "dialling"):
            if copied is not None:
                model.write(name, rows.model.raw(copied))
                continue
            stored = _write_matrix(turn, name, rows, model, sleep)
            if name in matrices:
                offer, parts = turn.after.chosen[name], turn.after.parts[name]
                records[name] = turned_record(matrices[name], offer, parts, stored)
    return tuple(records.values()), {**model.digests, **sleep.digests}


def _write_matrix(
    turn: Turn, name: str, rows: ComponentRows, model: Shards, sleep: Shards
) -> StoredSides:
    """Write what one matrix becomes; return its components."""
    old, new = turn.before.parts[name], turn.after.parts[name]
    for was, spec in turn.backbone_pairs(name):
        model.write(spec.name, rows.model.raw(was.name))
    v, u = rows.of(old.v, old.asleep_v), rows.of(old.u, old.asleep_u)
    for part, data in ((new.v, v), (new.u, u)):
        _write_part(model, part, data, 0)
    for part, data in ((new.asleep_u, u), (new.asleep_v, v)):
        _write_part(sleep, part, data, turn.after.chosen[name].rank)
    return StoredSides(old.u or old.asleep_u, u, old.v or old.asleep_v, v)


def _write_part(files: Shards, part: Part | None, data: list[Bytes], start: int) -> None:
    """Write the components of a part, the first of them that of number ``start``."""
    for spec, tensor in zip(part.specs if part else (), data, strict=part is not None):
        assert part is not None
        files.write(spec.name, from_rows(part, tensor[start : start + part.shape[0]]))


def _write_beside(target: Path, folder: Path, turn: Turn, rows: ComponentRows) -> None:
    """Write configuration, model file, tokenizer and the card of the source."""
    config = turned_config(rows.model.config, turn.before, turn.after)
    if config.get("model_file") == MODEL_FILE.name:
        copy_file(MODEL_FILE, target / MODEL_FILE.name)
    write_json(target / "config.json", config)
    rows.model.copy_side_files(target)
    if (card := carried_card(folder)) is not None:
        copy_file(card, target / SOURCE_CARD, home=folder)


def _identity(
    folder: Path, records: tuple[MatrixRecord, ...], asked: str, *, lost: bool
) -> dict[str, Any]:
    """Return what the manifest says of how the folder was made: as before, and dialled.

    A folder that has all its components awake again is what it was.
    """
    raw = read_json(folder / MANIFEST)
    options = dict(raw["options"])
    before = options.pop("dial", None)
    lost = lost or (before is not None and before["lost"])
    if lost or any(r.parked for r in records):
        options["dial"] = {"budget": asked, "lost": lost}
    if lost and "exact" in options:
        options["exact"] = False  # its words are differences from all that was stored
    return {name: value for name, value in raw.items() if name not in _OWN} | {"options": options}
