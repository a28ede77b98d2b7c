"""What a run is known by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from plastic_core.files import json_digest, sha256_file

from plastic_export.adapters.adapter import Adapter
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.training.data.training_data import TrainingData
from plastic_export.training.settings import TrainingOptions
from plastic_export.training.starting_adapter import adapter_digest


def identity_of_run(
    checkpoint: Checkpoint,
    rows: TrainingData,
    training: TrainingOptions,
    patterns: Mapping[str, Sequence[str]],
    reader: TokenReader,
    start: Adapter | None,
) -> dict[str, Any]:
    """Return all that the course of the run depends on. Reads every byte of the base."""
    files = [[path.name, sha256_file(path)] for path in checkpoint.weight_files]
    options = {f"option {name}": value for name, value in training.record().items()}
    packages = ("mlx", "mlx-lm", "plastic-core", "plastic-runtime", "plastic-export")
    return {
        "base": json_digest([checkpoint.config, files]),
        **{f"file {name}": digest for name, digest in reader.digests().items()},
        **{f"{kind} data": digest for kind, digest in rows.digests.items()},
        **{f"option {name}": list(words) for name, words in patterns.items()},
        **({} if start is None else {"start": adapter_digest(start)}),
        "device": str(mx.default_device()),
        "moments": "corrected",  # of Adam: a run of before would go on in longer steps
        **options,
        **{f"version of {name}": version(name) for name in packages},
    }
