"""The tokenizer of a checkpoint, offline and without running any code of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, read_json, sha256_file

from plastic_export.checkpoint.hub import fetch, is_repository
from plastic_export.checkpoint.plain_path import plain_path
from plastic_export.checkpoint.reader import Checkpoint, side_files_in
from plastic_export.checkpoint.warning import warn_about
from plastic_export.model.library import brief, mlx_lm_utils

_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json")
_REMEDY = (
    "put the tokenizer's files beside the weights, name another tokenizer (--tokenizer), or give "
    "token ids as the text (.npy, .json)"
)
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
    return digests_in(checkpoint.folder)


def digests_in(folder: Path) -> dict[str, str]:
    """Return the same of a folder that need not hold a checkpoint; see there for the errors."""
    return {
        place: sha256_file(path)
        for place, path in side_files_in(folder).items()
        if not any(fnmatchcase(place, pattern) for pattern in _OTHERS)
    }


def tokenizer_folder(source: str | Path) -> Path:
    """Return the folder of a tokenizer, which need not hold a checkpoint.

    Args:
        source: A folder, or the id of a repository in the Hub; no weights are downloaded.

    Raises:
        FormatError: If there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not folder.exists() and is_repository(str(source)):
        return fetch(str(source), None, weights=False)
    remedy = "name the folder of a tokenizer, or give a Hub id as owner/name"
    raise FormatError.about(source, "there is no such folder of a tokenizer", remedy)


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a checkpoint as mlx-lm would, offline and without code of the folder.

    Args:
        folder: Folder in Hugging Face or mlx-community form.

    Returns:
        mlx-lm's ``TokenizerWrapper``.

    Raises:
        FormatError: If there is no tokenizer, or none that the installed libraries can read.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If config.json cannot be read.

    Examples:
        >>> tokenizer = load_tokenizer("SRC")
        >>> tokenizer.decode(tokenizer.encode("abc"))
        'a b c'
    """
    folder, utils = Path(folder), mlx_lm_utils()
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else {}
    offline = {"trust_remote_code": False, "local_files_only": True}
    try:
        with plain_path(folder) as place:
            tokenizer = utils.load_tokenizer(
                place, offline, eos_token_ids=config.get("eos_token_id")
            )
    except Exception as error:  # the tokenizers library raises Exception itself
        why = brief(error)
        if _needs_code(folder):
            why = f"{_TOKENIZER_CONFIG} names code of the folder ('auto_map'), which is never run"
        reason = f"its tokenizer cannot be loaded: {why}"
        raise FormatError.about(folder, reason, _REMEDY) from error
    _check_vocabulary(tokenizer, folder)
    return tokenizer


def warn_of_tokenizer_code(folder: Path) -> None:
    """Warn that code which a tokenizer names is not carried along with its other files."""
    if _needs_code(folder):
        reason = "'auto_map' names code of the folder, which is not copied"
        outcome = "put its file beside the output before you run that with --trust-remote-code"
        warn_about(folder / _TOKENIZER_CONFIG, reason, outcome)


def _needs_code(folder: Path) -> bool:
    """Tell whether the folder names a class of its own for the tokenizer."""
    file = folder / _TOKENIZER_CONFIG
    named = read_json(file).get("auto_map") if file.is_file() else None
    return isinstance(named, Mapping) and "AutoTokenizer" in named


def _check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer without its vocabulary, of which the library makes one of no tokens."""
    named = getattr(tokenizer, "vocab_files_names", None) or {}
    files = [*named.values()]
    if files and not any((folder / name).exists() for name in (*files, *VOCABULARIES)):
        reason = f"its tokenizer has no vocabulary: none of {', '.join(files)} is there"
        raise FormatError.about(folder, reason, _REMEDY)
