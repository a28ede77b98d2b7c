"""The model card of an output of ``compress`` or ``heal``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plastic_core.files import read_json
from plastic_runtime.dialling import MANIFEST, SLEEP, Manifest, MatrixRecord, read_manifest

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.evaluation.output_check import OutputCheck
from plastic_export.exact.exactness import EXACT
from plastic_export.folder.adapter_files import FILE, FOLDER
from plastic_export.folder.card_file import SOURCE_CARD, may_write_card
from plastic_export.format.layout import offer_of
from plastic_export.format.protocol import Format
from plastic_export.format.table import FORMATS
from plastic_export.hub.model_card import (
    REPOSITORY,
    about_source,
    code,
    fact_table,
    link,
    metadata,
    write_card,
    written_by,
)
from plastic_export.hub.source_card import carried_data

MLX_LM, MLX_LM_WITH_FACTORS = "0.28", "0.30"
"""The least mlx-lm: of plain and packed weights, and of the model file beside factors."""


def write_output_card(
    folder: Path, path: Path, source: Checkpoint, check: OutputCheck | None
) -> None:
    """Write the card of a finished folder, unless one that is not ours is to stay.

    Args:
        folder: The folder, complete with its manifest.
        path: Where it is going to be: what lies there now may have a card.
        source: What it was made from.
        check: What running it showed.

    Raises:
        FormatError, OSError: If a card cannot be read or written.
    """
    if not may_write_card(path):
        return
    manifest = read_manifest(folder)
    format = FORMATS[manifest.format]
    records = manifest.matrices.values()
    is_packed = any(r.bits or r.factor_bits < 16 for r in records if not r.is_unchanged)
    data = metadata(carried_data(source), "quantized" if is_packed else "finetune", manifest.format)
    sections = [
        f"# {manifest.source['name'].rpartition('/')[2]}, {manifest.format}",
        f"{link(manifest.source['name'], manifest.source['revision'])}, compressed for MLX by "
        f"{written_by()}: format `{manifest.format}`, {format.about}.",
        fact_table(_facts(folder, manifest, check)),
        "## How to run it",
        *_running(folder, manifest, format),
        "## How to get the source back",
        *_restoring(manifest, format),
        about_source((folder / SOURCE_CARD).is_file()),
    ]
    write_card(folder, data, sections)


def _facts(folder: Path, manifest: Manifest, check: OutputCheck | None) -> dict[str, str]:
    files = {place: record["bytes"] for place, record in manifest.files.items()}
    model = sum(n for place, n in files.items() if Path(place).match("model*.safetensors"))
    records = manifest.matrices.values()
    changed = [r for r in records if not r.is_unchanged]
    rows = {
        "model files": f"{model:,} bytes",
        "adapter": _bytes(files.get(f"{FOLDER}/{FILE}", 0)),
        "compressed matrices": f"{len(changed)} of {len(records)}",
        "bits per weight of all these matrices": _bits_per_weight(records),
        "bits": _counted(r.bits for r in changed),
        "ranks": _span(r.rank for r in changed),
        "calibration": _calibration(manifest.options.get("calibration")),
    }
    if check is not None:
        text = f"{check.tokens} tokens of {check.text}"
        rows |= {
            "KL divergence from the source": f"{1000 * check.kl:.4g} millinats per token, {text}",
            "same likeliest next token": f"{check.top1:.1%} of them",
        }
    if dialled := manifest.options.get("dial"):
        cut = "gone" if dialled["lost"] else f"asleep in `{SLEEP}`"
        rows["dialled"] = f"to {dialled['budget']} from a larger output; what was cut is {cut}"
    if "heal" in manifest.options:
        when = ", before it was dialled" if dialled else ""
        rows["healed"] = f"yes{when}: trained towards the source; the size stayed"
    return rows


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count else ""


def _bits_per_weight(records: Iterable[MatrixRecord]) -> str:
    """Return the bits on disk per entry of the matrices, scales and factors counted."""
    records = list(records)
    entries = sum(math.prod(r.shape) * max(r.experts, 1) for r in records)
    stored = sum(r.source_bytes if r.is_unchanged else r.stored_bytes for r in records)
    return f"{8 * stored / entries:.3f}" if entries else ""


def _counted(bits: Iterable[int | None]) -> str:
    """Return how many matrices have each number of bits."""
    counts = Counter(b for b in bits if b)
    return ", ".join(f"{b} bits {n} times" for b, n in sorted(counts.items()))


def _span(ranks: Iterable[int]) -> str:
    present = [rank for rank in ranks if rank]
    return f"{min(present)} to {max(present)} in {len(present)} matrices" if present else ""


def _calibration(record: Any) -> str:
    """Return what the plan was made on: the digest of the text, and how much of it."""
    if not isinstance(record, dict) or "sha256" not in record:
        return ""
    kind = "the texts that come with plastic-export" if "set" in record else "a text"
    amount = f"{record['windows']} windows of {record['window']} tokens at most"
    return f"{kind}, sha256 `{record['sha256']}`, {amount}"


def _running(folder: Path, manifest: Manifest, format: Format) -> list[str]:
    offers = [offer_of(r) for r in manifest.matrices.values()]
    has_code = format.needs_model_file(offers)
    least = MLX_LM_WITH_FACTORS if has_code else MLX_LM
    needs = read_json(folder / MANIFEST).get("needs", {})
    also = f", and mlx {needs['mlx']}" if "mlx" in needs else ""
    command, *remarks = format.how_to_run(Path(REPOSITORY), offers)
    lines = [f'pip install "mlx-lm>={least}"']
    if f"{FOLDER}/{FILE}" in manifest.files:
        lines.append(f"hf download {REPOSITORY} --local-dir {REPOSITORY}")
    code_note = (
        ["`plastic_model.py` in this repository builds the layers; read it before you trust it."]
        if has_code
        else []
    )
    return [
        f"It needs mlx-lm {least} or newer{also}. `{REPOSITORY}` stands for this repository, or "
        "for the folder.",
        code([*lines, command.removeprefix("run it").strip()]),
        *code_note,
        *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks),
    ]


def _restoring(manifest: Manifest, format: Format) -> list[str]:
    dialled = manifest.options.get("dial")
    if dialled and dialled["lost"]:
        return ["What was cut is not here: take the output that this one was dialled from."]
    waking = list[str]()
    if dialled and not format.parks:
        waking = [
            f"`plastic dial` needs `{SLEEP}` beside the model and wakes what was cut, bit for bit. "
            "`plastic push` uploads what it needs with `--with-sleep` alone.",
            code(["plastic dial FOLDER LARGER --full"]),
        ]
        if EXACT not in manifest.files:
            return waking
    if not (EXACT in manifest.files or format.parks):
        name, revision = manifest.source["name"], manifest.source["revision"]
        return [f"Nothing of it was kept beside the model: take {link(name, revision)} again."]
    beside = " and ".join(f"`{name}`" for name in (SLEEP, EXACT) if name in manifest.files)
    how = "bit for bit" if EXACT in manifest.files else "with every component awake"
    needs = f" needs {beside} beside the model and" if beside else ""
    return [
        *waking,
        f"`plastic restore`{needs} writes the source again, {how}. `plastic push` uploads what it "
        "needs with `--with-sleep` alone.",
        code(["plastic restore FOLDER SOURCE"]),
    ]
