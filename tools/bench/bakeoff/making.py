"""One row: a checkpoint is made, weighed, measured and removed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kept.limit import at_most
from kept.measurements import Figures
from meters import Spent, spent
from plastic_export import Evaluation, evaluate, open_checkpoint

from bakeoff.bench import BakeOff
from bakeoff.rows import BEFORE, TABLES
from bakeoff.setting import Setting
from bakeoff.written import Written

PACKAGES = ("plastic-export", "mlx", "mlx-lm", "numpy")


def made_row(
    *,
    table: str,
    method: str,
    budget: Any,
    setting: Mapping[str, Any],
    steps: int = 0,
    rates: tuple[float, ...] = (),
    limit: int | None = None,
    keep_folders: bool = False,
    **identity: Any,
) -> Figures:
    """Make a checkpoint and measure it.

    Args:
        table: One of `TABLES`.
        method: One of its methods.
        budget: What it is given.
        setting: A `Setting` as JSON.
        steps: Steps of what is tuned.
        rates: Rates of DWQ.
        limit: Seconds of processor time that the making may take.
        keep_folders: Whether what was made stays in the folder of the setting.
        identity: What else tells the row from others.

    Returns:
        Bytes, bits per weight, seconds of the making without the measuring, and what every text
        shows.
    """
    shared = Setting.from_json(setting)
    asked = tuple(budget) if isinstance(budget, list) else budget
    with open_checkpoint(shared.source) as checkpoint:
        bench = BakeOff(shared, checkpoint, steps, tuple(rates))
        place = shared.folder_of(table, method, budget, steps)
        with _emptied(place, keep=keep_folders) as folder:
            if method in BEFORE:
                BEFORE[method]()
            with at_most(limit):
                taken, written = spent(lambda: TABLES[table][method](bench, folder / "out", asked))
            found = measured_on_texts(written.folder, shared)
        return {
            "model": checkpoint.name,
            **_sizes(bench, written),
            "predicted": written.predicted,
            **_times(bench, taken),
            "texts": {text.stem: shown_by(r) for text, r in zip(shared.texts, found, strict=True)},
            "device": found[0].settings.device if found[0].settings else None,
            "versions": {name: version(name) for name in PACKAGES} | {**written.versions},
        }


@contextlib.contextmanager
def _emptied(place: Path, *, keep: bool) -> Iterator[Path]:
    """An empty folder, removed in the end unless it is to be kept."""
    shutil.rmtree(place, ignore_errors=True)  # what a row that was ended left
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place)


def measured_on_texts(folder: Path, setting: Setting) -> list[Evaluation]:
    """Measure a checkpoint on every text; the source runs once for all rows."""
    file, window, windows = setting.reference, setting.measured_window, setting.measured
    measure = partial(evaluate, folder, setting.texts, window=window, windows=windows)
    if file.exists():
        return measure(reference=file)
    with tempfile.TemporaryDirectory(dir=setting.work) as place:
        new = Path(place) / "reference"
        found = measure(reference=setting.source, save_reference=new)
        new.replace(file)
    return found


def shown_by(found: Evaluation) -> Figures:
    """Return what a text shows, in nats per token."""
    tail = found.distance.kl_over_tokens.percentiles if found.distance else {}
    return {
        "kl": found.kl,
        "kl_error": found.kl_error,
        "kl_999": tail.get(99.9),
        "perplexity": found.perplexity,
        "top1": found.top1,
        "reference": found.distance.reference_perplexity if found.distance else None,
        "tokens": found.tokens,
        "settings": found.settings.digest if found.settings else None,
    }


def _sizes(bench: BakeOff, written: Written) -> Figures:
    planned = written.tensor_bytes - bench.left_bytes
    return {"nbytes": written.nbytes, "bits_per_weight": 8 * planned / bench.weights}


def _times(bench: BakeOff, taken: Spent) -> Figures:
    """Return the seconds of all that was made, as if its plans had been made for this row."""
    plans = bench.used.values()
    planning = Spent(sum(p.cpu for p in plans), sum(p.wall for p in plans))
    alone = Spent(taken.cpu - bench.planned.cpu, taken.wall - bench.planned.wall)
    total = Spent(alone.cpu + planning.cpu, alone.wall + planning.wall)
    return {"seconds": total._asdict(), "planning": planning._asdict()}
