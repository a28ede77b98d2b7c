"""The model card of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from plastic_core.files import read_json

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.folder.adapter_files import CONFIG, FILE, FOLDER, PEFT_FOLDER
from plastic_export.folder.card_file import may_write_card
from plastic_export.hub.model_card import (
    REPOSITORY,
    code,
    fact_table,
    link,
    metadata,
    write_card,
    written_by,
)
from plastic_export.hub.output_card import MLX_LM
from plastic_export.hub.source_card import carried_data


def write_run_card(
    run: Path, base: Checkpoint, ranks: Mapping[str, int], losses: Sequence[tuple[int, float]]
) -> None:
    """Write the card of a finished run, unless there is one that is not ours.

    Args:
        run: The folder of the run, its adapters written.
        base: What was trained.
        ranks: Rank of every layer, as written.
        losses: Steps and validation losses: at the start, and of the state that was written.

    Raises:
        FormatError, OSError: If a card cannot be read or written.
    """
    if not may_write_card(run):
        return
    config = read_json(run / FOLDER / CONFIG)
    rows = {
        "adapter for mlx-lm": f"`{FOLDER}`, {(run / FOLDER / FILE).stat().st_size:,} bytes, "
        f"rank {config['lora_parameters']['rank']}",
        "the same for PEFT": f"`{PEFT_FOLDER}`",
        "ranks": f"{min(ranks.values())} to {max(ranks.values())} in {len(ranks)} layers",
        "steps": str(losses[-1][0]) if losses else "",
        "validation loss": f"{losses[0][1]:.4f} before, {losses[-1][1]:.4f} after, nats per token"
        if losses
        else "",
    }
    base_name = base.name if base.revision else "BASE"
    sections = [
        f"# {base.name.rpartition('/')[2]}, adapter",
        f"An adapter over {link(base.name, base.revision)}, trained for MLX by {written_by()}. "
        "Its ranks followed the loss.",
        fact_table(rows),
        "## How to run it",
        f"It needs mlx-lm {MLX_LM} or newer, and the base, which is not in it.",
        code(
            [
                f'pip install "mlx-lm>={MLX_LM}"',
                f"hf download {REPOSITORY} --local-dir {REPOSITORY}",
                f"mlx_lm.generate --model {base_name} --adapter-path {REPOSITORY}/{FOLDER} "
                "--prompt ...",
            ]
        ),
        "PEFT reads the same adapter over the dense original of the base: "
        f'`PeftModel.from_pretrained(base, "{REPOSITORY}", subfolder="{PEFT_FOLDER}")`.',
        "The base is as it was; without the adapter it is the source.",
    ]
    write_card(run, metadata(carried_data(base), "adapter", "lora"), sections)
