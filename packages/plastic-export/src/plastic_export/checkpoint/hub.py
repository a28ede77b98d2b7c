"""Checkpoints from the Hugging Face Hub: only the files needed, the cache where it has them."""

from __future__ import annotations

import fnmatch
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from plastic_core.files import FormatError, TensorSpec

from plastic_export.checkpoint.weight_files import INDEX, PATTERN

TEMPLATES = "additional_chat_templates"
"""The folder beside the weights in which transformers looks for more templates."""

SIDE_FILES = (
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer.jsonl",
    "tokenizer.model*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*.json",
    "*vocab*.txt",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "*.tiktoken",
    "tiktoken.model",
    "tekken.json",
    "spiece.model",
    "spm*.model",
    "sentencepiece*.model",
    "*.spm",
    "*.jinja",
    "chat_template.json",
    f"{TEMPLATES}/*.jinja",
    "*processor_config.json",
    "audio_tokenizer_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""What is carried along with the weights: what mlx-lm or transformers would load for tokens,
templates and other inputs, and legal texts; no code."""

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_repository(source: str) -> bool:
    """Tell whether ``source`` has the form of a Hub id, ``owner/name``."""
    return _REPOSITORY.fullmatch(source) is not None


def fetch(repository: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the folder of a checkpoint of the Hub, downloaded if it is not in the cache.

    Args:
        repository: Id of the form ``owner/name``.
        revision: Branch, tag or commit; None for the default branch. A commit is the only
            one that always means the same.
        weights: Whether they are needed, or the files beside them alone.

    Returns:
        The snapshot folder in the cache, named by its commit. Where nothing can be added to the
        cache, or the Hub cannot be reached, files that were never downloaded are missing in it.

    Raises:
        FormatError: If there is no such repository or revision, it cannot be read without
            permission, or neither the Hub nor the cache can give it.
        OSError: If the cache cannot be written and has no such folder.
    """
    try:
        return _snapshot(repository, revision, weights)
    except OSError as error:
        if error.filename is None:
            raise _refusal(repository, revision, error) from error
        with suppress(Exception):  # it may all be there, in a cache that is read-only
            return _snapshot(repository, revision, weights, local_files_only=True)
        raise
    except Exception as error:  # the HTTP client's own errors share no base class with ours
        raise _refusal(repository, revision, error) from error


def fetch_headers(repository: str, commit: str) -> dict[str, list[TensorSpec]]:
    """Return the tensors of every weight file of a checkpoint of the Hub, from its headers alone.

    Args:
        repository: Id of the form ``owner/name``.
        commit: The commit.

    Returns:
        The tensors by the name of the file, in the order of their bytes.

    Raises:
        FormatError: If the Hub cannot give them.

    Cost:
        One request for a part of each file.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        names = fnmatch.filter(api.list_repo_files(repository, revision=commit), PATTERN)
        return {
            name: _tensors(api.parse_safetensors_file_metadata(repository, name, revision=commit))
            for name in names
        }
    except Exception as error:  # see above
        raise _refusal(repository, commit, error) from error


def _tensors(header: Any) -> list[TensorSpec]:
    """Return the tensors that the header of a file names."""
    infos = sorted(header.tensors.items(), key=lambda item: item[1].data_offsets)
    return [TensorSpec(name, info.dtype, tuple(info.shape)) for name, info in infos]


def _snapshot(repository: str, revision: str | None, weights: bool, **options: Any) -> Path:
    from huggingface_hub import snapshot_download  # takes most of a second to import
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["config.json", "README.md", *SIDE_FILES, *((INDEX, PATTERN) if weights else ())]
    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=wanted, **options)
        return Path(found)
    except LocalEntryNotFoundError as error:
        if incomplete := getattr(error, "snapshot_path", None):
            return Path(incomplete)  # the reader says what it lacks, if that is needed
        raise


def _refusal(repository: str, revision: str | None, error: Exception) -> FormatError:
    reason, remedy = _explain(error, revision)
    return FormatError.about(repository, reason, remedy)


def _explain(error: Exception, revision: str | None) -> tuple[str, str]:
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return "the Hub asks for permission", "accept its terms there, then run `hf auth login`"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "there is no such folder, nor such a repository on the Hub", "check the name"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"the repository has no revision {revision!r}", "name a branch, tag or commit"
    if isinstance(error, hub.HFValidationError):
        return "there is no such folder, and this is no name for a repository", "check the name"
    if isinstance(error, hub.LocalEntryNotFoundError):
        reason = "there is no such folder, the Hub cannot be reached, and its cache lacks files"
        return reason, "check the name, then the connection (and HF_HUB_OFFLINE)"
    first = str(error).partition("\n")[0]
    return f"the Hub answered {type(error).__name__}: {first}", "try again"
