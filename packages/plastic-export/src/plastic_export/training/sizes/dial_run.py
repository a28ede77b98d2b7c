"""The adapters of a finished run at fewer bytes, every component with the bits that it has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from plastic_core.files import FormatError, check_unheld, copy_file

from plastic_export.adapters.adapter import Adapter
from plastic_export.adapters.mlx_form import mlx_files, read_mlx
from plastic_export.adapters.peft_form import peft_files, read_peft
from plastic_export.dialling.writing import check_outside
from plastic_export.folder.adapter_files import (
    CONFIG,
    FILE,
    FOLDER,
    PEFT_FOLDER,
    RUN_FILE,
    SIZES_FILE,
)
from plastic_export.folder.output import OutputFolder
from plastic_export.training.adapters import stored_bytes
from plastic_export.training.run_folder import read_run_file
from plastic_export.training.sizes.curve import RunSize
from plastic_export.training.sizes.sizes_file import TENSORS, SizesFile, read_sizes_file
from plastic_export.training.sizes.worth import (
    Ranks,
    leading,
    lost,
    ranks_within,
    smallest_ranks,
)


@dataclass(frozen=True)
class DialledRun:
    """The result of ``dial_run``.

    Attributes:
        dest: The folder that was written.
        adapter: Adapter of one rank, for mlx-lm's ``--adapter-path``.
        peft: The same in the form of PEFT.
        max_bytes: The size that was asked for.
        before_bytes: Bytes of the larger file of tensors of the run.
        nbytes: Bytes of the larger file of tensors written.
        ranks_before: The rank of every layer in the run, by path.
        ranks: The rank of every layer in what was written.
        predicted_rise: What the validation loss is predicted to be above that of the run, nats
            per token, by the prices of what was left out.
        points: What the run measured at other sizes, the largest first.

    Examples:
        >>> small = dial_run("RUN", "TINY", 8000)
        >>> small.adapter, small.nbytes <= 8000, small.predicted_rise > 0
        (PosixPath('TINY/adapters'), True, True)
    """

    dest: Path
    adapter: Path
    peft: Path
    max_bytes: int
    before_bytes: int
    nbytes: int
    ranks_before: dict[str, int]
    ranks: dict[str, int]
    predicted_rise: float
    points: tuple[RunSize, ...]


def is_dialled_run(folder: Path) -> bool:
    """Tell whether a folder is a run of ``train``, or the adapters that one was dialled to."""
    return any((folder / name).is_file() for name in (RUN_FILE, SIZES_FILE))


def dial_run(
    run: str | os.PathLike[str], dest: str | os.PathLike[str], max_bytes: int
) -> DialledRun:
    """Write the adapters of a finished run at fewer bytes, from what the run stores alone.

    ``train`` writes the components of every layer in the order of their worth, and keeps their
    prices: what stays is what the loss is predicted to miss most, with the bits that it has. The
    run stays whole, so that any other size is dialled from it; ``dest`` can be dialled down too.

    Args:
        run: The folder of a run that has ended, or what it was dialled to.
        dest: Folder to write; must not exist, or be empty.
        max_bytes: Bytes of either file of tensors at most, names and padding included.

    Raises:
        FormatError: If there is no such run, it has not ended, its components were never priced,
            or its adapters are not those that were priced.
        ValueError: If the size is below one component, or above what the run was made for and
            holds; both are named.
        BusyError: If another process is training there, or writing ``dest``.
        OSError: If reading or writing fails. Nothing is left behind.

    Cost:
        Reads the adapters once and writes them; the base is not needed.

    Examples:
        >>> small = dial_run("RUN", "SMALL", 9000)
        >>> large = dial_run("RUN", "LARGE", small.before_bytes)
        >>> Path("LARGE/peft/adapter_model.safetensors").read_bytes() == Path(
        ...     "RUN/peft/adapter_model.safetensors"
        ... ).read_bytes()
        True
    """
    folder, place = Path(run), Path(dest)
    sizes = _priced(folder)
    check_outside(folder, place)
    check_unheld(folder)
    sizes.check_fits(folder)
    forms = read_mlx(folder / FOLDER), read_peft(folder / PEFT_FOLDER)
    whole = max((folder / file).stat().st_size for file in TENSORS)
    ranks = _ranks(folder, forms[0], sizes, max_bytes, whole)
    with OutputFolder(place, source=folder) as target:
        if whole <= max_bytes:
            _copy(folder, target)
        else:
            mlx_files(leading(forms[0], ranks)).write(target / FOLDER)
            peft_files(leading(forms[1], ranks), uniform=True).write(target / PEFT_FOLDER)
        nbytes = max((target / file).stat().st_size for file in TENSORS)
        worth = {path: each[: ranks.get(path, 0)] for path, each in sizes.worth.items()}
        points = tuple(point for point in sizes.points if point.nbytes <= nbytes)
        SizesFile.of(target, worth, points).write(target / SIZES_FILE)
    return DialledRun(
        dest=place,
        adapter=place / FOLDER,
        peft=place / PEFT_FOLDER,
        max_bytes=max_bytes,
        before_bytes=whole,
        nbytes=nbytes,
        ranks_before=forms[0].ranks,
        ranks=dict(ranks),
        predicted_rise=lost(sizes.worth, ranks),
        points=sizes.points,
    )


def _priced(folder: Path) -> SizesFile:
    """Return the prices of a run, or say why there are none."""
    if not folder.exists():
        raise FormatError.about(folder, "there is no such run", "check the path")
    if (folder / SIZES_FILE).is_file():
        return read_sizes_file(folder / SIZES_FILE)
    if not (folder / RUN_FILE).is_file():
        reason = f"it is no run of `plastic train`: it holds no {RUN_FILE}"
        raise FormatError.about(folder, reason, "cut other adapters with `plastic resize`")
    if not (folder / FOLDER / FILE).is_file():
        reason = "the run is not finished: it has no adapter yet"
        raise FormatError.about(folder, reason, "start the same command again, to go on with it")
    reason = "its components were never priced: it was written before, or nothing could be priced"
    raise FormatError.about(folder, reason, "cut its adapters with `plastic resize`")


def _ranks(folder: Path, adapter: Adapter, sizes: SizesFile, max_bytes: int, whole: int) -> Ranks:
    """Return the ranks within the size, or refuse it."""
    if not any(adapter.ranks.values()):
        reason = "it holds no component: its best state is that before the first step"
        raise FormatError.about(folder, reason, "train on, or with another learning rate")
    least = stored_bytes(leading(adapter, smallest_ranks(adapter)))
    if not least <= max_bytes <= max(whole, _ceiling(folder)):
        raise ValueError(
            f"`max_bytes` must be at least {least} bytes, one component, and at most the {whole} "
            f"bytes of the run, got {max_bytes} bytes"
        )
    if max_bytes >= whole:
        return adapter.ranks
    return ranks_within(adapter, sizes.worth, max_bytes)


def _ceiling(folder: Path) -> int:
    """Return the size that a run was trained for; 0 where none is known."""
    run = folder / RUN_FILE
    return (read_run_file(run).max_bytes or 0) if run.is_file() else 0


def _copy(folder: Path, target: Path) -> None:
    for place in TENSORS:
        tensors = Path(place)
        (target / tensors.parent).mkdir()
        for file in (tensors, tensors.with_name(CONFIG)):
            copy_file(folder / file, target / file, home=folder)
