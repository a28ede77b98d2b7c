"""The tokenizer of a checkpoint, offline and without running any code of the folder."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json, sha256_file

from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.model.library import brief, mlx_lm_utils

_OTHERS = (  # side files that no token depends on
    "generation_config.json",
    "*processor_config.json",
    "LICEN[CS]E*",
    "NOTICE*",
    "USE_POLICY*",
)


def tokenizer_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of every file that the tokens depend on, chat templates included.

    Raises:
        FormatError: If one is not a regular file or a link that leaves the folder.
        OSError: If one cannot be read.
    """
    return {
        place: sha256_file(path)
        for place, path in checkpoint.side_files().items()
        if not any(fnmatchcase(place, pattern) for pattern in _OTHERS)
    }


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a checkpoint as mlx-lm would, offline and without code of the folder.

    Args:
        folder: Folder in Hugging Face or mlx-community form.

    Returns:
        mlx-lm's ``TokenizerWrapper``.

    Raises:
        FormatError: If there is no tokenizer, or none that the installed libraries can read.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If config.json is missing or cannot be read.

    Examples:
        >>> tokenizer = load_tokenizer("SRC")
        >>> tokenizer.decode(tokenizer.encode("abc"))
        'a b c'
    """
    folder, utils = Path(folder), mlx_lm_utils()
    config = read_json(folder / "config.json")
    offline = {"trust_remote_code": False, "local_files_only": True}
    try:
        return utils.load_tokenizer(folder, offline, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = f"its tokenizer cannot be loaded: {brief(error)}"
        remedy = "put the tokenizer's files beside the weights; code of the folder is never run"
        raise FormatError.about(folder, reason, remedy) from error
