"""Wake everything: from a compressed folder back to a dense checkpoint."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from plastic_core.files import AtomicFile, FormatError, TensorSpec, copy_file, write_json
from plastic_runtime import Track, untracked
from plastic_runtime.dialling import Manifest, read_manifest

from plastic_export.checkpoint.tensors import COMPANIONS
from plastic_export.compression.verification import verify
from plastic_export.evaluation.output_check import run_alone
from plastic_export.exact.exactness import EXACT, Exact
from plastic_export.folder.card_file import CARD, SOURCE_CARD
from plastic_export.folder.output import OutputFolder
from plastic_export.folder.places import open_place
from plastic_export.folder.shards import as_stored
from plastic_export.format.config import restored_config
from plastic_export.format.layout import Contents
from plastic_export.format.stored import StoredMatrices
from plastic_export.model.load import MODEL_FILE


@dataclass(frozen=True)
class Restored:
    """The result of ``restore``.

    Attributes:
        dest: The folder that was written.
        exact: Names of the tensors whose bits are those of the source.
        bounds: Relative Frobenius error of every other tensor, by name.
        proved: Whether every tensor was compared with the SHA-256 that it had in the source.
        checked: How many tokens of text ran through it, with finite predictions, before it was
            published; 0 where nothing was run.

    Examples:
        >>> result = restore("FACTORED", "DENSE")
        >>> "lm_head.weight" in result.exact, max(result.bounds.values()) < 0.01, result.proved
        (True, True, False)
    """

    dest: Path
    exact: tuple[str, ...]
    bounds: dict[str, float]
    proved: bool = False
    checked: int = 0


def restore(
    out: str | Path, dest: str | Path, *, check: bool = True, track: Track = untracked
) -> Restored:
    """Write the dense checkpoint that ``out`` was made from, with every component awake.

    If ``out`` was compressed with ``exact``, every tensor comes back with the bits it had, of a
    plan's output too, and is compared with the digest taken then; so does ``config.json``. Else
    tensors that were not factored come back bit for bit. A factored matrix comes back as the sum
    of all its components, rounded to the storage type; how far that is from the source was
    measured when it was compressed, and is returned. A matrix that was quantised in the source
    comes back dense.

    Args:
        out: Folder written by ``compress``. It is verified first.
        dest: Folder to write; must not exist, or be empty.
        check: Run one window of text through what is written before it is published, unless its
            digests prove it. Needs mlx-lm.
        track: Wraps the long loops.

    Raises:
        FormatError: If ``out`` is damaged, or was written by a plan without ``exact``, so that
            nothing of it sleeps, or lost components by ``dial``.
        FailedCheckError: If what was written cannot be run. It is not published.
        OSError: If writing fails. Nothing is left behind.

    Examples:
        >>> result = compress("SRC", "OUT", keep=0.5, exact=True)
        >>> restore("OUT", "DENSE").proved  # every bit is that of SRC
        True
    """
    folder = Path(out)
    manifest = read_manifest(folder)
    exactly = EXACT in manifest.files
    contents = Contents.of_manifest(manifest)
    if not (exactly or contents.format.parks):
        raise _not_kept(folder, manifest)
    defects = verify(folder, track=track)
    if defects:
        raise FormatError(defects[0])
    if exactly:
        return _restore_exactly(folder, Path(dest), track)
    return _restore_parked(folder, Path(dest), manifest, contents, check, track)


def _not_kept(folder: Path, manifest: Manifest) -> FormatError:
    """Return the refusal of a folder that holds nothing of what rounding took."""
    remedy = f"take its source again, {manifest.source['name']!r}"
    if manifest.options.get("dial", {}).get("lost"):
        reason = "components of it were cut without --park"
        return FormatError.about(folder, reason, f"name what it was dialled from, or {remedy}")
    reason = "it was written by a plan without --exact, and what rounding took is not kept"
    return FormatError.about(folder, reason, remedy)


def _restore_parked(
    folder: Path, dest: Path, manifest: Manifest, contents: Contents, check: bool, track: Track
) -> Restored:
    """Write every tensor of the source, with what sleeps of it awake."""
    stored_anew = {n: p for n, p in contents.parts.items() if p.present}
    specs = _specs(manifest, stored_anew)
    with StoredMatrices(folder) as stored, OutputFolder(dest, source=folder) as target:
        with open_place("model", target, specs, framework="pt") as shards:
            for spec in track(specs, "waking"):
                if spec.name in stored_anew:
                    weight = stored.terms(stored_anew[spec.name], asleep=True).summed()
                    shards.write(spec.name, as_stored(weight, spec.dtype))
                else:
                    shards.write(spec.name, stored.model.raw(contents.place_of(spec.name)))
        config = restored_config(stored.model.config, contents)
        if "model_file" in config:
            copy_file(MODEL_FILE, target / MODEL_FILE.name)
        write_json(target / "config.json", config)
        stored.model.copy_side_files(target)
        _give_back_card(folder, target)
        tokens = run_alone(target, dest) if check else 0
    exact = tuple(spec.name for spec in specs if spec.name not in stored_anew)
    bounds = {name: manifest.matrices[name].restored_error for name in stored_anew}
    return Restored(dest, exact, bounds, checked=tokens)


def _restore_exactly(folder: Path, dest: Path, track: Track) -> Restored:
    """Write every tensor of the source, each compared with its digest."""
    with Exact(folder) as source, OutputFolder(dest, source=folder) as target:
        with open_place("model", target, source.specs(), framework="pt") as shards:
            for name in track(list(source.kept), "restoring"):
                shards.write(name, source.raw(name))
        with AtomicFile(target / "config.json") as config:
            config.write(source.config.encode())
        source.output.copy_side_files(target)
        _give_back_card(folder, target)
        return Restored(dest, tuple(source.kept), {}, proved=True)


def _give_back_card(folder: Path, target: Path) -> None:
    """Write the card of the source under the name that it had, if the folder carries it."""
    if (folder / SOURCE_CARD).is_file():
        copy_file(folder / SOURCE_CARD, target / CARD, home=folder)


def _specs(manifest: Manifest, stored_anew: Container[str]) -> list[TensorSpec]:
    """The tensors to write, in order; what was packed and factored comes back dense."""
    specs = []
    for name, (dtype, shape) in manifest.arranged.items():
        path, _, leaf = name.rpartition(".")
        if name in stored_anew:
            record = manifest.matrices[name]
            specs.append(TensorSpec(name, record.dtype, record.shape))
        elif f"{path}.weight" not in stored_anew or leaf not in COMPANIONS:
            specs.append(TensorSpec(name, dtype, tuple(shape)))
    return specs
